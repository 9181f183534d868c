"""The settings of the tables in the EL-attention paper (2105.04779), and the published figures.

The published figures are those of the authors' code, microsoft/fastseq, examples/EL-attention: samples a second on a
V100 with 16 GB, at the largest batch that fits, without loading and without what comes after decoding.
"""

from dataclasses import dataclass, field, replace

from elseq.benchmark.arguments import tiny_options

SEARCHES = ("beam", "diverse", "greedy")
DIVERSE_GROUPS = 2  # of a diverse beam search; the paper does not say how many
# The programs for which figures are published, in their order: multi-head attention with keys and values copied for
# each hypothesis, as fairseq had it then, and EL-attention.
PUBLISHED = ("stock-copied", "el")
OUT_OF_MEMORY = "OOM"


@dataclass(frozen=True)
class Model:
    """A model with random weights, of the true sizes unless options say otherwise."""

    arch: str
    vocabulary_size: int
    options: tuple[str, ...] = ()  # as fairseq-train has them
    is_language_model: bool = False


@dataclass(frozen=True)
class Setting:
    """A model, and the lengths of its sources and outputs. Sources have one length, or lengths in a range."""

    label: str
    model: str  # of MODELS
    source_length: int  # positions, special symbols included
    output_length: int  # tokens of every output, its end not counted
    beam: int = 4
    lenpen: float = 1.0
    shortest_source: int | None = None  # None: all have source_length
    searches: tuple[str, ...] = SEARCHES
    # Samples/s by search and dtype.
    published: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict, compare=False)


MODELS = {
    "transformer_270m": Model("transformer_vaswani_wmt_en_de_big", 30522),
    "bart_large": Model("bart_large", 50264),
    "gpt2_124m": Model("el_transformer_lm_gpt2_124m", 50257, is_language_model=True),
    "gpt2_355m": Model("el_transformer_lm_gpt2_355m", 50257, is_language_model=True),
}
TINY_MODELS = {
    "transformer_270m": Model("transformer", 64, tiny_options("encoder", "decoder")),
    "bart_large": Model("bart_base", 64, tiny_options("encoder", "decoder")),
    "gpt2_124m": Model("el_transformer_lm_gpt2_124m", 64, tiny_options("decoder"), is_language_model=True),
    "gpt2_355m": Model("el_transformer_lm_gpt2_355m", 64, tiny_options("decoder"), is_language_model=True),
}

# Lengths are near the means of the corpora; articles of CNN/DailyMail are cut to the positions of the model.
SETTINGS = {
    "transformer_270m": Setting(
        "Transformer 270M, SQuAD",
        "transformer_270m",
        source_length=160,
        output_length=24,
        published={
            "beam": {"float16": (170.9, 458.1), "float32": (86.6, 173.6)},
            "diverse": {"float16": (162.3, 454.1), "float32": (82.1, 171.8)},
            "greedy": {"float16": (436.4, 699.7), "float32": (190.3, 260.3)},
        },
    ),
    "bart_large_xsum": Setting(
        "BART-large, XSum",
        "bart_large",
        source_length=512,
        output_length=26,
        beam=6,
        published={
            "beam": {"float16": (14.7, 69.4), "float32": (6.8, 26.3)},
            "diverse": {"float16": (15.8, 71.9), "float32": (7.2, 27.5)},
            "greedy": {"float16": (42.6, 107.8), "float32": (15.0, 44.9)},
        },
    ),
    "bart_large_cnn_dm": Setting(
        "BART-large, CNN/DailyMail",
        "bart_large",
        source_length=1024,
        output_length=82,
        lenpen=2.0,
        published={
            "beam": {"float16": (5.7, 28.6), "float32": (3.4, 12.2)},
            "diverse": {"float16": (5.4, 28.5), "float32": (3.2, 12.0)},
            "greedy": {"float16": (13.0, 40.0), "float32": (7.0, 19.5)},
        },
    ),
    "gpt2_124m": Setting(
        "GPT-2 small, CNN/DailyMail",
        "gpt2_124m",
        source_length=900,
        output_length=82,
        searches=("beam", "greedy"),
        published={
            "beam": {"float16": (2.1, 3.8), "float32": (1.5, 2.5)},
            "greedy": {"float16": (14.7, 26.2), "float32": (9.0, 13.6)},
        },
    ),
    "gpt2_355m": Setting(
        "GPT-2 medium, CNN/DailyMail",
        "gpt2_355m",
        source_length=900,
        output_length=82,
        searches=("beam", "greedy"),
        published={
            "beam": {"float16": (0.9, 2.0), "float32": (0.6, 1.1)},
            "greedy": {"float16": (5.9, 10.4), "float32": (3.6, 5.9)},
        },
    ),
}

# Samples/s of BART-large on CNN/DailyMail by batch, beam 4, float16.
BATCH_SETTING = "bart_large_cnn_dm"
BATCHES = {32: (5.7, 8.0), 64: (OUT_OF_MEMORY, 12.6), 128: (OUT_OF_MEMORY, 21.3), 320: (OUT_OF_MEMORY, 28.6)}
BATCHES_WITHOUT_CACHE = {32: 1.9, 64: 1.9, 128: OUT_OF_MEMORY, 320: OUT_OF_MEMORY}

# GiB that BART-large keeps of the sources, beam 4, float16, by batch and length.
MEMORY = {
    (32, 256): (1.5, 0.02),
    (32, 1024): (6, 0.06),
    (64, 256): (3, 0.03),
    (64, 1024): (12, 0.13),
    (320, 256): (15, 0.15),
    (320, 1024): (60, 0.63),
}

# TensorRT-LLM's documentation, docs/source/models/encoder-decoder.md: BART-large-CNN on an H100, bfloat16, greedy, 128
# tokens out. Documents a second by batch.
NVIDIA_SETTING = Setting(
    "BART-large, NVIDIA's protocol",
    "bart_large",
    source_length=440,
    output_length=128,
    shortest_source=260,
    searches=("greedy",),
)
NVIDIA = {
    "TensorRT-LLM, engine": {32: 139, 64: 254, 128: 363},
    "TensorRT-LLM, PyTorch backend": {32: 114, 64: 187, 128: 271},
}


def tiny(setting: Setting) -> Setting:
    """The same with lengths for a test."""
    shortest = None if setting.shortest_source is None else 8
    return replace(setting, source_length=16, output_length=6, shortest_source=shortest)
