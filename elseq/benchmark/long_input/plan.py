"""The runs that measure sources in windows. Each is a process of its own, `elseq.benchmark.long_input.measure`."""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fairseq.models import ARCH_MODEL_REGISTRY, FairseqLanguageModel

from elseq.benchmark.conditions import Conditions
from elseq.benchmark.models import ModelFile, random_model
from elseq.benchmark.processes import in_turns
from elseq.benchmark.rows import MeasuredRow, fill
from elseq.benchmark.sources import random_sources
from elseq.errors import UserError, as_option, renamed
from elseq.models.windows import chosen_windows
from elseq.tables import number

PROGRAM = ["-m", "elseq.benchmark.long_input.measure"]


@dataclass(frozen=True)
class Plan(Conditions):
    """The model, the lengths and the methods to measure."""

    arch: str
    lengths: list[int]  # tokens of a source, special symbols included
    methods: list[str]
    scores: list[str]  # of `arguments.SCORES`
    window: int
    overlap: int
    top_k: int
    batch: int
    beam: int
    output_length: int  # tokens, the end symbol included
    model_options: tuple[str, ...]  # as fairseq-train has them
    vocabulary_size: int

    def cells(self) -> list[tuple[int, str, str]]:
        """Length, method and scores of each run. Up to k states, top-k is exact."""
        return [
            (length, method, scores)
            for length in self.lengths
            for method in self.methods
            for scores in self.scores
            if scores == "exact" or length > self.top_k
        ]

    def runs(self) -> int:
        return len(self.cells())


@dataclass
class Row(MeasuredRow):
    """The result of a method at a length. `seconds` are those of the encoder and of the decoder."""

    length: int
    method: str
    scores: str
    output_lengths: list[int] | None = None
    state_bytes: int | None = None
    predicted_bytes: int | None = None  # of a batch, by which --memory-budget plans
    parameters: int | None = None

    def median_seconds(self, part: str) -> float:
        return statistics.median(self.seconds[part])

    @property
    def name(self) -> str:
        return f"{self.length:,} tokens, {self.method}, {self.scores}"

    @property
    def figures(self) -> str:
        return ", ".join(f"{part} {number(self.median_seconds(part))} s" for part in self.seconds)


def run_plan(plan: Plan, done: Callable[[Row], None]) -> None:
    """Measure all runs. Those of one length take turns.

    Args:
        plan: the cases to measure.
        done: called with each row as soon as it is there.

    Raises:
        UserError: the model cannot be built or has no encoder, or windows that it cannot have.
    """
    with tempfile.TemporaryDirectory(prefix="elseq-long-input-") as folder:
        with renamed(as_option):
            if issubclass(ARCH_MODEL_REGISTRY.get(plan.arch, object), FairseqLanguageModel):
                raise UserError(f"{plan.arch} is a language model, which has no encoder: give another", "arch")
            model_file = random_model(plan.arch, plan.vocabulary_size, list(plan.model_options), Path(folder))
            chosen_windows(model_file.source_positions, source_window=plan.window, source_window_overlap=plan.overlap)
        for length in plan.lengths:
            cells = [cell for cell in plan.cells() if cell[0] == length]
            requests = [_request(plan, model_file, *cell) for cell in cells]
            found = in_turns(PROGRAM, requests, Path(folder), interleave=plan.device == "cpu")
            for cell, measurement in zip(cells, found, strict=True):
                done(fill(Row(*cell), measurement))


def _request(plan: Plan, model_file: ModelFile, length: int, method: str, scores: str) -> dict:
    options = {"source_window": plan.window, "source_window_overlap": plan.overlap}
    if scores != "exact":
        options |= {"apply_top_k": plan.top_k, "apply_top_k_in": "cross"}
    return {
        "mode": method,
        "model_file": model_file.to_dict(),
        "task_options": options,
        "sources": random_sources(model_file, length, plan.batch),
        "source_length": length,
        "target_length": plan.output_length,
        "beam": plan.beam,
        **plan.conditions(),
    }
