"""Scores under the headings of a table, by hand."""

import pytest

from elseq.scoring.metrics import METRICS

OUTPUTS, REFERENCES = ["a b c d e"], ["a b c d f"]


def test_bleu():
    """Of words 4 of 5, of pairs 3 of 4, of threes 2 of 3, of fours 1 of 2."""
    scores, [how] = METRICS["bleu"](OUTPUTS, REFERENCES)
    assert scores == {"sacreBLEU": pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4))}
    assert how.startswith("sacreBLEU nrefs:1|")


def test_rouge():
    scores, how = METRICS["rouge"](OUTPUTS, REFERENCES)
    assert (scores["ROUGE-1"], scores["ROUGE-2"], scores["ROUGE-Lsum"]) == pytest.approx((80, 75, 80))
    assert how == ["rouge-score with stemming"]
    assert "letters of the references" in METRICS["rouge"](["a"], ["äöü"])[1][1]


def test_questions():
    scores, [how] = METRICS["qg"](OUTPUTS, REFERENCES)
    assert scores["ROUGE-L (COCO)"] == pytest.approx(80)
    assert how.startswith("sacreBLEU ")
