"""The rows of the multi-query benchmark as tables, beside the published figures."""

from collections.abc import Iterator
from pathlib import Path

from elseq.benchmark.multi_query.plan import Plan, Row
from elseq.benchmark.multi_query.variants import BEAMS, HEADINGS, PARTS, VARIANTS
from elseq.benchmark.report import about_gpu, about_noise, failures
from elseq.options import INT8
from elseq.tables import MEBIBYTE, markdown, number

# Pairs of rows with a ratio.
PAIRS = [("multi-head", "multi-query"), ("stock", "multi-query"), ("multi-head-local", "multi-query-local")]


def compare(rows: list[Row]) -> list[dict]:
    """How many times as long, and as much state, the first of each pair takes as the second.

    Only rows with the same batch are compared. A ratio that is not there is left out.
    """
    found = {(row.variant, row.column): row for row in rows if row.failure is None}
    ratios = []
    for first, second in PAIRS:
        ratio = {"variants": [first, second], "time": {}, "published_time": {}, "state": {}}
        for place, (column, part) in enumerate(PARTS):
            pair = [found.get((name, column)) for name in (first, second)]
            if None in pair or pair[0].batch_size != pair[1].batch_size:
                continue
            ours, theirs = (row.microseconds_per_token[part] for row in pair)
            ratio["time"][f"{column} {part}"] = ours / theirs
            published = [VARIANTS[name].published[place] for name in (first, second)]
            ratio["published_time"][f"{column} {part}"] = published[0] / published[1]
            if column != "training":
                ratio["state"][column] = pair[0].state_bytes / pair[1].state_bytes
        if ratio["time"]:
            ratios.append(ratio)
    return ratios


def tables(plan: Plan, rows: list[Row]) -> str:
    """Two tables in Markdown, of times and of memory, and a line for each row that failed."""
    found = {(row.variant, row.column): row for row in rows if row.failure is None}
    names = list(dict.fromkeys(row.variant for row in rows))
    columns = [column for column in BEAMS if any(row.column == column for row in rows)]
    times = [_times(found, name, columns) for name in names]
    memory = [_memory(found, name, columns) for name in names]
    for ratio in compare(rows):
        first, second = (VARIANTS[name].label for name in ratio["variants"])
        label = f"{first} : {second}"
        keys = [f"{column} {part}" for column, part in PARTS if column in columns]
        pairs = [(ratio["time"].get(key), ratio["published_time"].get(key)) for key in keys]
        times.append([label, *(f"{number(ours)} ({number(theirs)})" if ours else "-" for ours, theirs in pairs)])
        states = [ratio["state"].get(column) for column in columns if column != "training"]
        if states:
            blank = [""] * (len(memory[0]) - len(states) - 1)
            memory.append([label, *(number(state) if state else "-" for state in states), *blank])
    heading = ["microseconds per token: ours (published)", *_part_headings(columns)]
    decoded = [HEADINGS[column] for column in columns if column != "training"]
    memory_heading = [
        "",
        *(f"state MiB, {name}" for name in decoded),
        *(f"peak MiB, {HEADINGS[column]}" for column in columns),
        *(f"GB/s, {name}" for name in decoded),
    ]
    return "\n\n".join([markdown(heading, times), markdown(memory_heading, memory), *failures(rows)])


def _part_headings(columns: list[str]) -> Iterator[str]:
    for column, part in PARTS:
        if column in columns:
            yield HEADINGS[column] if part == "step" else f"{HEADINGS[column]}: {part}"


def _times(found: dict, name: str, columns: list[str]) -> list[str]:
    variant = VARIANTS[name]
    cells = [variant.label]
    for (column, part), published in zip(PARTS, variant.published, strict=True):
        if column in columns:
            row = found.get((name, column))
            ours = "-" if row is None else number(row.microseconds_per_token[part])
            cells.append(f"{ours} ({published:g})")
    return cells


def _memory(found: dict, name: str, columns: list[str]) -> list[str]:
    rows = [found.get((name, column)) for column in columns]
    decoded = [row for row, column in zip(rows, columns, strict=True) if column != "training"]
    values = [
        *(row.state_bytes / MEBIBYTE if row else None for row in decoded),
        *(row and row.peak_mebibytes for row in rows),
        *(row and row.gigabytes_per_second for row in decoded),
    ]
    return [VARIANTS[name].label, *("-" if value is None else number(value) for value in values)]


def notes(plan: Plan, rows: list[Row]) -> str:
    """The notes below the tables: what the figures mean."""
    sentences = [
        f"Time per target token, {plan.sizing.length} to a sentence with the end symbol, hypotheses of a beam not "
        f"counted; median of {plan.repeats}.",
        f"Sentences in a batch: {_batches(plan, rows)}.",
        "Published: 1911.02150, table 3, on a TPUv2 (8 cores, 1,024 sentences).",
        "The projection of the source to keys and values counts as decoder.",
        "Stock fairseq's hypotheses have keys and values of the source of their own, elseq's share them.",
        "State: what is kept from step to step, at its largest; a ratio is of bytes at the same batch.",
        "Peak: of the whole process (on a GPU: of its allocator). GB/s: an estimate from the sizes of the model.",
    ]
    if plan.dtype == INT8:
        others = "; stock fairseq has no int8 and is in float32" if any(row.dtype for row in rows) else ""
        sentences.append(f"int8: linear layers in int8, all else in float32{others}.")
    return " ".join([*sentences, *about_gpu(rows), *about_noise(rows)])


def _batches(plan: Plan, rows: list[Row]) -> str:
    """The batch size of each column, and of the rows whose memory allowed only fewer sentences."""
    sizes = [f"{HEADINGS[column]} {plan.batches[column]:,}" for column in plan.columns]
    sizes += [
        f"{VARIANTS[row.variant].label}, {HEADINGS[row.column]} {row.batch_size:,}"
        for row in rows
        if row.batch_size != plan.batches[row.column]
    ]
    return "; ".join(sizes)


def plot(plan: Plan, rows: list[Row], path: Path, title: str) -> list[Path]:
    """No picture: the paper has a table."""
    return []
