"""The speed table of the multi-query attention paper (1911.02150, table 3): its rows and columns, and its figures."""

from dataclasses import dataclass

BEAMS = {"training": 0, "greedy": 1, "beam": 4}  # of each column
HEADINGS = {"training": "training", "greedy": "greedy", "beam": "beam 4"}
PARTS = [("training", "step"), ("greedy", "encoder"), ("greedy", "decoder"), ("beam", "encoder"), ("beam", "decoder")]


@dataclass(frozen=True)
class Variant:
    label: str
    arch: str
    is_local: bool  # the decoder's self-attention
    mode: str  # of `elseq.benchmark.models.load`
    published: tuple[float, ...]  # microseconds per token, a figure for each of PARTS


# They stand beside stock fairseq's as well: that is how such a model is decoded without elseq.
_MULTI_HEAD = (13.2, 1.7, 46, 2.0, 203)
VARIANTS = {
    "multi-head": Variant("multi-head", "transformer_shazeer", False, "kv", _MULTI_HEAD),
    "stock": Variant("multi-head, stock fairseq", "transformer_shazeer", False, "stock", _MULTI_HEAD),
    "multi-query": Variant("multi-query", "mq_transformer_shazeer", False, "kv", (13.0, 1.5, 3.8, 1.6, 32)),
    "multi-head-local": Variant("multi-head local", "transformer_shazeer", True, "kv", (13.2, 1.7, 23, 1.9, 47)),
    "multi-query-local": Variant("multi-query local", "mq_transformer_shazeer", True, "kv", (13.0, 1.5, 3.3, 1.6, 16)),
}
