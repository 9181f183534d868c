"""The rows of the EL-attention benchmark as tables and a picture, beside the published figures."""

from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from elseq.attention.methods import AUTO
from elseq.benchmark.arguments import STOCK_MODES
from elseq.benchmark.el_attention.plan import Plan, Row
from elseq.benchmark.el_attention.settings import BATCHES_WITHOUT_CACHE, NVIDIA, OUT_OF_MEMORY
from elseq.benchmark.measure import ran_out
from elseq.benchmark.report import about_gpu, about_noise, failures
from elseq.files import save_figure
from elseq.precision import DTYPES
from elseq.tables import GIBIBYTE, MEBIBYTE, Column, markdown_of, number

BASELINE = "stock-copied"
TITLES = {
    "speed": "Speed at the largest batch",
    "batch": "Speed by batch, BART-large, CNN/DailyMail, beam 4",
    "memory": "What the decoder keeps of the sources, BART-large, beam 4",
    "nvidia": "NVIDIA's protocol for BART-large: greedy, sources of 260 to 440 tokens, 128 tokens out",
}
PUBLISHED = {
    "speed": "published, V100",
    "batch": "published, V100, float16",
    "memory": "published GiB, float16",
    "nvidia": "published, H100",
}


class Part(NamedTuple):
    """A printed table: one of the paper, under one cap of memory."""

    table: str
    memory_cap: int | None

    @property
    def title(self) -> str:
        if self.memory_cap is None:
            return TITLES[self.table]
        return f"{TITLES[self.table]}, in {self.memory_cap / GIBIBYTE:g} GiB"


def parts(rows: list[Row]) -> dict[Part, list[Row]]:
    """The rows of each table. The programs of one case are next to each other."""
    names = "table", "model", "search", "mode"
    orders = {name: list(dict.fromkeys(map(attrgetter(name), rows))) for name in names}

    def place(row: Row) -> tuple[int, ...]:
        table, model, search, mode = (orders[name].index(getattr(row, name)) for name in names)
        size = 0 if row.table == "speed" else row.batch_size
        return table, model, search, size, row.source_length or 0, mode

    found: dict[Part, list[Row]] = {}
    for row in sorted(rows, key=place):
        found.setdefault(Part(row.table, row.memory_cap), []).append(row)
    return found


def compare(rows: list[Row]) -> list[dict]:
    """The speed of each program relative to stock fairseq's with copied keys and values; in the table memory, the bytes
    of that relative to the program's. Failed rows are left out."""
    names = "table", "memory_cap", "model", "search", "batch_size", "source_length", "mode"
    return [
        {name: value for name in names if (value := getattr(row, name)) is not None} | {"ratio": ratio}
        for row, ratio in _ratios(rows)
    ]


def _ratios(rows: list[Row]) -> Iterator[tuple[Row, float]]:
    def case(row: Row) -> tuple:
        size = None if row.table == "speed" else row.batch_size
        return row.table, row.memory_cap, row.model, row.search, size, row.source_length

    measured = [row for row in rows if row.failure is None]
    baselines = {case(row): row for row in measured if row.mode == BASELINE}
    for row in measured:
        baseline = baselines.get(case(row))
        if baseline is not None and row is not baseline:
            if row.table == "memory":
                yield row, baseline.state_bytes / row.state_bytes
            else:
                yield row, row.samples_per_second / baseline.samples_per_second


def _label(row: Row) -> str:
    """The program, and of stock fairseq whether the hypotheses have keys and values of the source of their own."""
    if row.mode == AUTO and row.method is not None:
        return f"{AUTO} ({row.method})"
    if row.mode not in STOCK_MODES:
        return row.mode
    stock, _, kind = row.mode.partition("-")
    return stock if row.beam == 1 else f"{stock}, {kind}"


def _in(unit: float) -> Callable[[float | str], str]:
    return lambda value: value if isinstance(value, str) else number(value / unit)


def _columns(table: str, rows: list[Row]) -> list[Column]:
    ratios = {id(row): ratio for row, ratio in _ratios(rows)}
    program, batch = Column("program", _label, str), Column("batch", attrgetter("batch_size"), "{:,}".format)
    published = Column(PUBLISHED[table], attrgetter("published"), _in(1))
    ratio = Column("stock : this" if table == "memory" else "x stock", lambda row: ratios.get(id(row)))
    if table == "memory":
        return [
            program,
            batch,
            Column("length", attrgetter("source_length"), "{:,}".format),
            Column("GiB by count", attrgetter("predicted_bytes"), _in(GIBIBYTE)),
            Column("measured", lambda row: OUT_OF_MEMORY if ran_out(row.failure) else row.state_bytes, _in(GIBIBYTE)),
            ratio,
            published,
        ]
    return [
        *([Column(name, attrgetter(name), str) for name in ("model", "search")] if table == "speed" else []),
        program,
        batch,
        Column("samples/s", lambda row: OUT_OF_MEMORY if ran_out(row.failure) else row.samples_per_second, _in(1)),
        ratio,
        published,
        Column("peak GiB", attrgetter("peak_mebibytes"), _in(1024)),
        Column("state MiB", lambda row: row.state_bytes or None, _in(MEBIBYTE)),
        Column("a step: ms", attrgetter("step_seconds"), _in(1e-3)),
        Column("GB", attrgetter("step_bytes"), _in(1e9)),
        Column("GFLOP", attrgetter("step_operations"), _in(1e9)),
        Column("GB/s", lambda row: row.step_seconds and row.step_bytes / row.step_seconds, _in(1e9)),
        Column("TFLOP/s", lambda row: row.step_seconds and row.step_operations / row.step_seconds, _in(1e12)),
        Column("of the limit", attrgetter("share_of_limit"), "{:.0%}".format),
    ]


def tables(plan: Plan, rows: list[Row]) -> str:
    """A table in Markdown for each that was asked for and each memory cap, and a line for each row that failed."""
    texts = []
    for part, own in parts(rows).items():
        shown = [row for row in own if row.failure is None or ran_out(row.failure)]
        if shown:
            columns, left = _columns(part.table, shown), ["model", "search", "program"]
            texts += [f"{part.title}:", markdown_of([*shown, *_unmeasured(part.table, shown)], columns, left)]
    return "\n\n".join([*texts, *failures([row for row in rows if not ran_out(row.failure)])])


def _unmeasured(table: str, rows: list[Row]) -> list[Row]:
    """Rows of programs that only have published figures, in the batches of the measured ones."""
    sizes = dict.fromkeys(row.batch_size for row in rows)
    if table == "batch":
        known = {"multi-head without a cache": BATCHES_WITHOUT_CACHE}
    else:
        known = NVIDIA if table == "nvidia" else {}
    return [
        Row(table, "", "", program, size, published=of[size])
        for program, of in known.items()
        for size in sizes
        if size in of
    ]


def notes(plan: Plan, rows: list[Row]) -> str:
    """The notes below the tables: what the figures mean."""
    tables = {row.table for row in rows}
    sentences = []
    if tables != {"memory"}:
        sentences += [
            f"Samples/s: without loading, median of {plan.repeats}; x stock: of stock fairseq with copied keys and "
            "values at the same settings.",
            "Copied or shared: whether in stock fairseq each hypothesis has keys and values of the source of its own, "
            "as in its Transformer, or those of its sentence, as in its BART.",
            f"{OUT_OF_MEMORY}: out of memory.",
        ]
    if tables & {"speed", "batch"}:
        size = plan.no_repeat_ngram_size
        repeated = f"no {size}-grams are repeated" if size else "3-grams may be repeated"
        sentences.append(
            "Published: 2105.04779, stock fairseq of that time and EL-attention, on a V100 with 16 GB, on real text, "
            "by BART without repeated 3-grams and with a minimum and a maximum length; here all outputs of a model "
            f"have one length, and {repeated}."
        )
    if "speed" in tables:
        sentences.append(
            "Batch: found from above, four fifths of the one before until it fits the memory, from at most "
            f"{plan.most:,} sentences."
        )
    if any(row.step_seconds is not None for row in rows):
        sentences.append(
            "A step: the mean time of all beside the encoder; bytes and operations of a step in the middle by count "
            "(weights, state and logits; see elseq/benchmark/cost.py)."
        )
    if (limits := plan.limits) is not None and any(row.share_of_limit is not None for row in rows):
        sentences.append(
            "Of the limit: the time of a step at the limits of the device, of the measured one; the limits are "
            f"{number(limits.bytes_per_second / 1e9)} GB/s and {number(limits.operations_per_second / 1e12)} TFLOP/s "
            f"({limits.source})."
        )
    if "memory" in tables:
        size = DTYPES[plan.dtype].itemsize
        sentences.append(
            f"Measured: the tensors that are there. A number takes {size} bytes; in the published figures, "
            "which are of multi-head attention and of EL-attention, 2."
        )
    if "nvidia" in tables:
        sentences.append("NVIDIA's figures are those of TensorRT-LLM's documentation, in bfloat16.")
    if any(row.ngrams_repeat for row in rows):
        sentences.append("Stock fairseq blocks n-grams by its CUDA extension only, which is not there.")
    return " ".join([*sentences, *about_gpu(rows), *about_noise(rows)])


def plot(plan: Plan, rows: list[Row], path: Path, title: str) -> list[Path]:
    """Bars of samples/s, or of GiB, with the published figures as crosses: a panel for each table."""
    from matplotlib.figure import Figure  # half a second, and only here

    panels = {part: [row for row in own if row.failure is None] for part, own in parts(rows).items()}
    panels = {part: own for part, own in panels.items() if own}
    modes = list(dict.fromkeys(row.mode for row in rows))
    groups = {part: list(dict.fromkeys(map(_group, own))) for part, own in panels.items()}
    size = (max(8, 1.1 * max(map(len, groups.values())) + 3), 3.5 * len(panels))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    width = 0.8 / len(modes)
    for axis, (part, own) in zip(axes, panels.items(), strict=True):
        for row in own:
            offset = (modes.index(row.mode) - (len(modes) - 1) / 2) * width
            place = groups[part].index(_group(row)) + offset
            value = row.state_bytes / GIBIBYTE if row.table == "memory" else row.samples_per_second
            axis.bar(place, value, width, color=f"C{modes.index(row.mode)}")
            if isinstance(row.published, int | float):
                axis.plot(place, row.published, "kx")
        axis.set_xticks(range(len(groups[part])), groups[part], fontsize="x-small")
        axis.set_yscale("log")
        axis.set_ylabel("GiB" if part.table == "memory" else "samples/s")
        axis.set_title(part.title, fontsize="small")
    handles = [axes[0].bar(0, 0, color=f"C{index}", label=mode) for index, mode in enumerate(modes)]
    handles += axes[0].plot([], [], "kx", label="published")
    axes[0].legend(handles=handles, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(title, fontsize="small", wrap=True)
    save_figure(figure, path.with_suffix(".png"))
    return [path.with_suffix(".png")]


def _group(row: Row) -> str:
    if row.table == "speed":
        return f"{row.model.replace(', ', chr(10))}\n{row.search}"
    return f"batch {row.batch_size:,}" + (f"\nlength {row.source_length:,}" if row.source_length else "")
