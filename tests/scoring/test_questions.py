"""Scores of questions against nltk, sacreBLEU and rouge-score called plainly, and against values worked out by hand."""

import math
import zipfile
from types import SimpleNamespace

import nltk
import pytest
from nltk.corpus.reader import PlaintextCorpusReader, WordNetCorpusReader
from nltk.corpus.util import LazyCorpusLoader
from nltk.translate.bleu_score import corpus_bleu
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU

from elseq.scoring import questions
from elseq.scoring.questions import coco_rouge_l, group_by_source, score_questions

HYPOTHESES = [
    "What is the name of the longest river in France?",
    "Who didn't sign the treaty of Paris in 1763?",
    "When was it?",
    "",
]
REFERENCES = [
    ["What is the name of France's longest river?", "What is the longest river in France called?"],
    ["Who did not sign the treaty of Paris?"],
    ["In what year was it built?", "When was it built?", "When was it?"],
    ["Why is that?"],
]


def test_bleu4_is_nltks_on_lower_case_tokens():
    references = [
        ["what is the name of france 's longest river ?", "what is the longest river in france called ?"],
        ["who did not sign the treaty of paris ?"],
        ["in what year was it built ?", "when was it built ?", "when was it ?"],
    ]
    hypotheses = [
        "what is the name of the longest river in france ?",
        "who did n't sign the treaty of paris in 1763 ?",
        "when was it ?",
    ]
    words = [[line.split() for line in group] for group in references]
    expected = corpus_bleu(words, [line.split() for line in hypotheses])
    scores, _ = score_questions(HYPOTHESES[:3], REFERENCES[:3])
    assert scores["bleu4"].total == pytest.approx(100 * expected)
    assert scores["bleu4"].total > 20


def test_bleu4_by_hand():
    """a b c d x | a b c d y: precisions 4/5, 3/4, 2/3, 1/2."""
    scores, _ = score_questions(["a b c d x"], [["a b c d y"]], tokenized=True)
    assert scores["bleu4"].total == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_bleu4_of_short_hypotheses():
    """They have no n-grams longer than themselves, where nltk counts one that is wrong."""
    scores, _ = score_questions(["a b", "", "a b c d"], [["a b"], ["x"], ["a b c d"]], tokenized=True)
    assert scores["bleu4"].total == pytest.approx(100 * math.exp(1 - 7 / 6))
    assert corpus_bleu([["ab"], ["x"], ["abcd"]], ["ab", "", "abcd"]) < 0.9 * scores["bleu4"].total / 100


def test_bleu4_is_of_the_corpus_and_not_smoothed():
    (alone, _), (together, _) = (
        score_questions(["a b c", "d e f g h"][start:], [["a b c"], ["d e f g h"]][start:], tokenized=True)
        for start in (1, 0)
    )
    assert alone["bleu4"].total == together["bleu4"].total == pytest.approx(100)
    without, _ = score_questions(["a b c x"], [["a b c y"]], tokenized=True)
    assert without["bleu4"].total == pytest.approx(0, abs=1e-6)


def test_tokens_as_they_are():
    """Nothing but spaces divides tokenized text: `river?` is a word there."""
    tokenized, _ = score_questions(["Is it the river?"], [["is it the River ?"]], tokenized=True)
    divided, _ = score_questions(["Is it the river?"], [["is it the River ?"]])
    assert divided["bleu4"].total == pytest.approx(100)
    assert tokenized["bleu4"].total < 1
    assert tokenized["rougeL_coco"].total < 80


def test_sacrebleu_with_its_signature():
    scores, signature = score_questions(HYPOTHESES, REFERENCES)
    metric = BLEU(lowercase=True)
    columns = [[group[index] if index < len(group) else None for group in REFERENCES] for index in range(3)]
    assert scores["sacrebleu"].total == pytest.approx(metric.corpus_score(HYPOTHESES, columns).score)
    assert signature == metric.get_signature().format()
    assert "nrefs:var|" in signature and "|case:lc|" in signature
    assert "nrefs:1|" in score_questions(HYPOTHESES[:1], [["a"]])[1]


def test_rouge_l_is_the_best_of_the_references():
    scores, _ = score_questions(HYPOTHESES, REFERENCES)
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    best = [
        max(scorer.score(reference, hypothesis)["rougeL"].fmeasure for reference in group)
        for hypothesis, group in zip(HYPOTHESES, REFERENCES, strict=True)
    ]
    assert scores["rougeL"].total == pytest.approx(100 * sum(best) / len(best))


def test_coco_rouge_l_by_hand():
    """a b c d | a x c d e: 3 in common, precision 3/4, recall 3/5; recall weighs 1.44 times as much."""
    assert coco_rouge_l("abcd", ["axcde"]) == pytest.approx(2.44 * 3 / 4 * 3 / 5 / (3 / 5 + 1.44 * 3 / 4))
    assert coco_rouge_l("abcd", ["abcd", "z"]) == 1
    # precision of the first reference, recall of the second
    assert coco_rouge_l("abcd", ["abcdefgh", "a"]) == 1
    assert coco_rouge_l("", ["a"]) == coco_rouge_l("a", [""]) == coco_rouge_l("a", ["b"]) == 0


@pytest.mark.parametrize("first, second, length", [("abcbdab", "bdcaba", 4), ("", "a", 0), ("aaaa", "aa", 2)])
def test_common_subsequence(first, second, length):
    assert questions._common_subsequence(first, second) == questions._common_subsequence(second, first) == length


def test_groups_as_du_et_al_make_them():
    hypotheses, references = group_by_source("1234", "abcd", ["s", "t", "s", "u"])
    assert hypotheses == ["3", "2", "4"]
    assert references == [["a", "c"], ["b"], ["d"]]


class FewWords:
    """A WordNet with one pair of synonyms."""

    def ensure_loaded(self):
        pass

    def synsets(self, word):
        lemmas = [SimpleNamespace(name=lambda name=name: name) for name in ("big", "grand")]
        return [SimpleNamespace(lemmas=lambda: lemmas)] if word in ("big", "grand") else []


def test_meteor_by_hand(monkeypatch):
    """3 words of 3 and of 4 match, one by its stem and one as a synonym, in one chunk."""
    monkeypatch.setattr(questions, "wordnet", FewWords())
    scores, _ = score_questions(["big dogs bark"], [["a grand dog barks", "nothing"]], tokenized=True)
    mean = 1 * (3 / 4) / (0.9 * 1 + 0.1 * 3 / 4)
    assert scores["meteor"].total == pytest.approx(100 * mean * (1 - 0.5 * (1 / 3) ** 3))


def test_without_wordnet_meteor_is_left_out(monkeypatch):
    def ensure_loaded():
        raise LookupError

    monkeypatch.setattr(questions, "wordnet", SimpleNamespace(ensure_loaded=ensure_loaded))
    scores, _ = score_questions(HYPOTHESES, REFERENCES)
    assert set(scores) == {"bleu4", "sacrebleu", "rougeL", "rougeL_coco"}


@pytest.mark.parametrize("damage", ["no archive", "cut off", "empty", "other files", "index without data"])
def test_with_a_damaged_wordnet_meteor_is_left_out(monkeypatch, tmp_path, damage):
    corpora = tmp_path / "corpora"
    corpora.mkdir()
    path = corpora / "wordnet.zip"
    if damage == "no archive":
        path.write_bytes(b"<html>not found</html>")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage in ("cut off", "other files"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("wordnet/README", "text")
        if damage == "cut off":
            path.write_bytes(path.read_bytes()[:40])
    else:
        (corpora / "wordnet").mkdir()
        for name in (
            "lexnames",
            *(f"{kind}.{word}" for kind in ("index", "data") for word in ("noun", "verb", "adj", "adv")),
        ):
            (corpora / "wordnet" / name).write_text("")
        for word in ("noun", "verb", "adj", "adv"):
            (corpora / "wordnet" / f"{word}.exc").write_text("")
        (corpora / "wordnet" / "index.noun").write_text("river n 1 1 @ 1 0 00000003\n")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    reader = LazyCorpusLoader("wordnet", WordNetCorpusReader, LazyCorpusLoader("omw-1.4", PlaintextCorpusReader, "x"))
    monkeypatch.setattr(questions, "wordnet", reader)
    scores, _ = score_questions(["the longest river"], [["the wide stream"]])
    assert set(scores) == {"bleu4", "sacrebleu", "rougeL", "rougeL_coco"}
