"""The rows of the long-input benchmark as tables and a picture."""

from collections.abc import Callable
from pathlib import Path

from elseq.benchmark.long_input.plan import Plan, Row
from elseq.benchmark.report import about_noise, failures
from elseq.files import save_figure
from elseq.tables import MEBIBYTE, markdown, number

COLOURS = {"kv": "C0", "el": "C1"}
STYLES = {"exact": "-", "top-k": "--"}


def compare(rows: list[Row]) -> list[dict]:
    """How many times as long a decoder takes with the k largest scores as with all; failed rows are left out."""
    found = {(row.length, row.method, row.scores): row for row in rows if row.failure is None}
    return [
        {"length": length, "method": method, "decoder": row.median_seconds("decoder") / exact.median_seconds("decoder")}
        for (length, method, scores), row in found.items()
        if scores != "exact" and (exact := found.get((length, method, "exact"))) is not None
    ]


def tables(plan: Plan, rows: list[Row]) -> str:
    """A table in Markdown for each measure, and a line for each row that failed."""
    measures = {
        "milliseconds per output token": _milliseconds_per_token,
        "seconds to encode": lambda row: row.median_seconds("encoder"),
        "decoding state, MiB": _state_mebibytes,
        "peak above the model, MiB": lambda row: (
            None if row.loaded_mebibytes is None else row.peak_mebibytes - row.loaded_mebibytes
        ),
        "predicted, MiB": lambda row: row.predicted_bytes / MEBIBYTE,
    }
    parts = [_table(rows, name, value) for name, value in measures.items()]
    return "\n\n".join([*parts, *failures(rows)])


def _table(rows: list[Row], name: str, value: Callable[[Row], float]) -> str:
    lengths = sorted({row.length for row in rows})
    found = {(row.method, row.scores, row.length): row for row in rows if row.failure is None}
    lines = []
    for method, scores in dict.fromkeys((row.method, row.scores) for row in rows):
        cells = [found.get((method, scores, length)) for length in lengths]
        values = [None if row is None else value(row) for row in cells]
        lines.append([f"{method}, {scores}", *("-" if each is None else number(each) for each in values)])
    return markdown([name, *(f"{length:,}" for length in lengths)], lines)


def _milliseconds_per_token(row: Row) -> float:
    return 1000 * row.median_seconds("decoder") / row.output_lengths[0]


def _state_mebibytes(row: Row) -> float:
    return row.state_bytes / MEBIBYTE


def notes(plan: Plan, rows: list[Row]) -> str:
    """The notes below the tables: what the figures mean."""
    sentences = [
        f"Median of {plan.repeats}; the rows of a length take turns.",
        "Per output token: the time of the decoder for a token of all hypotheses of the batch; for kv the projection "
        "of the source to keys and values is in it.",
        f"Exact: attention to all states; top-k: to the {plan.top_k} of the largest scores, for each query and head.",
        "Peak: of the process (on a GPU: of its allocator) above what it has with the model loaded; predicted: what "
        "--memory-budget counts.",
        "kv keeps keys and values of each layer, el the encoder's states once: less by twice the number of layers.",
        "Unlimiformer (2305.01625) reads such states too, but projects the k of each head and layer again at every "
        "step, one source at a time.",
    ]
    return " ".join([*sentences, *about_noise(rows)])


def plot(plan: Plan, rows: list[Row], path: Path, title: str) -> list[Path]:
    """Time of a token and decoding state against the length, on logarithmic axes."""
    from matplotlib.figure import Figure  # half a second, and only here

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots(1, 2)
    measured = [row for row in rows if row.failure is None]
    values = {"milliseconds per output token": _milliseconds_per_token, "decoding state, MiB": _state_mebibytes}
    for axis, (label, value) in zip(axes, values.items(), strict=True):
        for method, scores in dict.fromkeys((row.method, row.scores) for row in measured):
            points = [(row.length, value(row)) for row in measured if (row.method, row.scores) == (method, scores)]
            style = {"color": COLOURS.get(method), "ls": STYLES[scores], "marker": "o", "ms": 4}
            axis.plot(*zip(*points, strict=True), label=f"{method}, {scores}", **style)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("tokens of the source")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.suptitle(title, fontsize="small")
    save_figure(figure, path.with_suffix(".png"))
    return [path.with_suffix(".png")]
