"""The rows of the top-k benchmark as tables and pictures, beside the published figures."""

import statistics
from pathlib import Path

from elseq.benchmark.report import about_noise, failures
from elseq.benchmark.top_k.arguments import METHODS
from elseq.benchmark.top_k.plan import SIZES, Plan, Row
from elseq.files import save_figure
from elseq.tables import markdown, number

MEASURES = {"seconds": "seconds", "peak_mebibytes": "peak MiB above the inputs"}
COLOURS = {"vanilla": "C0", "chunked": "C1", "top-k": "C2", "sdpa": "C3", "Performer": "C4"}
FFN_TOKENS = 262_144  # of the published figures

# 2106.06899, figures of the official repository: size, method, GiB and seconds, forward and backward, on a GPU that is
# not stated; queries in chunks of 1,024.
PUBLISHED_FFN = [(6144, "vanilla", 26.3, 1.00), (6144, "top-k", 8.0, 1.25), (65536, "top-k", 12.3, 9.9)]
PUBLISHED_LAYERS = {
    1: [
        (10240, "vanilla", 29.6, 0.38),
        (10240, "chunked", 4.3, 0.42),
        (10240, "top-k", 1.2, 0.37),
        (10240, "Performer", 1.6, 0.25),
        (61440, "chunked", 28.6, 8.6),
        (61440, "top-k", 9.6, 7.1),
        (61440, "Performer", 9.5, 0.56),
    ],
    12: [
        (2048, "vanilla", 9.2, None),
        (2048, "chunked", 1.8, None),
        (2048, "top-k", 1.4, None),
        (2048, "Performer", 3.5, None),
    ],
}


def published(plan: Plan, what: str) -> list[dict]:
    """The published figures for attention with as many layers as the plan has, or for feed-forward layers."""
    points = {"attention": PUBLISHED_LAYERS.get(plan.layers, []), "feed-forward": PUBLISHED_FFN}.get(what, [])
    return [dict(zip(("size", "method", "gibibytes", "seconds"), point, strict=True)) for point in points]


def compare(rows: list[Row]) -> list[dict]:
    """How many times vanilla's median time and peak each method takes at the same size; failed rows are left out."""
    found = {(row.what, row.size, row.method): row for row in rows if row.failure is None}
    ratios = []
    for (what, size, method), row in found.items():
        vanilla = found.get((what, size, "vanilla"))
        if vanilla is not None and method != "vanilla":
            pairs = {key: (_value(row, key), _value(vanilla, key)) for key in MEASURES}
            ratio = {key: ours / theirs if theirs else None for key, (ours, theirs) in pairs.items()}
            ratios.append({"what": what, "size": size, "method": method, **ratio})
    return ratios


def tables(plan: Plan, rows: list[Row]) -> str:
    """Two tables in Markdown for all that is measured, times and memory, the published figures, and what failed."""
    parts = []
    for what in dict.fromkeys(row.what for row in rows):
        parts += [f"{_title(plan, what)}:", *(_table(rows, what, measure) for measure in MEASURES)]
        points = [
            [point["method"], *map(_cell, list(point.values())[2:]), point["size"]] for point in _sorted(plan, what)
        ]
        if points:
            tokens = f", {FFN_TOKENS:,} tokens" if what == "feed-forward" else ""
            heading = [f"published (2106.06899{tokens})", "peak GiB", "seconds", SIZES[what]]
            parts.append(markdown(heading, [[*cells[:-1], f"{cells[-1]:,}"] for cells in points]))
    return "\n\n".join([*parts, *failures(rows)])


def _sorted(plan: Plan, what: str) -> list[dict]:
    return sorted(published(plan, what), key=lambda point: point["size"])


def _title(plan: Plan, what: str) -> str:
    if what == "feed-forward":
        return f"Feed-forward layer, {plan.tokens:,} tokens, width {plan.heads * plan.head_width}, k {plan.ffn_top_k}"
    layers = "one layer" if plan.layers == 1 else f"{plan.layers} layers with projections"
    title = f"Causal attention, {layers}, {plan.heads} heads of width {plan.head_width}, k {plan.attention_top_k}"
    if what == "chunks":
        return f"{title}, length {plan.chunks_length:,}"
    return title + (f", query chunks of {plan.query_chunk_size:,}" if plan.query_chunk_size else "")


def _table(rows: list[Row], what: str, measure: str) -> str:
    found = {(row.size, row.method): row for row in rows if row.what == what}
    ratios = {(ratio["size"], ratio["method"]): ratio[measure] for ratio in compare(rows) if ratio["what"] == what}
    sizes = sorted({size for size, _ in found})
    lines = []
    for method in METHODS[what]:
        if any(name == method for _, name in found):
            values = [_value(found.get((size, method)), measure) for size in sizes]
            cells = [_cell(value, ratios.get((size, method))) for size, value in zip(sizes, values, strict=True)]
            lines.append([method, *cells])
    note = " (of vanilla)" if ratios else ""
    return markdown([f"{MEASURES[measure]}{note}, {SIZES[what]}", *(f"{size:,}" for size in sizes)], lines)


def _cell(value: float | None, ratio: float | None = None) -> str:
    if value is None:
        return "-"
    return number(value) if ratio is None else f"{number(value)} ({number(ratio)})"


def _value(row: Row | None, measure: str) -> float | None:
    value = getattr(row, measure, None)
    return statistics.median(value) if isinstance(value, list) else value


def notes(plan: Plan, rows: list[Row]) -> str:
    """The notes below the tables: what the figures mean."""
    sentences = [
        f"Seconds: one forward and backward pass, median of {plan.repeats} or of as many as fit the time limit.",
        "Peak: of the process (on a GPU: of its allocator) above what it has with the inputs loaded; outputs, what is "
        "kept for the backward pass and gradients count.",
        "Chunked: vanilla in chunks of queries that are computed again for the gradients.",
        "Sdpa: PyTorch's scaled_dot_product_attention.",
        "Published: 2106.06899, figures of the official repository, on a GPU that is not stated.",
    ]
    return " ".join([*sentences, *about_noise(rows)])


def plot(plan: Plan, rows: list[Row], path: Path, title: str) -> list[Path]:
    """Peak memory and time against the size, on logarithmic axes, a file for each thing that was measured."""
    from matplotlib.figure import Figure  # half a second, and only here

    paths = []
    for what in dict.fromkeys(row.what for row in rows if row.failure is None):
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        axes = figure.subplots(1, 2)
        ours = [row for row in rows if row.what == what and row.failure is None]
        for axis, key, heading, unit in zip(
            axes, ("gibibytes", "seconds"), ("peak GiB above the inputs", "seconds"), (1 / 1024, 1), strict=True
        ):
            measure = "peak_mebibytes" if key == "gibibytes" else key
            for method, colour in COLOURS.items():
                measured = [(row.size, _value(row, measure) * unit) for row in ours if row.method == method]
                measured = [point for point in measured if point[1] > 0]
                if measured:
                    axis.plot(*zip(*measured, strict=True), color=colour, marker="o", label=method)
                points = [(point["size"], point[key]) for point in published(plan, what) if point["method"] == method]
                points = [point for point in points if point[1] is not None]
                if points:
                    label = f"{method}, published"
                    axis.plot(*zip(*points, strict=True), color=colour, marker="x", ms=9, ls="none", label=label)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xlabel(SIZES[what])
            axis.set_ylabel(heading)
            axis.grid(alpha=0.3)
        if axes[0].get_legend_handles_labels()[0]:
            axes[0].legend(fontsize="small")
        remark = f" (published: {FFN_TOKENS:,} tokens)" if what == "feed-forward" else ""
        figure.suptitle(_title(plan, what) + remark, fontsize="medium")
        paths.append(path.with_name(f"{path.name}_{what}.png"))
        save_figure(figure, paths[-1])
    return paths
