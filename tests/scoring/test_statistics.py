"""Bootstrap against scores that are computed anew on each resample."""

import numpy as np
import pytest
from nltk.translate.bleu_score import corpus_bleu

from elseq.errors import UserError
from elseq.scoring.questions import score_questions
from elseq.scoring.statistics import Score, draws, interval, mean_score, resample, share_above

HYPOTHESES = [
    "what is the name of the river ?",
    "who was the first king of france ?",
    "in what year did the war end ?",
    "how many people live in the city of paris ?",
    "where is it ?",
]
REFERENCES = [
    "what is the name of the longest river ?",
    "who was the first king of all france ?",
    "in what year did the first war end ?",
    "how many people live in the city of lyon ?",
    "where is it ?",
]


def test_total_of_means():
    assert mean_score([0.25, 0.5, 1.0]).total == pytest.approx(100 * 1.75 / 3)


def test_draws_are_as_many_as_examples_and_the_same_for_a_seed():
    first, again, other = (list(draws(50, 200, seed)) for seed in (1, 1, 2))
    assert {counts.sum() for counts in first} == {50}
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert np.mean(first, axis=0) == pytest.approx(1, abs=0.4)  # every example is drawn equally often
    assert np.mean([counts == 0 for counts in first]) == pytest.approx((1 - 1 / 50) ** 50, abs=0.02)


def test_means_on_resamples():
    values = np.random.default_rng(3).random(40)
    (found,) = resample([{"mean": mean_score(values)}], 30, seed=5)
    expected = [100 * np.repeat(values, counts).mean() for counts in draws(40, 30, seed=5)]
    assert found["mean"] == pytest.approx(expected, rel=1e-12)


def test_bleu_on_resamples_is_that_of_the_resampled_corpus():
    scores, _ = score_questions(HYPOTHESES, [[reference] for reference in REFERENCES], tokenized=True)
    (found,) = resample([scores], 25, seed=7)
    for counts, bleu in zip(draws(len(HYPOTHESES), 25, seed=7), found["bleu4"], strict=True):
        order = np.repeat(np.arange(len(counts)), counts)
        references = [[REFERENCES[index].split()] for index in order]
        assert bleu == pytest.approx(100 * corpus_bleu(references, [HYPOTHESES[index].split() for index in order]))
    assert len(set(found["bleu4"])) > 5


def test_systems_share_their_resamples():
    values = np.random.default_rng(1).random(30)
    first, second = resample([{"a": mean_score(values)}, {"b": mean_score(values + 0.1), "a": mean_score(values)}], 20)
    assert second["b"] - first["a"] == pytest.approx(10)
    assert second["a"] == pytest.approx(first["a"])


def test_share_above():
    assert share_above(np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 2.0, 2.0, 2.0])) == 0.5


@pytest.mark.parametrize("examples", [30, 997])
def test_rounding_is_no_difference(examples):
    """The same numbers in other columns of a product have other sums."""
    values = np.random.default_rng(1).random(examples)
    first, second = resample([{"a": mean_score(values)}, {"b": mean_score(values + 0.1), "a": mean_score(values)}], 200)
    assert share_above(second["a"], first["a"]) == share_above(first["a"], second["a"]) == 0


def test_interval_of_a_mean():
    """Of many examples it is the normal one: 1.96 standard errors on both sides."""
    values = np.random.default_rng(2).random(2000)
    (found,) = resample([{"mean": mean_score(values)}], 2000)
    low, high = interval(found["mean"])
    error = 100 * 1.96 * values.std() / np.sqrt(len(values))
    assert (high - low) / 2 == pytest.approx(error, rel=0.1)
    assert (high + low) / 2 == pytest.approx(100 * values.mean(), abs=0.1)


def test_value_may_be_of_several_statistics():
    score = Score(np.array([[1, 2], [3, 4]]), lambda sums: sums[..., 0] * sums[..., 1])
    assert score.total == 24


def test_more_resamples_than_anybody_can_wait_for():
    with pytest.raises(UserError, match="^--bootstrap 1000001 is too many: give at most 1,000,000 resamples$"):
        resample([{"mean": mean_score([0.5])}], 1_000_001)
