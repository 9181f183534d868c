"""ROUGE of summaries (Lin, 2004), by rouge-score."""

import functools
from collections.abc import Sequence
from types import SimpleNamespace

from nltk.stem.porter import PorterStemmer
from rouge_score import rouge_scorer, tokenize, tokenizers
from tqdm import tqdm

from elseq.scoring.statistics import Score, mean_score

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
PASSED_OVER = 0.1  # share of ignored letters in a text beyond which there is a note


def other_letters(name: object, lines: Sequence[str]) -> list[str]:
    """A note if ROUGE ignores many letters of a text: its words consist of the letters a to z and of digits."""
    letters = [character for line in lines for character in line.lower() if character.isalpha()]
    others = sum(not "a" <= character <= "z" for character in letters)
    if others <= PASSED_OVER * len(letters):
        return []
    share = others / len(letters)
    return [f"{share:.0%} of the letters of {name} are passed over by rouge-score, which knows a to z and digits only."]


class _Tokenizer(tokenizers.Tokenizer):
    """rouge-score's own tokens; each word is stemmed once."""

    def __init__(self, stem: bool):
        self._stemmer = SimpleNamespace(stem=functools.cache(PorterStemmer().stem)) if stem else None

    def tokenize(self, text: str) -> list[str]:
        return tokenize.tokenize(text, self._stemmer)


def make_scorer(metrics: Sequence[str], stem: bool) -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(metrics, tokenizer=_Tokenizer(stem))


def score_summaries(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[str]], stem: bool = True
) -> dict[str, Score]:
    """
    Args:
        hypotheses: of each summary its sentences. They count in rougeLsum only, which is the ROUGE-L of the papers.
        references: the same of its reference.
        stem: compare the stems of words (option -m of the ROUGE script).

    Returns:
        Means over the examples: F1 under the name of each of `METRICS`, and NAME_precision and NAME_recall.
    """
    scorer = make_scorer(METRICS, stem)
    examples = [
        scorer.score("\n".join(reference), "\n".join(hypothesis))
        for hypothesis, reference in zip(
            tqdm(hypotheses, desc="ROUGE", unit=" examples", leave=False, disable=None), references, strict=True
        )
    ]
    scores = {}
    for metric in METRICS:
        scores[metric] = mean_score([example[metric].fmeasure for example in examples])
        scores[f"{metric}_precision"] = mean_score([example[metric].precision for example in examples])
        scores[f"{metric}_recall"] = mean_score([example[metric].recall for example in examples])
    return scores
