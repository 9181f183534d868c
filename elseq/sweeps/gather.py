"""What all jobs of a sweep have found, in the sweep's folder: after each job, and in the end on the screen too."""

import atexit
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from elseq.benchmark import report
from elseq.benchmark.runs import compare
from elseq.files import written_whole
from elseq.sweeps.jobs import RESULTS, Result, read_results

TABLE, PLOT = "table.md", "plot.png"
_COLUMNS = ("decode", "batch", "beam")  # overrides that have a column anyway


class Gather(Callback):
    """A callback of Hydra (hydra.callbacks) for the configurations of elseq-benchmark and elseq-generate.

    It reads what the jobs have written, so that it does not matter where they ran. Each job that ends, wherever it is,
    writes the table anew: whatever becomes of the sweep, the table of the jobs that are done is there.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs) -> None:
        # Hydra tells of no end where the sweep is interrupted or a job has failed.
        atexit.register(self.publish, sweep_folder(config))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs) -> None:
        if config.hydra.mode == RunMode.MULTIRUN:
            self.gather(sweep_folder(config))
            for result in read_results(Path(config.hydra.runtime.output_dir)):
                print(self.progress(result.row), file=sys.stderr, flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs) -> None:
        atexit.unregister(self.publish)
        self._end(sweep_folder(config))

    def on_run_end(self, config: DictConfig, **kwargs) -> None:
        self._end(Path(config.hydra.runtime.output_dir))

    def _end(self, folder: Path) -> None:
        rows = self.publish(folder)
        failed = [self.progress(row) for row in rows if "failure" in row]
        if len(failed) == len(rows):
            print(f"elseq: error: {failed[0] if len(failed) == 1 else 'no job gave a result'}", file=sys.stderr)
            sys.exit(1)

    def publish(self, folder: Path) -> list[dict]:
        """Print what there is, and say where it is; the rows."""
        rows, text = self.gather(folder)
        if any("failure" not in row for row in rows):
            print(text)
            paths = [folder / RESULTS, folder / TABLE, *self.draw(folder, rows, text.splitlines()[0])]
            print(f"written: {', '.join(map(str, paths))}", file=sys.stderr)
        return rows

    def gather(self, folder: Path) -> tuple[list[dict], str]:
        """Write the results of all jobs as JSON, which one alone has done already, and as a table; rows and table."""
        results = read_results(folder)
        rows, text = self.report(results)
        if rows:
            if results[0].folder != folder:
                report.write_json(folder / RESULTS, {"title": text.splitlines()[0]}, rows)
            with written_whole(folder / TABLE) as file:
                file.write(text)
        return rows, text

    def report(self, results: Sequence[Result]) -> tuple[list[dict], str]:
        """The rows, and the whole report in Markdown, its title first."""
        compare_with_stock(results)
        rows = with_settings(results)
        return rows, report.text(common_title(results), rows)

    def progress(self, row: dict) -> str:
        """A line about a row."""
        return report.progress(row)

    def draw(self, folder: Path, rows: list[dict], title: str) -> list[Path]:
        """Draw pictures of the rows; their paths."""
        report.plot(folder / PLOT, title, rows)
        return [folder / PLOT]


def sweep_folder(config: DictConfig) -> Path:
    return Path(config.hydra.runtime.cwd, config.hydra.sweep.dir)


def with_settings(results: Sequence[Result]) -> list[dict]:
    """The rows; under "settings" the overrides in which the jobs differ, but for those that have a column anyway."""
    names = dict.fromkeys(name for result in results for name in result.overrides)
    varying = [name for name in names if len({result.overrides.get(name) for result in results}) > 1]
    return [
        result.row | {"settings": {name: result.overrides.get(name, "-") for name in varying if name not in _COLUMNS}}
        for result in results
    ]


def common_title(results: Sequence[Result]) -> str:
    """What is in the titles of all jobs that came to have one."""
    titles = [result.title for result in results if result.title]
    if not titles:
        return ""
    first, *others = titles
    groups = [
        [part for part in group if all(part in other[place] for other in others)] for place, group in enumerate(first)
    ]
    return report.heading(groups)


def compare_with_stock(results: Sequence[Result]) -> None:
    """Complete the rows of the jobs beside which there is one that differs in nothing but in having decode=stock."""
    measured = [result for result in results if "failure" not in result.row]
    stock = {_other_overrides(result): result for result in measured if result.row["mode"] == "stock"}
    for result in measured:
        baseline = stock.get(_other_overrides(result))
        if baseline is not None and len(baseline.outputs) == len(result.outputs):
            compare(result.row, result.outputs, baseline.row, baseline.outputs)


def _other_overrides(result: Result) -> frozenset:
    return frozenset((name, value) for name, value in result.overrides.items() if name != "decode")
