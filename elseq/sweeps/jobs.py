"""The result file of a job of a sweep."""

import functools
import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf

from elseq.benchmark.failures import describe_failure
from elseq.benchmark.rows import Row
from elseq.errors import UserError
from elseq.files import check_no_input, to_json, written_whole

logger = logging.getLogger(__name__)

# In the folder of each job, and of the sweep.
RESULTS, TABLE, PLOT = "results.json", "table.md", "plot.png"


@dataclass
class Result:
    """
    Attributes:
        row: row of the table, a dataclass with `failure`, `settings` and `to_dict`.
        title: groups of properties that jobs may have in common, for `elseq.benchmark.report.heading`.
        outputs: output for each source, to compare with other jobs.
        number: number of the job in its sweep.
        overrides: the overrides of the configuration, name to value.
        configuration: the complete configuration.
        folder: folder of the result.
    """

    row: Row
    title: list[list[str]] = field(default_factory=list)
    outputs: list[str] | None = None
    number: int = 0
    overrides: dict[str, str] = field(default_factory=dict)
    configuration: dict = field(default_factory=dict)
    folder: Path | None = None

    def write(self, config: DictConfig) -> None:
        """
        Args:
            config: configuration of the job, including Hydra's part.

        Raises:
            UserError: the file cannot be written.
        """
        number = OmegaConf.select(config, "hydra.job.num", throw_on_missing=False) or 0
        overrides = [text.lstrip("+").partition("=") for text in OmegaConf.to_container(config.hydra.overrides.task)]
        content = {
            "number": number,
            "overrides": {name: value for name, _, value in overrides},
            "configuration": self.configuration,
            "title": self.title,
            "rows": [self.row.to_dict()],
            "outputs": self.outputs,
        }
        with written_whole(Path(config.hydra.runtime.output_dir) / RESULTS) as file:
            file.write(to_json(content))


def read_results(folder: Path, kind: type = Row) -> list[Result]:
    """The results of all jobs in the folder of a sweep, by job number; or the result of one job.

    Args:
        folder: of the sweep or of the job.
        kind: the class of the rows.
    """
    paths = [path for path in folder.rglob(RESULTS) if path.parent != folder] or [folder / RESULTS]
    found = (_read(path, kind) for path in paths)
    return sorted(filter(None, found), key=lambda result: (result.number, str(result.folder)))


def _read(path: Path, kind: type = Row) -> Result | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        [row] = content["rows"]
        known = {name: content[name] for name in ("title", "outputs", "number", "overrides", "configuration")}
        return Result(row=kind(**row), folder=path.parent, **known)
    except (OSError, ValueError, TypeError, KeyError):  # from another program, or not yet complete
        return None


def _check_inputs(configuration: dict, *folders: Path) -> None:
    """
    Raises:
        UserError: an output in these folders is an input of the job.
    """
    for path in (folder / name for folder in folders for name in (RESULTS, TABLE, PLOT)):
        if path.is_file():
            check_no_input(path.stat(), path, *_paths(configuration))


def _paths(configuration) -> Iterator[Path]:
    """Possible inputs: every text of a configuration that is an existing path."""
    if isinstance(configuration, dict):
        for value in configuration.values():
            yield from _paths(value)
    elif isinstance(configuration, str):
        yield Path(configuration)


def recorded(known: Callable[[dict], Row]) -> Callable[[Callable[[DictConfig, Path], Result]], TaskFunction]:
    """A decorator for task functions of Hydra: write the result into the job's folder, and record errors as failures.

    A job with a result is not run again.

    Args:
        known: gives the part of the row that is known before the job runs, from the configuration.
    """

    def decorate(work: Callable[[DictConfig, Path], Result]) -> TaskFunction:
        @functools.wraps(work)
        def job(cfg: DictConfig) -> None:
            config = HydraConfig.instance().cfg
            assert config is not None
            folder = Path(config.hydra.runtime.output_dir)
            configuration = OmegaConf.to_container(cfg)
            there = _read(folder / RESULTS)
            if there is not None and there.configuration == configuration and there.row.failure is None:
                logger.info("%s exists already", folder / RESULTS)
                return
            try:
                if not isinstance(mode := configuration["decode"].get("mode"), str):
                    raise UserError(f"decode.mode {mode!r:.60} is no name of a decoding method: give one")
                _check_inputs(configuration, folder, Path(config.hydra.runtime.cwd, config.hydra.sweep.dir))
            except UserError as error:  # no result file, which may not be writable
                sys.excepthook(type(error), error, error.__traceback__)
                raise
            try:
                result = work(cfg, folder)
            except Exception as error:
                result = Result(replace(known(configuration), failure=describe_failure(error)))
                if not isinstance(error, UserError):
                    logger.exception("the job failed")
            result.configuration = configuration
            result.write(config)

        return job

    return decorate
