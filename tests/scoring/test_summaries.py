"""ROUGE against rouge-score called plainly, and against values worked out by hand."""

import pytest
from rouge_score import rouge_scorer

from elseq.scoring.summaries import METRICS, other_letters, score_summaries

HYPOTHESES = [
    ["The cats were sitting on the mats.", "A dog barked loudly."],
    ["Nobody knows."],
    ["Running runners ran."],
    [],
]
REFERENCES = [
    ["A dog was barking.", "The cat sat on the mat."],
    ["Everybody knew it.", "Nobody said it."],
    ["The runner runs."],
    ["Something was said."],
]


@pytest.mark.parametrize("stem", [True, False])
def test_as_rouge_score(stem):
    scorer = rouge_scorer.RougeScorer(METRICS, use_stemmer=stem)
    expected = [
        scorer.score("\n".join(reference), "\n".join(hypothesis))
        for hypothesis, reference in zip(HYPOTHESES, REFERENCES, strict=True)
    ]
    scores = score_summaries(HYPOTHESES, REFERENCES, stem)
    for metric in METRICS:
        for name, part in ((metric, "fmeasure"), (f"{metric}_precision", "precision"), (f"{metric}_recall", "recall")):
            mean = sum(getattr(example[metric], part) for example in expected) / len(expected)
            assert scores[name].total == pytest.approx(100 * mean)


def test_stems_match():
    with_stems, without = (score_summaries([["Cats sat"]], [["The cat sat"]], stem)["rouge1"].total for stem in (1, 0))
    assert with_stems == pytest.approx(100 * 2 * 1 * (2 / 3) / (1 + 2 / 3))
    assert without == pytest.approx(100 * 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))


def test_by_hand():
    """the cat sat on the mat | the cat lay on the mat: 5 of 6 words, 3 of 5 pairs, the longest subsequence 5."""
    scores = score_summaries([["the cat sat on the mat"]], [["the cat lay on the mat"]])
    assert scores["rouge1"].total == pytest.approx(100 * 5 / 6)
    assert scores["rouge2"].total == pytest.approx(100 * 3 / 5)
    assert scores["rougeL"].total == scores["rougeLsum"].total == pytest.approx(100 * 5 / 6)


def test_sentences_in_another_order():
    """rougeL reads a summary as one sentence and finds only the longer of the two; rougeLsum finds both."""
    scores = score_summaries([["a b c d e", "f g h"]], [["f g h", "a b c d e"]])
    assert scores["rougeL"].total == pytest.approx(100 * 5 / 8)
    assert scores["rougeLsum"].total == pytest.approx(100)


def test_precision_and_recall():
    scores = score_summaries([["a b c d"]], [["a b"]])
    assert scores["rouge1_precision"].total == 50
    assert scores["rouge1_recall"].total == 100
    assert scores["rouge1"].total == pytest.approx(200 / 3)


@pytest.mark.parametrize("hypothesis, reference", [([], ["a"]), ([""], ["a"]), (["a"], []), ([], []), (["..."], ["a"])])
def test_what_is_empty_scores_nothing(hypothesis, reference):
    assert {score.total for score in score_summaries([hypothesis], [reference]).values()} == {0}


@pytest.mark.parametrize(
    "text, share",
    [
        ("The river", None),
        ("Die Straße ist lang", None),
        ("1984 !?", None),
        ("", None),
        ("déjà", "50%"),
        ("река river", "44%"),
        ("河流 1984", "100%"),
    ],
)
def test_letters_that_are_passed_over(text, share):
    """And what is passed over has no score: two equal texts have 0."""
    sentence = f"{share} of the letters of FILE are passed over by rouge-score, which knows a to z and digits only."
    assert other_letters("FILE", [text, ""]) == ([] if share is None else [sentence])
    if share == "100%":
        assert score_summaries([["河流"]], [["河流"]])["rouge1"].total == 0
