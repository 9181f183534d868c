"""The grid of runs: every mode and dtype at every batch size and beam, each in a process of its own."""

import importlib.util
import itertools
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from elseq.attention.methods import KV, Choice
from elseq.benchmark import measure
from elseq.benchmark.arguments import FOREIGN_MODES, STOCK_MODES
from elseq.benchmark.cost import Batch, Decoding, Sizes, bytes_read, item_sizes, operations
from elseq.benchmark.measure import Measurement
from elseq.benchmark.models import ModelFile
from elseq.benchmark.processes import in_process, in_turns
from elseq.benchmark.rows import Row, fill
from elseq.benchmark.scorer import Scorer
from elseq.benchmark.sources import make_batches
from elseq.precision import DTYPES, INT8


class Cell(NamedTuple):
    """A run."""

    mode: str
    batch_size: int
    beam: int
    dtype: str


@dataclass(frozen=True)
class Grid:
    """The modes, sizes and searches to measure, and the sources."""

    model_file: ModelFile
    sources: list[list[int]]
    positions: list[int]  # that each source takes in the model
    one_batch: bool  # a run decodes the first sources, one batch of them; otherwise all of them
    modes: list[str]
    batch_sizes: list[int]
    beams: list[int]
    search: dict  # min_len, max_len_b, lenpen, no_repeat_ngram_size
    dtypes: list[str]
    device: str
    threads: int
    repeats: int
    interleave: bool
    scorer: Scorer | None = None  # of the best hypotheses

    def cells(self) -> list[Cell]:
        """The runs, in order. fairseq has no int8, so its float32 is the baseline of int8."""
        cells = [
            Cell(mode, size, beam, "float32" if mode in STOCK_MODES and dtype == INT8 else dtype)
            for size in self.batch_sizes
            for beam in self.beams
            for dtype in self.dtypes
            for mode in self.modes
        ]
        return list(dict.fromkeys(cells))


def run_grid(grid: Grid, done: Callable[[Row, list | None], None]) -> None:
    """Run all cells: those of the same batch size and beam in turns, or all one after the other.

    Args:
        grid: the cells. Cells after a stock cell with the same batch size, beam and dtype (int8: float32) are compared
            with it.
        done: called with each row as soon as it is there, and with the best hypothesis of each source. A run that fails
            has no hypotheses.
    """
    stock: dict[tuple, tuple[Row, list]] = {}  # row and best hypotheses of the baseline
    exported: dict[str, str | None] = {}
    sizes = None
    with tempfile.TemporaryDirectory(prefix="elseq-benchmark-") as name:
        folder = Path(name)
        for _, cells in itertools.groupby(grid.cells(), lambda cell: (cell.batch_size, cell.beam)):
            requests = {cell: _request(grid, cell, folder) for cell in cells}
            failures = {cell: why_not(request, grid.sources, exported) for cell, request in requests.items()}
            possible = [request for cell, request in requests.items() if failures[cell] is None]
            measured = in_turns([measure.__file__], possible, folder, grid.interleave)
            for cell, request in requests.items():
                found = next(measured) if failures[cell] is None else Measurement(failure=failures[cell])
                row = fill(Row(*cell), found)
                best = None
                if found.failure is None:
                    best = [hypotheses[0] for hypotheses in found.hypotheses]
                    _summarize(row, found, best)
                    if grid.scorer is not None:
                        row.scores = grid.scorer.score(best)
                    if found.sizes is not None:
                        sizes = Sizes(**found.sizes)
                    # The formulae do not describe how other programs read a prompt.
                    if sizes is not None and not (grid.model_file.is_language_model and cell.mode in FOREIGN_MODES):
                        _add_work(row, sizes, request, found, grid.positions)
                    place = cell.batch_size, cell.beam, DTYPES[cell.dtype]
                    baseline = stock.get(place)
                    if cell.mode == "stock":
                        stock[place] = baseline = (row, best)
                    if baseline is not None:
                        compare(row, best, *baseline)
                done(row, best)


def _request(grid: Grid, cell: Cell, folder: Path) -> dict:
    """The request of the process of a run."""
    sources = grid.sources[: cell.batch_size] if grid.one_batch else grid.sources
    engine = FOREIGN_MODES.get(cell.mode, "fairseq")
    return {
        "engine": engine,
        "mode": cell.mode,
        "model_file": grid.model_file.to_dict(),
        "exported": str(folder / engine),
        "sources": sources,
        "batches": make_batches(sources, cell.batch_size, equal_lengths=grid.model_file.is_language_model),
        "beam": cell.beam,
        "search": grid.search,
        "dtype": cell.dtype,
        "device": grid.device,
        "threads": grid.threads,
        "repeats": grid.repeats,
    }


def why_not(request: dict, sources: list[list[int]], exported: dict[str, str | None]) -> str | None:
    """The reason why another program cannot be measured, or None. The first call exports the model for it.

    Args:
        request: of the run.
        sources: of all runs.
        exported: remembers the programs with an exported model, and the reasons of those that cannot have it.
    """
    engine = request["engine"]
    if engine == "fairseq":
        return None
    if importlib.util.find_spec(engine) is None:
        return f"{engine} is not installed"
    if engine == "transformers" and request["dtype"] == INT8:
        return "not measured in int8, for which transformers needs another package"
    if engine not in exported:
        whole, folder = {**request, "sources": sources}, Path(request["exported"]).with_suffix(".export")
        exported[engine] = in_process(["-m", "elseq.benchmark.export"], whole, folder).failure
    return exported[engine] and f"{engine} does not take this model: {exported[engine]}"


def _summarize(row: Row, found: Measurement, best: list[list[int]]) -> None:
    seconds = statistics.median(found.seconds)
    row.samples_per_second = len(best) / seconds
    row.tokens_per_second = sum(map(len, best)) / seconds
    row.output_length = statistics.mean(map(len, best))
    row.sentences = len(best)


def _add_work(row: Row, sizes: Sizes, request: dict, found: Measurement, positions: list[int]) -> None:
    """GFLOP/s and GB/s, by the formulae of `elseq.benchmark.cost`."""
    seconds = statistics.median(found.seconds)
    decoding = Decoding(*Choice.named(found.method or KV.name), found.copied)
    flops = read = 0
    for indices in request["batches"]:
        # A sentence is decoded until the longest of its hypotheses ends.
        steps = tuple(max(map(len, found.hypotheses[index])) + 1 for index in indices)
        length = max(positions[index] for index in indices)
        lengths = {"prompt_length": length - 1} if sizes.memory_width == 0 else {"source_length": length}
        batch = Batch(request["beam"], steps, **lengths)
        flops += operations(sizes, batch, decoding)
        read += bytes_read(sizes, batch, decoding, *item_sizes(request["dtype"]))
    row.gigaflops_per_second, row.gigabytes_per_second = flops / seconds / 1e9, read / seconds / 1e9


def compare(row: Row, best: list, stock_row: Row, stock_best: list) -> None:
    """Add to a row how fast it is relative to stock, and how many of its best hypotheses are stock's."""
    if stock_row.samples_per_second:  # of a job that went on after its last sample it is 0
        row.ratio_to_stock = row.samples_per_second / stock_row.samples_per_second
    row.identical = sum(found == expected for found, expected in zip(best, stock_best, strict=True))
    row.identical_share = row.identical / row.sentences
