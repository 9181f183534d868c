"""A score of a set of examples, and its spread over sets like it (bootstrap: Koehn, 2004)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from elseq.errors import UserError
from elseq.scoring import SEED

INTERVAL = 0.95
MOST_RESAMPLES = 1_000_000
ROUNDING = 1e-9  # of sums, in percent


class Score(NamedTuple):
    """A score that is a function of sums over examples.

    Attributes:
        statistics: [examples, statistics], what is summed.
        value: of such sums, [..., statistics] -> [...], in percent.
    """

    statistics: np.ndarray
    value: Callable[[np.ndarray], np.ndarray]

    @property
    def total(self) -> float:
        """The score of all examples."""
        return float(self.value(self.statistics.sum(axis=0)))


def mean_score(values: Sequence[float]) -> Score:
    """The mean of a score, 0 to 1, that each example has."""
    values = np.asarray(values, dtype=float)
    return Score(np.stack((values, np.ones_like(values)), axis=1), lambda sums: 100 * sums[..., 0] / sums[..., 1])


def draws(examples: int, resamples: int, seed: int = SEED):
    """For each resample, how often it has each example, [examples]. As many as there are, drawn with replacement."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(generator.integers(examples, size=examples), minlength=examples)


def resample(systems: Sequence[dict[str, Score]], resamples: int, seed: int = SEED) -> list[dict[str, np.ndarray]]:
    """The scores of each system on the same resamples.

    Args:
        systems: scores of the same examples, by their names.
        resamples: how many.
        seed: of the draws.

    Returns:
        For each system, of each score its values, [resamples].

    Raises:
        UserError: more resamples than anybody can wait for.
    """
    if resamples > MOST_RESAMPLES:
        raise UserError(f"--bootstrap {resamples} is too many: give at most {MOST_RESAMPLES:,} resamples")
    scores = [score for system in systems for score in system.values()]
    statistics = np.concatenate([score.statistics for score in scores], axis=1)
    sums = np.stack([counts @ statistics for counts in draws(len(statistics), resamples, seed)])
    ends = np.cumsum([score.statistics.shape[1] for score in scores])
    values = (score.value(part) for score, part in zip(scores, np.split(sums, ends[:-1], axis=1), strict=True))
    return [{name: next(values) for name in system} for system in systems]


def interval(values: np.ndarray) -> tuple[float, float]:
    """The bounds between which the middle `INTERVAL` of the values lies."""
    low, high = np.quantile(values, ((1 - INTERVAL) / 2, (1 + INTERVAL) / 2))
    return float(low), float(high)


def share_above(values: np.ndarray, others: np.ndarray) -> float:
    """The share of resamples in which one score is above another. Equal scores are not above."""
    return float((values - others > ROUNDING).mean())
