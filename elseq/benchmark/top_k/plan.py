"""Memory and time of top-k attention and feed-forward layers (2106.06899): which runs are made, and which are skipped.

Every method at every size is a process of its own, `elseq.benchmark.top_k.measure`. A size is a length (attention), the
units of a feed-forward layer, or the queries of a chunk (chunks: attention again, at one length).
"""

import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from elseq.attention.top_k import MOST_QUERIES, MOST_SCORES
from elseq.benchmark.conditions import Conditions
from elseq.benchmark.measure import Measurement, ran_out
from elseq.benchmark.processes import in_process
from elseq.benchmark.rows import MeasuredRow, fill
from elseq.benchmark.top_k.arguments import METHODS
from elseq.generation.cuda_graphs import free_memory_bytes
from elseq.gpu import device_kind
from elseq.tables import GIBIBYTE, number

# The power of the size with which time grows, at least and at most.
GROWTH = {"attention": (1.0, 2.0), "feed-forward": (0.0, 1.0), "chunks": (0.0, 0.0)}
SIZES = {"attention": "length", "feed-forward": "units", "chunks": "chunk size"}  # what they are
KEPT_INDEX_BYTES = torch.int32.itemsize  # of the scores that are kept for the gradients


@dataclass(frozen=True)
class Plan(Conditions):
    """The layers to measure: one causal layer of attention, or a stack of them, and one feed-forward layer."""

    sizes: dict[str, list[int]]  # by kind of layer, ascending
    methods: list[str]
    chunks_length: int  # length at which chunk sizes are compared
    tokens: int  # of the feed-forward layer
    heads: int
    head_width: int
    layers: int  # of attention; if several, with projections
    attention_top_k: int
    ffn_top_k: int
    query_chunk_size: int | None  # None: the rule of `top_k_attention`
    seconds_limit: float  # of one forward and backward pass
    memory_limit: float | None  # GiB; None: what is available

    def cells(self) -> list[tuple[str, int, str]]:
        """The kind of layer, the size and the method of each run, in order."""
        return [
            (what, size, method)
            for what, sizes in self.sizes.items()
            for size in sizes
            for method in METHODS[what]
            if method in self.methods
        ]

    def runs(self) -> int:
        return len(self.cells())

    def request(self, what: str, size: int, method: str) -> dict:
        """The request of `elseq.benchmark.top_k.measure`."""
        request = {"method": method, **self.conditions(), "seconds_limit": self.seconds_limit}
        if what == "feed-forward":
            sizes = {"length": self.tokens, "width": self.heads * self.head_width, "units": size}
            return request | {"layer": what, **sizes, "top_k": self.ffn_top_k}
        return request | {
            "layer": "attention",
            "length": size if what == "attention" else self.chunks_length,
            "heads": self.heads,
            "head_width": self.head_width,
            "layers": self.layers,
            "top_k": self.attention_top_k,
            "query_chunk_size": self.query_chunk_size if what == "attention" else size,
        }


@dataclass
class Row(MeasuredRow):
    """A method at a size. Its failure also tells why it was skipped, its peak is above the inputs."""

    what: str
    size: int
    method: str

    @property
    def name(self) -> str:
        return f"{self.what}, {SIZES[self.what]} {self.size:,}, {self.method}"

    @property
    def figures(self) -> str:
        return f"{number(statistics.median(self.seconds))} s, {number(self.peak_mebibytes)} MiB"


def run_plan(plan: Plan, done: Callable[[Row], None]) -> None:
    """Measure every method at every size, one after the other.

    Args:
        plan: the cases to measure.
        done: called with each row as soon as it is there.
    """
    times: dict[tuple[str, str], list[tuple[int, float]]] = {}  # of each method, sizes and seconds so far
    too_large: dict[tuple[str, str], int] = {}  # the size that did not fit the memory
    with tempfile.TemporaryDirectory(prefix="elseq-top-k-") as folder:
        for what, size, method in plan.cells():
            request = plan.request(what, size, method)
            free = free_memory_bytes(torch.device(plan.device))
            limit = free if plan.memory_limit is None else int(plan.memory_limit * GIBIBYTE)
            request["memory_limit_bytes"] = limit
            found = Measurement()
            needed, seconds = estimate_bytes(request), estimate_seconds(what, size, times.get((what, method), []))
            if (what, method) in too_large:
                found.failure = f"skipped, out of memory at {too_large[what, method]:,} already"
            elif needed > limit:
                found.failure = f"skipped, needs about {_gibibytes(needed)} of memory and has {_gibibytes(limit)}"
            elif seconds > plan.seconds_limit:
                found.failure = f"skipped, would take about {seconds:,.3g} s (the limit is {plan.seconds_limit:g} s)"
            else:
                found = in_process(["-m", "elseq.benchmark.top_k.measure"], request, Path(folder))
            if found.failure is None:
                times.setdefault((what, method), []).append((size, statistics.median(found.seconds)))
            elif ran_out(found.failure):
                too_large[what, method] = size
            done(fill(Row(what, size, method), found))


def estimate_seconds(what: str, size: int, times: list[tuple[int, float]]) -> float:
    """Time of a pass, from the last two (size, seconds) as a power of the size; from one, as the highest; else 0."""
    if not times:
        return 0.0
    lowest, power = GROWTH[what]
    last_size, last_seconds = times[-1]
    if len(times) > 1:
        earlier_size, earlier_seconds = times[-2]
        measured = math.log(last_seconds / earlier_seconds) / math.log(last_size / earlier_size)
        power = min(max(measured, lowest), power)
    return last_seconds * (size / last_size) ** power


def estimate_bytes(request: dict) -> float:
    """Roughly the memory of a pass beyond its inputs, gradients included."""
    item = getattr(torch, request["dtype"]).itemsize
    length, top_k, method = request["length"], request["top_k"], request["method"]
    kept = length * top_k * (item + KEPT_INDEX_BYTES)  # the k scores of each query of a head, and their indices
    kind = device_kind(request["device"])
    if request["layer"] == "feed-forward":
        table, states = (item * request["width"] * count for count in (request["units"], length))
        if method == "vanilla":  # activations, and the gradients before and after the activation function
            return 3 * item * length * request["units"] + 2 * table + 2 * states
        return kept + 7 * table + 3 * states + 3 * item * MOST_SCORES[kind]
    heads, layers = request["heads"], request["layers"]
    states = item * heads * request["head_width"] * length  # queries, keys, values or outputs
    projections = 4 * item * (heads * request["head_width"]) ** 2 if layers > 1 else 0
    linear = (6 * layers + 6) * states + layers * projections
    chunk = min(length, request["query_chunk_size"] or MOST_QUERIES[kind])
    if method == "vanilla":  # the weights of each layer, and two gradients
        return (layers + 2) * item * heads * length**2 + length**2 + linear
    if method == "chunked":
        return 3 * item * heads * chunk * length + linear
    if method == "top-k":
        scores = min(heads * chunk * length, max(MOST_SCORES[kind], chunk * length))
        return layers * heads * kept + 3 * item * scores + linear
    return linear


def _gibibytes(count: float) -> str:
    return f"{count / GIBIBYTE:,.1f} GiB"
