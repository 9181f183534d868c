"""The rows of a benchmark as a table, as JSON and as a picture."""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

MEBIBYTE = 2**20
NOISE = 1.2  # ratio of the slowest repeat to the fastest beyond which a row is not to be trusted


def _label(row: dict) -> str:
    """The mode, and what a reader must know to read the row: the evaluation chosen, and whose the caches are."""
    notes = []
    if row["mode"] == "auto" and row.get("evaluation"):
        notes.append("/".join(dict.fromkeys(row["evaluation"])))
    if row["mode"] == "stock" and row["beam"] > 1 and "copied" in row:
        notes.append("copied" if row["copied"] else "shared")
    return f"{row['mode']} ({', '.join(notes)})" if notes else row["mode"]


def _number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def _digits(count: int):
    return lambda value: f"{value:,.{count}f}"


# Heading, key of the row or function of it, and how its value is written.
_COLUMNS = [
    ("mode", _label, str),
    ("batch", "batch_size", str),
    ("beam", "beam", str),
    ("samples/s", "samples_per_second", _number),
    ("tokens/s", "tokens_per_second", _number),
    ("x stock", "ratio_to_stock", _digits(2)),
    ("identical", "identical", str),
    ("of", "sentences", str),
    ("peak MiB", "peak_mebibytes", _digits(0)),
    ("loaded MiB", "loaded_mebibytes", _digits(0)),
    ("state MiB", lambda row: row["state_bytes"] / MEBIBYTE if row.get("state_bytes") else None, _number),
    ("GFLOP/s", "gigaflops_per_second", _number),
    ("GB/s", "gigabytes_per_second", _number),
]


def table(rows: list[dict]) -> str:
    """A Markdown table that is aligned as text too, and a line for each row that failed."""
    measured = [row for row in rows if "failure" not in row]
    cells = [[heading for heading, _, _ in _COLUMNS]]
    for row in measured:
        values = [source(row) if callable(source) else row.get(source) for _, source, _ in _COLUMNS]
        cells.append(
            ["-" if value is None else write(value) for value, (*_, write) in zip(values, _COLUMNS, strict=True)]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [_line(row, widths) for row in cells]
    lines.insert(1, "|".join(["", f":{'-' * widths[0]}-", *(f"{'-' * width}-:" for width in widths[1:]), ""]))
    lines += [""] * any("failure" in row for row in rows)
    return "\n".join(lines + [failure(row) for row in rows if "failure" in row])


def failure(row: dict) -> str:
    return f"{row['mode']}, batch {row['batch_size']}, beam {row['beam']}: {row['failure']}."


def _line(cells: list[str], widths: list[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    aligned = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return f"| {' | '.join(aligned)} |"


def notes(rows: list[dict]) -> str:
    """What the columns mean, as far as these rows need it."""
    sentences = [
        "x stock: samples/s relative to stock fairseq's at the same batch and beam.",
        "identical: best hypotheses that are stock fairseq's, token by token.",
        "peak, loaded: memory of the whole process while decoding and before (on a GPU: of its allocator).",
        "state: what is kept from step to step.",
    ]
    if any(row["beam"] > 1 for row in rows):
        sentences.append(
            "copied or shared: whether in stock fairseq each hypothesis has keys and values of the source of its own."
        )
    sentences.append("GFLOP/s and GB/s are estimates from the sizes of the model.")
    busy = [_label(row) for row in rows if row.get("seconds") and max(row["seconds"]) > NOISE * min(row["seconds"])]
    if busy:
        sentences.append(f"Repeats differed by more than {NOISE - 1:.0%} (was the machine busy?): {', '.join(busy)}.")
    return " ".join(sentences)


def fairseq_version() -> str:
    for name in ("fairseq-fixed", "fairseq"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "of unknown version"


def write_json(path: Path, settings: dict, rows: list[dict]) -> None:
    """Written aside and moved into place, so that an interruption leaves the rows there were."""
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps({**settings, "rows": rows}, indent=2) + "\n")
    aside.replace(path)


def plot(path: Path, title: str, rows: list[dict]) -> None:
    """Bars of samples/s and of peak memory: a group for each batch size and beam, a colour for each mode."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = [row for row in rows if "failure" not in row]
    groups = list(dict.fromkeys((row["batch_size"], row["beam"]) for row in measured))
    modes = list(dict.fromkeys(row["mode"] for row in measured))
    width = 0.8 / len(modes)
    figure, axes = pyplot.subplots(1, 2, figsize=(5 + 1.2 * len(groups), 4), layout="constrained")
    for axis, key, heading in zip(
        axes, ("samples_per_second", "peak_mebibytes"), ("samples/s", "peak memory, MiB"), strict=True
    ):
        for number, mode in enumerate(modes):
            found = {(row["batch_size"], row["beam"]): row.get(key) or 0 for row in measured if row["mode"] == mode}
            places = [place + (number - (len(modes) - 1) / 2) * width for place in range(len(groups))]
            axis.bar(places, [found.get(group, 0) for group in groups], width, label=mode)
        axis.set_xticks(range(len(groups)), [f"batch {size}\nbeam {beam}" for size, beam in groups])
        axis.set_ylabel(heading)
    axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(title, fontsize="small", wrap=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
