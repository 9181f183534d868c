"""Gathers the results of all jobs in the sweep's folder after each job, and prints them at the end."""

import atexit
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from elseq.benchmark import report
from elseq.benchmark.rows import Row
from elseq.benchmark.runs import compare
from elseq.errors import UserError
from elseq.files import written_whole
from elseq.precision import INT8
from elseq.sweeps.jobs import PLOT, RESULTS, TABLE, Result, read_results

# Written by Hydra: the configuration of a sweep, and a folder in the folder of each job.
SWEEP, JOB = "multirun.yaml", ".hydra"
_MODE = ("decode", "decode.mode")  # the latter for methods of plugins, which have no file
_COLUMNS = (*_MODE, "batch", "beam")  # overrides that have a column anyway


class Gather(Callback):
    """A callback of Hydra (hydra.callbacks) for the configurations of elseq-benchmark and elseq-generate.

    It reads the files of the jobs, so jobs may run on any machine. Each job rewrites the table when it ends, so the
    table of the finished jobs exists even if the sweep is interrupted.
    """

    row = Row  # its class
    _has_failed = False  # the sweep itself, not a job

    # Hydra calls no end function if a sweep is interrupted or a training has failed.

    def on_multirun_start(self, config: DictConfig, **kwargs) -> None:
        self._begin(sweep_folder(config), "hydra.sweep.dir", _settings(config))

    def on_run_start(self, config: DictConfig, **kwargs) -> None:
        self._begin(Path(config.hydra.runtime.cwd, config.hydra.run.dir), "hydra.run.dir")

    def _begin(self, folder: Path, setting: str, settings: list[str] | None = None) -> None:
        with self._told():
            _check_folder(folder, setting, settings)
        if self._has_failed:
            sys.exit(1)
        atexit.register(self._end_early, folder, setting)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs) -> None:
        if config.hydra.mode == RunMode.MULTIRUN:
            with self._told():
                self.record(config, job_return)
                self.gather(sweep_folder(config))
                for result in read_results(Path(config.hydra.runtime.output_dir), self.row):
                    print(result.row.line, file=sys.stderr, flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs) -> None:
        atexit.unregister(self._end_early)
        self._end(sweep_folder(config))

    def on_run_end(self, config: DictConfig, **kwargs) -> None:
        atexit.unregister(self._end_early)
        self._end(Path(config.hydra.runtime.output_dir))

    @contextlib.contextmanager
    def _told(self):
        """Print an error and continue. Hydra would turn it into a warning, and the exit code would be 0."""
        try:
            yield
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
            self._has_failed = True

    def _end_early(self, folder: Path, setting: str) -> None:
        if folder.exists():
            rows = []
            with self._told():
                rows = self.publish(folder)
            told = f"finished jobs are in {folder}" if rows else f"no job has finished in {folder}"
            print(f"elseq: {told}: to continue, repeat the command with {setting}={folder}", file=sys.stderr)

    def _end(self, folder: Path) -> None:
        with self._told():
            rows = self.publish(folder)
        if self._has_failed:
            sys.exit(1)
        failed = [row.line for row in rows if row.failure is not None]
        if len(failed) == len(rows):
            print(f"elseq: error: {failed[0] if len(failed) == 1 else 'no job gave a result'}", file=sys.stderr)
            sys.exit(1)

    def record(self, config: DictConfig, job_return: JobReturn) -> None:
        """Write the result of a job that does not write it itself."""

    def publish(self, folder: Path) -> list[Row]:
        """Print the table and the paths of the files. Returns the rows."""
        rows, text = self.gather(folder)
        if any(row.failure is None for row in rows):
            print(text)
            paths = [folder / RESULTS, folder / TABLE, *self.draw(folder, rows, text.splitlines()[0])]
            print(f"written: {', '.join(map(str, paths))}", file=sys.stderr)
        return rows

    def gather(self, folder: Path) -> tuple[list[Row], str]:
        """Write the results of all jobs as JSON and as a table. Returns the rows and the table."""
        results = read_results(folder, self.row)
        rows, text = self.report(results)
        if rows:
            if results[0].folder != folder:
                report.write_json(folder / RESULTS, {"title": text.splitlines()[0]}, rows)
            with written_whole(folder / TABLE) as file:
                file.write(text)
        return rows, text

    def report(self, results: Sequence[Result]) -> tuple[list[Row], str]:
        """The rows, and the report in Markdown, which begins with its title."""
        compare_with_stock(results)
        rows = with_settings(results)
        return rows, report.text(common_title(results), rows)

    def draw(self, folder: Path, rows: list[Row], title: str) -> list[Path]:
        """Plot the rows. Returns the paths."""
        report.plot(folder / PLOT, title, rows)
        return [folder / PLOT]


def sweep_folder(config: DictConfig) -> Path:
    return Path(config.hydra.runtime.cwd, config.hydra.sweep.dir)


def _settings(config: DictConfig) -> list[str]:
    """The name of a sweep's configuration, and its overrides."""
    overrides = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    return [str(OmegaConf.select(config, "hydra.job.config_name")), *overrides]


def _check_folder(folder: Path, setting: str, settings: list[str] | None) -> None:
    """
    Args:
        folder: of the sweep or the run that begins.
        setting: by which a user names it.
        settings: `_settings` of the sweep; None for a single run.

    Raises:
        UserError: the folder has jobs of another sweep, which would be in the table.
    """
    try:
        before = _settings(OmegaConf.load(folder / SWEEP))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):  # there is none, or it is not whole
        return
    if before != settings and any(folder.rglob(JOB)):  # a sweep whose settings are refused leaves no job
        raise UserError(f"{folder} is of another sweep, {' '.join(before)}: repeat it, or give another folder", setting)


def with_settings(results: Sequence[Result]) -> list[Row]:
    """The rows, with the overrides in which the jobs differ in "settings", except those with their own column."""
    names = dict.fromkeys(name for result in results for name in result.overrides)
    varying = [name for name in names if len({result.overrides.get(name) for result in results}) > 1]
    own = (*_COLUMNS, "dtype") if any(getattr(result.row, "dtype", None) for result in results) else _COLUMNS
    shown = [name for name in varying if name not in own]
    return [
        replace(result.row, settings={name: result.overrides.get(name, "-") for name in shown}) for result in results
    ]


def common_title(results: Sequence[Result]) -> str:
    """The common part of the titles of all jobs."""
    titles = [result.title for result in results if result.title]
    if not titles:
        return ""
    first, *others = titles
    groups = [
        [part for part in group if all(part in other[place] for other in others)] for place, group in enumerate(first)
    ]
    return report.heading(groups)


def compare_with_stock(results: Sequence[Result]) -> None:
    """Add the comparison with stock to jobs for which a job differs only by decoding with stock."""
    measured = [result for result in results if result.row.failure is None]
    stock = {_other_overrides(result): result for result in measured if result.row.mode == "stock"}
    for result in measured:
        baseline = stock.get(_other_overrides(result))
        if baseline is not None and len(baseline.outputs) == len(result.outputs):
            compare(result.row, result.outputs, baseline.row, baseline.outputs)


def _other_overrides(result: Result) -> frozenset:
    compared = {"dtype": "float32"} if result.overrides.get("dtype") == INT8 else {}  # fairseq has no int8
    return frozenset((name, value) for name, value in (result.overrides | compared).items() if name not in _MODE)
