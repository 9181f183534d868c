"""The rows of a benchmark as a table, as JSON and as a picture."""

import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from operator import attrgetter
from pathlib import Path

import torch

import elseq
from elseq.attention.methods import AUTO
from elseq.benchmark.rows import DecodingRow, MeasuredRow, Row
from elseq.files import save_figure, written_whole
from elseq.precision import INT8
from elseq.tables import MEBIBYTE, Column, markdown_of

NOISE = 1.2  # ratio of the slowest repeat to the fastest beyond which a row is not to be trusted


def _label(row: Row) -> str:
    """The mode, with the method that `auto` chose, and whether hypotheses of stock fairseq share a cache."""
    notes = []
    if row.mode == AUTO and row.method is not None:
        notes.append(row.method)
    if row.mode == "stock" and row.beam > 1 and row.copied is not None:
        notes.append("copied" if row.copied else "shared")
    return f"{row.mode} ({', '.join(notes)})" if notes else row.mode


_SIZES = [Column("batch", attrgetter("batch_size"), str), Column("beam", attrgetter("beam"), str)]
_FIGURES = [
    Column("samples/s", attrgetter("samples_per_second")),
    Column("tokens/s", attrgetter("tokens_per_second")),
    Column("x stock", attrgetter("ratio_to_stock"), "{:.2f}".format),
    Column("identical", attrgetter("identical"), str),
    Column("of", attrgetter("sentences"), str),
    Column("peak MiB", attrgetter("peak_mebibytes"), "{:,.0f}".format),
    Column("loading MiB", attrgetter("loading_mebibytes"), "{:,.0f}".format),
    Column("loaded MiB", attrgetter("loaded_mebibytes"), "{:,.0f}".format),
    Column("state MiB", lambda row: row.state_bytes / MEBIBYTE if row.state_bytes else None),
    Column("GFLOP/s", attrgetter("gigaflops_per_second")),
    Column("GB/s", attrgetter("gigabytes_per_second")),
]


def _inner(part: str, rows: list[Row], write: Callable) -> list[Column]:
    """A column for each key of a dictionary that is in the rows."""

    def of(row: Row) -> dict:
        return getattr(row, part) or {}

    names = dict.fromkeys(name for row in rows for name in of(row))
    return [Column(name, lambda row, name=name: of(row).get(name), write) for name in names]


def table(rows: list[Row]) -> str:
    """A Markdown table that is aligned as text too, and a line for each row that failed.

    Args:
        rows: their "settings" (name to value) are columns beside mode, batch and beam, their "scores" the last ones.
            Columns that are empty in all rows are left out, and that of the dtype if there is only one.
    """
    measured = [row for row in rows if row.failure is None]
    dtypes = [Column("dtype", attrgetter("dtype"), str)] if len({row.dtype for row in measured}) > 1 else []
    settings, scores = _inner("settings", measured, str), _inner("scores", measured, "{:.2f}".format)
    columns = [Column("mode", _label, str), *_SIZES, *dtypes, *settings, *_FIGURES, *scores]
    return "\n\n".join([*([markdown_of(measured, columns)] if measured else []), *failures(rows)])


def failures(rows: list[MeasuredRow]) -> list[str]:
    """A list of the rows that failed, if there are any: a part of a text."""
    lines = [f"- {row.line}" for row in rows if row.failure is not None]
    return ["\n".join(lines)] if lines else []


def notes(rows: list[Row]) -> str:
    """What the columns of these rows mean."""
    rows = [row for row in rows if row.failure is None]
    told = {name for row in rows for name in row.to_dict()}
    sentences = []
    if "ratio_to_stock" in told:
        sentences += [
            "x stock: samples/s relative to stock fairseq's at the same settings.",
            "identical: best hypotheses that are exactly stock fairseq's.",
        ]
    if any(row.dtype == INT8 for row in rows):
        compared = "; compared with stock fairseq in float32" if "ratio_to_stock" in told else ""
        sentences.append(f"int8: linear layers in int8, all else in float32{compared}.")
    if "ngrams_repeat" in told:
        sentences.append(
            "Stock fairseq blocks n-grams by its CUDA extension only, which is not there: its hypotheses repeat them, "
            "and so are others (docs/differences.md)."
        )
    if "peak_mebibytes" in told:
        sentences += [
            "peak, loading, loaded: memory of the whole process (on a GPU: of its allocator), the most while decoding, "
            "the most before, and between the two.",
            "state: what is kept from step to step.",
        ]
    if "copied" in told and any(row.beam > 1 for row in rows):
        sentences.append(
            "copied or shared: whether in stock fairseq each hypothesis has keys and values of the source of its own."
        )
    if "gigaflops_per_second" in told:
        sentences.append("GFLOP/s and GB/s are estimates from the sizes of the model.")
    return " ".join([*sentences, *about_gpu(rows), *about_noise(rows)])


def about_gpu(rows: list[DecodingRow]) -> list[str]:
    """Sentences about the kernels of elseq that ran on a GPU, and the rows whose steps were captured as CUDA graphs."""
    sentences = []
    tried = [verdict for row in rows for verdict in row.kernels or []]
    used = dict.fromkeys(verdict["name"] for verdict in tried if verdict["is_used"])
    refused = {verdict["name"]: verdict["reason"] for verdict in reversed(tried) if not verdict["is_used"]}
    if used:
        sentences.append(f"Kernels that were right and faster in some sizes: {', '.join(used)}.")
    if refused:
        told = "; ".join(f"{name} ({reason})" for name, reason in reversed(refused.items()))
        sentences.append(f"Kernels that were not used in some sizes: {told}.")
    counted = [row for row in rows if row.captures is not None]
    without = [row.name + (f" ({row.not_captured})" if row.not_captured else "") for row in counted if not row.captures]
    if counted and not without:
        sentences.append("Decoding steps were captured as CUDA graphs.")
    elif without:
        sentences.append(f"Decoding steps were not captured as CUDA graphs in {'; '.join(without)}.")
    return sentences


def about_noise(rows: list[MeasuredRow]) -> list[str]:
    """A sentence about the rows of which some part took longer by more than `NOISE` in a repeat than in another."""
    noisy = []
    for row in rows:
        parts = row.seconds.values() if isinstance(row.seconds, dict) else [row.seconds]
        if any(part and max(part) > NOISE * min(part) for part in parts):
            noisy.append(row.name)
    told = f"Repeats differed by more than {NOISE - 1:.0%} (was the machine busy?): {'; '.join(noisy)}."
    return [told] if noisy else []


def heading(groups: list[list[str]]) -> str:
    """A line: with commas in a group, semicolons between groups."""
    return "; ".join(", ".join(group) for group in groups if group)


def text(title: str, rows: list[Row]) -> str:
    """The whole report in Markdown."""
    return "\n\n".join(filter(None, (title, table(rows), notes(rows)))) + "\n"


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"


def machine(device: str, threads: int, dtype: str) -> list[str]:
    """The device, the threads and the type of a measurement."""
    return [device_name(device), f"{threads} thread{'s' if threads > 1 else ''}", dtype]


def turns(repeats: int, rows: list[Row]) -> list[str]:
    """How the repeats were distributed over the time."""
    several = sorted({row.in_turns for row in rows if row.in_turns is not None})
    if not several:
        return []
    numbers = " to ".join(map(str, dict.fromkeys((several[0], several[-1]))))
    how = "one run after the other" if several == [1] else f"in turns of {numbers} processes"
    return [f"{repeats} repeat{'s' if repeats > 1 else ''}", how]


def versions() -> list[str]:
    return [f"torch {torch.__version__}", f"fairseq {fairseq_version()}", f"elseq {elseq.__version__}"]


def fairseq_version() -> str:
    for name in ("fairseq-fixed", "fairseq"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "of unknown version"


def write_json(path: Path, settings: dict, rows: list) -> None:
    """
    Raises:
        UserError: the file cannot be written.
    """
    with written_whole(path) as file:
        file.write(json.dumps({**settings, "rows": [row.to_dict() for row in rows]}, indent=2) + "\n")


def plot(path: Path, title: str, rows: list[Row]) -> None:
    """Bars of those of samples/s, peak memory and scores that the rows have.

    There is a group for each batch size, beam and further settings, and a colour for each mode.
    """
    from matplotlib.figure import Figure  # half a second, and only here

    measured = [row for row in rows if row.failure is None]
    figures = _FIGURES[0], Column("peak memory, MiB", attrgetter("peak_mebibytes"))
    panels = [
        column
        for column in (*figures, *_inner("scores", measured, str))
        if any(column.value(row) is not None for row in measured)
    ]
    groups = list(dict.fromkeys("\n".join(row.place) for row in measured))
    modes = list(dict.fromkeys(row.mode for row in measured))
    width = 0.8 / len(modes)
    longest = max(len(line) for group in groups for line in group.splitlines())
    size = (max(6, 2 + (0.4 + 0.07 * longest) * len(groups)), 1.5 + 2.5 * len(panels))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        for index, mode in enumerate(modes):
            found = {"\n".join(row.place): panel.value(row) or 0 for row in measured if row.mode == mode}
            places = [place + (index - (len(modes) - 1) / 2) * width for place in range(len(groups))]
            axis.bar(places, [found.get(group, 0) for group in groups], width, label=mode)
        axis.set_xticks(range(len(groups)), groups, fontsize="small")
        axis.set_ylabel(panel.heading)
    axes[0, 0].legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(title, fontsize="small", wrap=True)
    save_figure(figure, path)
