"""The runs that measure the speed table of the multi-query attention paper.

A variant is a model and how it is decoded; a column is training, greedy search or beam search, in one or two parts.
Every variant and column is a process of its own, `elseq.benchmark.multi_query.measure`.
"""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from elseq.benchmark.arguments import tiny_options
from elseq.benchmark.conditions import Conditions
from elseq.benchmark.cost import Batch, Decoding, Sizes, bytes_read, item_sizes
from elseq.benchmark.measure import ran_out
from elseq.benchmark.models import ModelFile, random_model
from elseq.benchmark.multi_query.variants import BEAMS, HEADINGS, PARTS, VARIANTS, Variant
from elseq.benchmark.processes import in_process
from elseq.benchmark.rows import DecodingRow, as_json, fill
from elseq.benchmark.sources import random_sources
from elseq.options import INT8, STOCK
from elseq.tables import number


@dataclass(frozen=True)
class Sizing:
    """Sizes that the paper fixes beside those of the architectures."""

    vocabulary_size: int = 33708  # special symbols included
    length: int = 128  # tokens of source and of target, the end symbol included
    radius: int = 32  # of local attention
    model_options: tuple[str, ...] = ()  # as fairseq-train has them


TINY = Sizing(vocabulary_size=64, length=16, radius=4, model_options=tiny_options("encoder", "decoder", heads=8))


@dataclass(frozen=True)
class Plan(Conditions):
    """The variants, columns and batch sizes to measure."""

    variants: list[str]
    columns: list[str]
    batches: dict[str, int]  # sentences, by column
    halving: set[str]  # columns in which half the batch is tried where one does not fit
    sizing: Sizing

    def runs(self) -> int:
        return len(self.variants) * len(self.columns)

    def dtype_of(self, variant: Variant) -> str:
        """The type of a variant. fairseq has no int8, so its float32 is the baseline of int8."""
        return "float32" if self.dtype == INT8 and variant.mode == STOCK else self.dtype


@dataclass
class Row(DecodingRow):
    """A variant in a column."""

    variant: str
    column: str
    batch_size: int
    dtype: str | None = None  # if it differs from the plan's
    microseconds_per_token: dict[str, float] | None = None
    published_microseconds_per_token: dict[str, float] | None = None
    gigabytes_per_second: float | None = None

    @property
    def name(self) -> str:
        return f"{VARIANTS[self.variant].label}, {HEADINGS[self.column]}, batch {self.batch_size}"

    @property
    def figures(self) -> str:
        parts = ", ".join(f"{part} {number(value)}" for part, value in self.microseconds_per_token.items())
        return f"{parts} microseconds per token"

    def to_dict(self) -> dict:
        return as_json(self, () if self.failure is not None else ("loaded_mebibytes",))


def run_plan(plan: Plan, done: Callable[[Row], None]) -> None:
    """Measure every variant and column, one after the other.

    Args:
        plan: the cases to measure.
        done: called with each row as soon as it is there.
    """
    for name in plan.variants:
        variant = VARIANTS[name]
        with tempfile.TemporaryDirectory(prefix="elseq-multi-query-") as folder:
            options = list(plan.sizing.model_options)
            if variant.is_local:
                options.append(f"--local-attention-radius={plan.sizing.radius}")
            model_file = random_model(variant.arch, plan.sizing.vocabulary_size, options, Path(folder))
            for column in plan.columns:
                batch_size = plan.batches[column]
                row = _measure(plan, name, column, model_file, batch_size, Path(folder))
                while column in plan.halving and batch_size > 1 and ran_out(row.failure):
                    batch_size //= 2
                    row = _measure(plan, name, column, model_file, batch_size, Path(folder))
                done(row)


def _measure(plan: Plan, name: str, column: str, model_file: ModelFile, batch_size: int, folder: Path) -> Row:
    sizing, variant = plan.sizing, VARIANTS[name]
    dtype = plan.dtype_of(variant)
    request = {
        "column": column,
        "mode": variant.mode,
        "model_file": model_file.to_dict(),
        "sources": random_sources(model_file, sizing.length, batch_size),
        "target_length": sizing.length,
        "beam": BEAMS[column],
        **plan.conditions(),
        "dtype": dtype,
    }
    found = in_process(["-m", "elseq.benchmark.multi_query.measure"], request, folder)
    row = fill(Row(name, column, batch_size, dtype=None if dtype == plan.dtype else dtype), found)
    if found.failure is not None:
        return row
    tokens = batch_size * sizing.length
    row.microseconds_per_token = {
        part: statistics.median(seconds) / tokens * 1e6 for part, seconds in found.seconds.items()
    }
    row.published_microseconds_per_token = {
        part: figure for (kind, part), figure in zip(PARTS, variant.published, strict=True) if kind == column
    }
    if column != "training" and not variant.is_local:  # the formulae know no local attention
        whole = statistics.median(map(sum, zip(*found.seconds.values(), strict=True)))
        batch = Batch(BEAMS[column], (sizing.length,) * batch_size, sizing.length)
        read = bytes_read(Sizes(**found.sizes), batch, Decoding(copied=found.copied), *item_sizes(dtype))
        row.gigabytes_per_second = read / whole / 1e9
    return row
