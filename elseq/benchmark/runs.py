"""The grid of runs: every mode and dtype at every batch size and beam, each in a process of its own."""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from elseq.attention.methods import AUTO, KV, METHODS
from elseq.benchmark import measure
from elseq.benchmark.cost import Batch, Decoding, Sizes, bytes_read, operations
from elseq.benchmark.measure import Measurement
from elseq.benchmark.models import ModelFile
from elseq.benchmark.rows import Row, fill
from elseq.benchmark.sources import make_batches
from elseq.precision import DTYPES, INT8

STOCK_MODES = ("stock", "stock-copied", "stock-shared")
FOREIGN_MODES = {"ctranslate2": "ctranslate2", "huggingface": "transformers"}  # mode: engine and package


def modes() -> tuple[str, ...]:
    """All that can be measured."""
    return (*STOCK_MODES, *METHODS, AUTO, *FOREIGN_MODES)


class Cell(NamedTuple):
    """A run."""

    mode: str
    batch_size: int
    beam: int
    dtype: str


@dataclass(frozen=True)
class Grid:
    """What is measured."""

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

    def cells(self) -> list[Cell]:
        """The runs, in order. fairseq has no int8: what is compared with it there is compared with its float32."""
        cells = [
            Cell(mode, size, beam, "float32" if mode in STOCK_MODES and dtype == INT8 else dtype)
            for size in self.batch_sizes
            for beam in self.beams
            for dtype in self.dtypes
            for mode in self.modes
        ]
        return list(dict.fromkeys(cells))


def run_grid(grid: Grid, done: Callable[[Row, list | None], None]) -> None:
    """Run every cell of the grid, one after the other.

    Args:
        grid: what is measured. What comes after stock, at the same batch size, beam and dtype (int8: float32), is
            compared with it.
        done: called with each row as soon as it is there, and with the best hypothesis of each source. A run that fails
            has no hypotheses.
    """
    stock: dict[tuple, tuple[Row, list]] = {}  # row and best hypotheses of the baseline
    exported: dict[str, str | None] = {}  # engine: why it cannot take the model, or None
    sizes = None
    with tempfile.TemporaryDirectory(prefix="elseq-benchmark-") as name:
        folder = Path(name)
        for mode, batch_size, beam, dtype in grid.cells():
            sources = grid.sources[:batch_size] if grid.one_batch else grid.sources
            request = {
                "engine": FOREIGN_MODES.get(mode, "fairseq"),
                "mode": mode,
                "model_file": grid.model_file.to_dict(),
                "sources": sources,
                "batches": make_batches(sources, batch_size, equal_lengths=grid.model_file.is_language_model),
                "beam": beam,
                "search": grid.search,
                "dtype": dtype,
                "device": grid.device,
                "threads": grid.threads,
                "repeats": grid.repeats,
            }
            found = _run(request, grid, folder, exported)
            row = Row(mode, batch_size, beam, dtype)
            fill(row, found)
            best = None
            if found.failure is None:
                best = [hypotheses[0] for hypotheses in found.hypotheses]
                _summarize(row, found, best)
                if found.sizes is not None:
                    sizes = Sizes(**found.sizes)
                if sizes is not None:
                    _add_work(row, sizes, request, found, grid.positions)
                place = batch_size, beam, DTYPES[dtype]
                baseline = stock.get(place)
                if mode == "stock":
                    stock[place] = baseline = (row, best)
                if baseline is not None:
                    compare(row, best, *baseline)
            done(row, best)


def _run(request: dict, grid: Grid, folder: Path, exported: dict) -> Measurement:
    engine = request["engine"]
    if engine == "fairseq":
        return in_process([measure.__file__], request, folder)
    if importlib.util.find_spec(engine) is None:
        return Measurement(failure=f"{engine} is not installed")
    if engine == "transformers" and request["dtype"] == INT8:
        return Measurement(failure="not measured in int8, for which transformers needs another package")
    request["exported"] = str(folder / engine)
    if engine not in exported:
        whole = {**request, "sources": grid.sources}
        exported[engine] = in_process(["-m", "elseq.benchmark.export"], whole, folder).failure
    if exported[engine] is not None:
        return Measurement(failure=f"{engine} does not take this model: {exported[engine]}")
    return in_process([measure.__file__], request, folder)


def in_process(program: list[str], request: dict, folder: Path) -> Measurement:
    """Run a Python program that reads the request and writes what it has found."""
    request_path, result_path = folder / "request.json", folder / "result.json"
    request_path.write_text(json.dumps(request))
    result_path.unlink(missing_ok=True)
    package = str(Path(__file__).resolve().parents[2])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(request["threads"]),
        "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
    }
    # -P keeps this folder's own file names from being imported as packages.
    command = [sys.executable, "-P", *program, str(request_path), str(result_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    if result_path.exists():
        return Measurement(**json.loads(result_path.read_text()))
    if ended.returncode == -9:
        return Measurement(failure="out of memory (the system ended the process)")
    lines = ended.stderr.strip().splitlines() or [""]
    return Measurement(failure=f"the process ended with {ended.returncode}: {lines[-1]}")


def _summarize(row: Row, found: Measurement, best: list[list[int]]) -> None:
    seconds = statistics.median(found.seconds)
    row.samples_per_second = len(best) / seconds
    row.tokens_per_second = sum(map(len, best)) / seconds
    row.output_length = statistics.mean(map(len, best))
    row.sentences = len(best)


def _add_work(row: Row, sizes: Sizes, request: dict, found: Measurement, positions: list[int]) -> None:
    """GFLOP/s and GB/s, by the formulae of `elseq.benchmark.cost`."""
    seconds = statistics.median(found.seconds)
    method = KV if found.method is None else METHODS[found.method]
    decoding = Decoding(method, method, found.copied)
    number_bytes = DTYPES[request["dtype"]].itemsize
    weight_bytes = 1 if request["dtype"] == INT8 else number_bytes
    flops = read = 0
    for indices in request["batches"]:
        # A sentence is decoded until the longest of its hypotheses ends.
        steps = tuple(max(map(len, found.hypotheses[index])) + 1 for index in indices)
        length = max(positions[index] for index in indices)
        lengths = {"prompt_length": length - 1} if sizes.memory_width == 0 else {"source_length": length}
        batch = Batch(request["beam"], steps, **lengths)
        flops += operations(sizes, batch, decoding)
        read += bytes_read(sizes, batch, decoding, number_bytes, weight_bytes)
    row.gigaflops_per_second, row.gigabytes_per_second = flops / seconds / 1e9, read / seconds / 1e9


def compare(row: Row, best: list, stock_row: Row, stock_best: list) -> None:
    """Add to a row how fast it is relative to stock, and how many of its best hypotheses are stock's."""
    if stock_row.samples_per_second:  # of a job that went on after its last sample it is 0
        row.ratio_to_stock = row.samples_per_second / stock_row.samples_per_second
    row.identical = sum(found == expected for found, expected in zip(best, stock_best, strict=True))
    row.identical_share = row.identical / row.sentences
