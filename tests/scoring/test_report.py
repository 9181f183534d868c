"""The scores of systems as JSON and as a table, against numpy on scores whose resamples are known."""

import json

import numpy as np
import pytest

import elseq
from elseq.files import to_json
from elseq.scoring.published import PUBLISHED
from elseq.scoring.report import System, report, table
from elseq.scoring.statistics import mean_score, resample
from tests.helpers import table_rows

SETTINGS = {"lines": 4, "examples": 4, "empty_references": 0, "bootstrap": 200, "seed": 3}
FIRST, SECOND = [0.5, 0.25, 0.0, 1.0], [0.5, 0.5, 0.25, 0.75]


def system(name, values, empty=0, **more):
    return System(name, empty, {"rouge1": mean_score(values), **{key: mean_score(each) for key, each in more.items()}})


def resampled(values):
    """The mean of each resample, in percent: drawn as `statistics.draws` does, from what numpy's generator gives."""
    generator = np.random.default_rng(3)
    return np.array([100 * np.mean(np.take(values, generator.integers(4, size=4))) for _ in range(200)])


@pytest.fixture
def content():
    systems = [system("one", FIRST), system("two", SECOND, empty=2)]
    values = resample([each.scores for each in systems], 200, seed=3)
    return report(systems, values, SETTINGS, ["A note."], None)


def test_values_intervals_and_comparison(content):
    one, two = content["systems"]
    first, second = resampled(FIRST), resampled(SECOND)
    assert one["scores"]["rouge1"] == pytest.approx(
        {"value": 43.75, "low": np.percentile(first, 2.5), "high": np.percentile(first, 97.5)}
    )
    assert two["scores"]["rouge1"] == pytest.approx(
        {
            "value": 50.0,
            "low": np.percentile(second, 2.5),
            "high": np.percentile(second, 97.5),
            "better_than_first": np.mean(second - first > 1e-9),
        }
    )
    assert (one["hypotheses"], one["empty"], two["empty"]) == ("one", 0, 2)
    assert content["versions"]["elseq"] == elseq.__version__
    assert json.loads(to_json(content)) == content


def test_notes(content):
    assert content["notes"] == [
        "A note.",
        "4 examples.",
        "Empty hypotheses of two: 2; they score 0.",
        "95% intervals by bootstrap: 200 resamples of the examples, seed 3.",
        "better than the first: share of the resamples in which a score is above one's.",
    ]


def test_table_of_several(content):
    header, _, *lines = table_rows(table(content))
    assert header == ["hypotheses", "score", "value", "95% interval", "better than the first"]
    assert [line[:3] for line in lines] == [["one", "ROUGE-1", "43.75"], ["two", "ROUGE-1", "50.00"]]
    low, high = np.percentile(resampled(SECOND), (2.5, 97.5))
    share = np.mean(resampled(SECOND) - resampled(FIRST) > 1e-9)
    assert [line[3:] for line in lines][1] == [f"{low:.2f} to {high:.2f}", f"{share:.1%}"]
    assert lines[0][4] == ""


def test_precision_and_recall_are_columns():
    parts = {"rouge1_precision": [0.5] * 4, "rouge1_recall": [0.25] * 4}
    header, _, line = table_rows(table(report([system("one", FIRST, **parts)], None, SETTINGS, [], None)))
    assert header == ["score", "F1", "precision", "recall"]
    assert line == ["ROUGE-1", "43.75", "50.00", "25.00"]


@pytest.mark.parametrize("lines", [4, 11_490])
def test_published_scores(lines):
    content = report([system("one", FIRST)], None, SETTINGS | {"lines": lines}, [], "cnn_dm-bart_large")
    header, _, line = table_rows(table(content))
    assert dict(zip(header, line, strict=True)) == {"score": "ROUGE-1", "value": "43.75", "published": "44.16"}
    note = f"published: {PUBLISHED['cnn_dm-bart_large'].source}, 11,490 references"
    assert content["notes"][-1] == note + ("." if lines == 11_490 else ", not these 4: do not compare.")


def test_empty_references_and_another_meteor():
    settings = SETTINGS | {"empty_references": 1000}
    content = report([system("one", FIRST, meteor=FIRST)], None, settings, [], "squad_qg-unilm_large")
    assert "Empty references: 1,000." in content["notes"]
    assert content["notes"][-1].startswith("The published METEOR is that of its authors' own program")
