"""The table of a sweep of fairseq-hydra-train: the settings and best validation score of each job."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from elseq.benchmark.failures import describe_failure
from elseq.benchmark.report import failures
from elseq.benchmark.rows import as_json
from elseq.sweeps import gather
from elseq.sweeps.jobs import Result
from elseq.tables import markdown


@dataclass
class Training:
    """A row: a job, and what its checkpoints tell."""

    job: str
    scores: dict
    failure: str | None = None
    settings: dict[str, str] | None = None

    @property
    def line(self) -> str:
        """The job and its scores or, if it failed, why."""
        found = self.failure or ", ".join(f"{name} {value}" for name, value in self.scores.items())
        return f"{self.job}: {found.removesuffix('.')}."

    def to_dict(self) -> dict:
        return as_json(self)


class Gather(gather.Gather):
    """A callback of Hydra (hydra.callbacks) for the configurations of fairseq-hydra-train."""

    row = Training

    def record(self, config: DictConfig, job_return: JobReturn) -> None:
        row = Training(Path(config.hydra.runtime.output_dir).name, read_scores(config))
        if job_return.status == JobStatus.FAILED:
            row.failure = describe_failure(job_return._return_value)  # its property would raise it
        Result(row).write(config)

    def on_run_start(self, config: DictConfig, **kwargs) -> None:
        """As `on_run_end`."""

    def on_run_end(self, config: DictConfig, **kwargs) -> None:
        """A single training has no table."""

    def report(self, results: Sequence[Result]) -> tuple[list[Training], str]:
        rows = gather.with_settings(results)
        cells = [{"job": row.job, **row.settings, **row.scores} for row in rows]
        columns = list(dict.fromkeys(name for row in cells for name in row))
        lines = [[row.get(name, "-") for name in columns] for row in cells]
        numbers = {name for row in rows for name in row.scores}
        table = markdown(columns, lines, left=[name for name in columns if name not in numbers])
        return rows, "\n\n".join([f"{len(rows)} trainings", table, *failures(rows)]) + "\n"

    def draw(self, folder: Path, rows: list[Training], title: str) -> list[Path]:
        return []


def read_scores(config: DictConfig) -> dict:
    """The best validation score of a training, its update, and the number of all updates, from the checkpoints.

    Args:
        config: configuration of the job in the current directory.
    """
    folder = Path(config.checkpoint.save_dir)
    scores = {}
    best, last = _read(folder / "checkpoint_best.pt"), _read(folder / "checkpoint_last.pt")
    if best is not None and best["extra_state"].get("best") is not None:
        scores[f"best {config.checkpoint.best_checkpoint_metric}"] = float(best["extra_state"]["best"])
        scores["at update"] = _updates(best)
    if last is not None:
        scores["updates"] = _updates(last)
    return scores


def _read(path: Path) -> dict | None:
    # Memory-mapped, so that the parameters are not read.
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True) if path.exists() else None


def _updates(checkpoint: dict) -> int:
    return checkpoint["optimizer_history"][-1]["num_updates"]
