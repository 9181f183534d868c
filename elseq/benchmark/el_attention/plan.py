"""The runs that measure the tables of the EL-attention paper, and NVIDIA's protocol.

A program that decodes, such as kv or Hugging Face, loads each model once, and decodes all cases with it, one after the
other: `elseq.benchmark.measure.measure_cases`.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from elseq.attention.methods import KV, METHODS, Choice
from elseq.benchmark import measure
from elseq.benchmark.arguments import FOREIGN_MODES, STOCK_MODES
from elseq.benchmark.conditions import Conditions
from elseq.benchmark.cost import Batch, Decoding, Sizes, StepCost, item_sizes, step_cost
from elseq.benchmark.el_attention.settings import (
    BATCH_SETTING,
    BATCHES,
    DIVERSE_GROUPS,
    MEMORY,
    MODELS,
    NVIDIA,
    NVIDIA_SETTING,
    PUBLISHED,
    SETTINGS,
    TINY_MODELS,
    Model,
    Setting,
    tiny,
)
from elseq.benchmark.limits import Limits, known_limits, measured_limits
from elseq.benchmark.measure import Measurement
from elseq.benchmark.models import ModelFile, random_model
from elseq.benchmark.processes import in_process, one_by_one
from elseq.benchmark.report import device_name
from elseq.benchmark.rows import DecodingRow, fill
from elseq.benchmark.runs import why_not
from elseq.benchmark.sources import check_positions, count_positions, random_sources
from elseq.tables import GIBIBYTE, number


@dataclass(frozen=True)
class Case:
    """A batch that is decoded, or the largest one of at most so many sentences."""

    table: str
    setting: Setting
    search: str
    batch_size: int
    is_largest: bool = False
    memory_cap: int | None = None  # bytes; None: all of the device's

    @property
    def beam(self) -> int:
        return 1 if self.search == "greedy" else self.setting.beam


@dataclass(frozen=True)
class Plan(Conditions):
    """The tables to measure, and their sizes."""

    tables: list[str]
    models: list[str]  # of the table speed, names of SETTINGS
    searches: list[str]  # of the table speed
    modes: list[str]
    batch_sizes: list[int] | None  # None: those of each table
    lengths: list[int]  # of the table memory
    most: int  # sentences
    memory_caps: dict[str, list[int | None]]  # by table
    no_repeat_ngram_size: int
    is_tiny: bool = False
    limits: Limits | None = None  # of the device

    def model(self, name: str) -> Model:
        return (TINY_MODELS if self.is_tiny else MODELS)[name]

    def cases(self) -> list[Case]:
        """All that decode, in the order of the tables."""
        found = []
        if "batch" in self.tables:
            setting = self._sized(SETTINGS[BATCH_SETTING])
            found += [
                Case("batch", setting, "beam", size, memory_cap=cap)
                for cap in self.memory_caps["batch"]
                for size in self.batch_sizes or BATCHES
            ]
        if "nvidia" in self.tables:
            sizes = self.batch_sizes or next(iter(NVIDIA.values()))
            found += [Case("nvidia", self._sized(NVIDIA_SETTING), "greedy", size) for size in sizes]
        if "speed" in self.tables:
            found += [
                Case("speed", setting, search, self.most, is_largest=True, memory_cap=cap)
                for cap in self.memory_caps["speed"]
                for setting in map(self._sized, map(SETTINGS.get, self.models))
                for search in self.searches
                if search in setting.searches
            ]
        return found

    def modes_of(self, case: Case) -> list[str]:
        """The modes of a case. With one hypothesis, or with only a prompt, stock fairseq has nothing to share."""
        has_one = case.beam == 1 or self.model(case.setting.model).is_language_model
        return [mode for mode in self.modes if mode != "stock-shared" or not has_one]

    def memory_cases(self) -> list[tuple[str, int, int]]:
        """Mode, batch size and length of each case of the table "memory"."""
        if "memory" not in self.tables:
            return []
        modes = [mode for mode in self.modes if mode in STOCK_MODES or mode in METHODS]
        sizes = self.batch_sizes or dict.fromkeys(batch for batch, _ in MEMORY)
        return [(mode, size, length) for mode in modes for size in sizes for length in self.lengths]

    def runs(self) -> int:
        return sum(len(self.modes_of(case)) for case in self.cases()) + len(self.memory_cases())

    def _sized(self, setting: Setting) -> Setting:
        return tiny(setting) if self.is_tiny else setting


@dataclass
class Row(DecodingRow):
    """A program in a case."""

    table: str
    model: str  # with its sources and outputs; see SETTINGS
    search: str
    mode: str
    batch_size: int
    memory_cap: int | None = None
    source_length: int | None = None
    beam: int | None = None
    samples_per_second: float | None = None
    published: float | str | None = None  # samples/s or GiB, or that it was out of memory
    encoder_seconds: float | None = None
    predicted_bytes: int | None = None  # by count
    method: str | None = None
    ngrams_repeat: bool | None = None
    version: str | None = None
    step_seconds: float | None = None  # mean of a decoding step
    step_bytes: int | None = None  # by count: bytes that the middle step reads
    step_operations: int | None = None
    share_of_limit: float | None = None

    @property
    def name(self) -> str:
        cap = [] if self.memory_cap is None else [f"{self.memory_cap / GIBIBYTE:g} GiB"]
        length = [] if self.source_length is None else [f"length {self.source_length:,}"]
        what = [self.table, self.model, self.search, self.mode, f"batch {self.batch_size:,}"]
        return ", ".join([*what, *length, *cap])

    @property
    def figures(self) -> str:
        if self.table == "memory":
            return f"{number(self.state_bytes / GIBIBYTE)} GiB"
        return f"{number(self.samples_per_second)} samples/s"


def run_plan(plan: Plan, done: Callable[[Row], None]) -> None:
    """Measure all cases: a model after the other, and with each model a program after the other.

    Args:
        plan: the cases to measure.
        done: called with each row as soon as it is there.
    """
    cases = plan.cases()
    models = dict.fromkeys(case.setting.model for case in cases)
    if plan.memory_cases():
        models.setdefault(SETTINGS[BATCH_SETTING].model)
    for name in models:
        model = plan.model(name)
        with tempfile.TemporaryDirectory(prefix="elseq-el-attention-") as folder:
            model_file = random_model(model.arch, model.vocabulary_size, list(model.options), Path(folder))
            mine = [case for case in cases if case.setting.model == name]
            for row in _decoded(plan, mine, model_file, Path(folder)):
                done(row)
            if name == SETTINGS[BATCH_SETTING].model:
                for row in _kept(plan, model_file, Path(folder)):
                    done(row)


def find_limits(plan: Plan) -> Limits | None:
    """The limits of the device, or None if they could not be measured."""
    known = known_limits(device_name(plan.device), plan.dtype)
    if known is not None or not plan.cases():
        return known
    with tempfile.TemporaryDirectory(prefix="elseq-limits-") as folder:
        found = in_process(["-m", "elseq.benchmark.limits"], plan.conditions(), Path(folder))
    return measured_limits(found, plan.device)


def _decoded(plan: Plan, cases: list[Case], model_file: ModelFile, folder: Path) -> Iterator[Row]:
    sources, places = _sources(cases, model_file)
    exported: dict[str, str | None] = {}
    for mode in plan.modes:
        engine = FOREIGN_MODES.get(mode, "fairseq")
        request = {
            **plan.conditions(),
            "engine": engine,
            "mode": mode,
            "model_file": model_file.to_dict(),
            "exported": str(folder / engine),
            "sources": sources,
        }
        mine = [case for case in cases if mode in plan.modes_of(case)]
        reasons = {case: _refused(plan, case, mode) for case in mine}
        if mine and None in reasons.values() and (reason := why_not(request, sources, exported)) is not None:
            reasons = dict.fromkeys(mine, reason)
        possible = [case for case in mine if reasons[case] is None]
        request["cases"] = [_request(plan, case, places[case.setting]) for case in possible]
        measured = one_by_one([measure.__file__], request, folder)
        for case in mine:
            found = next(measured) if reasons[case] is None else Measurement(failure=reasons[case])
            yield _row(plan, case, mode, found)


def _sources(cases: list[Case], model_file: ModelFile) -> tuple[list[list[int]], dict[Setting, slice]]:
    """The sources of all settings, and the slice of them that belongs to each setting."""
    sources, places = [], {}
    for setting in dict.fromkeys(case.setting for case in cases):
        count = max(case.batch_size for case in cases if case.setting == setting)
        own = random_sources(model_file, setting.source_length, count, setting.shortest_source)
        check_positions(model_file, count_positions(model_file, own), setting.output_length)
        places[setting] = slice(len(sources), len(sources) + count)
        sources += own
    return sources, places


def _refused(plan: Plan, case: Case, mode: str) -> str | None:
    """Why a program is not measured in a case, or None."""
    if mode not in FOREIGN_MODES:
        return None
    if case.search == "diverse":
        return "it has no diverse beam search like fairseq's"
    if mode == "ctranslate2" and case.memory_cap is not None and plan.device != "cpu":
        return "it allocates memory itself, which cannot be capped"
    return None


def _request(plan: Plan, case: Case, place: slice) -> dict:
    """A case as `measure_cases` reads it."""
    length = case.setting.output_length
    search = {"min_len": length, "max_len_b": length, "lenpen": case.setting.lenpen}
    search["no_repeat_ngram_size"] = plan.no_repeat_ngram_size
    if case.search == "diverse":
        search["diverse_beam_groups"] = DIVERSE_GROUPS
    return {
        "beam": case.beam,
        "search": search,
        "batch": list(range(place.start, place.start + case.batch_size)),
        "shrinks": case.is_largest,
        "memory_limit_bytes": case.memory_cap,
    }


def _row(plan: Plan, case: Case, mode: str, found: Measurement) -> Row:
    row = Row(case.table, case.setting.label, case.search, mode, case.batch_size, case.memory_cap, beam=case.beam)
    row.published = _published(plan, case, mode)
    fill(row, found)
    if found.failure is not None:
        return row
    whole = statistics.median(found.seconds)
    row.samples_per_second = row.batch_size / whole
    if found.sizes is not None and found.sizes["memory_width"] and found.encoder_seconds is not None:
        steps = case.setting.output_length + 1
        row.step_seconds = (whole - found.encoder_seconds) / steps
        row.step_bytes, row.step_operations = _step_cost(plan, case, found)
        if plan.limits is not None:
            row.share_of_limit = plan.limits.share(row.step_bytes, row.step_operations, row.step_seconds)
    return row


def _step_cost(plan: Plan, case: Case, found: Measurement) -> StepCost:
    """The cost of the middle step, which is the average over all steps."""
    steps = (case.setting.output_length // 2 + 1,) * found.batch_size
    batch = Batch(case.beam, steps, case.setting.source_length)
    vocabulary_size = plan.model(case.setting.model).vocabulary_size
    decoding = Decoding(*Choice.named(found.method or KV.name), found.copied)
    return step_cost(Sizes(**found.sizes), batch, decoding, vocabulary_size, *item_sizes(plan.dtype))


def _published(plan: Plan, case: Case, mode: str) -> float | str | None:
    if case.table == "nvidia":
        return None
    if case.table == "batch":
        return _figure(mode, BATCHES.get(case.batch_size))
    return _figure(mode, case.setting.published[case.search]["float32" if plan.dtype == "float32" else "float16"])


def _figure(mode: str, figures: tuple | None) -> float | str | None:
    """The published figure of a mode, if there is one; `figures` are in the order of PUBLISHED."""
    return None if figures is None or mode not in PUBLISHED else figures[PUBLISHED.index(mode)]


def _kept(plan: Plan, model_file: ModelFile, folder: Path) -> Iterator[Row]:
    """The rows of the table "memory"."""
    setting, cases = SETTINGS[BATCH_SETTING], plan.memory_cases()
    for mode in dict.fromkeys(mode for mode, _, _ in cases):
        sizes = [case[1:] for case in cases if case[0] == mode]
        request = {
            **plan.conditions(),
            "mode": mode,
            "model_file": model_file.to_dict(),
            "sources": random_sources(model_file, min(plan.lengths), 1),
            "beam": setting.beam,
            "search": {"no_repeat_ngram_size": 0},
            "cases": [{"batch_size": size, "source_length": length} for size, length in sizes],
        }
        program = ["-m", "elseq.benchmark.el_attention.measure"]
        for (size, length), found in zip(sizes, one_by_one(program, request, folder), strict=True):
            row = Row("memory", setting.label, "beam", mode, size, source_length=length, beam=setting.beam)
            row.published = _figure(mode, MEMORY.get((size, length)))
            yield fill(row, found)
