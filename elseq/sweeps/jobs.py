"""What a job of a sweep leaves in its folder, for whoever gathers it."""

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
from elseq.files import check_no_input, written_whole

logger = logging.getLogger(__name__)

# Of each job, and of the sweep.
RESULTS, TABLE, PLOT = "results.json", "table.md", "plot.png"


@dataclass
class Result:
    """
    Attributes:
        row: of the table, a dataclass with `failure`, `settings` and `to_dict`.
        title: groups of what the job may have in common with others, as `elseq.benchmark.report.heading` takes them.
        outputs: of each source, to be compared with another job's.
        number: of the job in its sweep.
        overrides: what was asked for beyond the configuration file, name to value.
        configuration: all that the job was told.
        folder: where it was read.
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
            config: the job's, with Hydra's own part.

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
            file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_results(folder: Path, kind: type = Row) -> list[Result]:
    """Those of the jobs of the sweep that has this folder, in the order in which they were asked for; or of one job.

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
    except (OSError, ValueError, TypeError, KeyError):  # of another program, or just being written elsewhere
        return None


def _check_inputs(configuration: dict, *folders: Path) -> None:
    """
    Raises:
        UserError: what is to be written to these folders is an input of the job.
    """
    for path in (folder / name for folder in folders for name in (RESULTS, TABLE, PLOT)):
        if path.is_file():
            check_no_input(path.stat(), path, *_paths(configuration))


def _paths(configuration) -> Iterator[Path]:
    """What may be an input: every text of a configuration that is the path of something."""
    if isinstance(configuration, dict):
        for value in configuration.values():
            yield from _paths(value)
    elif isinstance(configuration, str):
        yield Path(configuration)


def recorded(known: Callable[[dict], Row]) -> Callable[[Callable[[DictConfig, Path], Result]], TaskFunction]:
    """A decorator: a task function of Hydra that leaves its result in the job's folder, and fails without an error.

    A job whose result is there already is not run again.

    Args:
        known: gives what is known of the row before the work is done, of the configuration as it stands.
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
                logger.info("%s is there already", folder / RESULTS)
                return
            try:
                _check_inputs(configuration, folder, Path(config.hydra.runtime.cwd, config.hydra.sweep.dir))
            except UserError as error:  # there may be no file to leave it in
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
