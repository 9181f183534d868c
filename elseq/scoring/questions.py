"""BLEU, METEOR and ROUGE-L of generated questions, as in Du et al., 2017 (1705.00106) and the work after it."""

import contextlib
import zlib
from collections.abc import Sequence
from zipfile import BadZipFile

import numpy as np
from nltk.corpus import wordnet
from nltk.corpus.reader.wordnet import WordNetError
from nltk.tokenize import TreebankWordTokenizer
from nltk.translate.meteor_score import meteor_score
from sacrebleu.metrics import BLEU
from tqdm import tqdm

from elseq.scoring.statistics import Score, mean_score
from elseq.scoring.summaries import make_scorer

ORDER = 4  # the longest n-grams of BLEU
RECALL_WEIGHT = 1.2  # beta of ROUGE-L in the COCO caption evaluation, which Du et al. use
NO_METEOR = (
    "METEOR is left out, as nltk's WordNet data is not on this machine or is damaged: "
    "`python -m nltk.downloader wordnet` gets it, and NLTK_DATA names its folder"
)
# nltk's errors for data that is missing, cut off or of another kind: when it is opened, or when it is read.
_UNUSABLE = (LookupError, OSError, ValueError, EOFError, AssertionError, BadZipFile, zlib.error, WordNetError)


def group_by_source(
    hypotheses: Sequence[str], references: Sequence[str], sources: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """The examples as the script of Du et al. makes them, one for each source.

    Questions about the same source are all references of its example, and the last hypothesis is the one that counts.
    """
    last, questions = {}, {}
    for source, hypothesis, reference in zip(sources, hypotheses, references, strict=True):
        last[source] = hypothesis
        questions.setdefault(source, []).append(reference)
    return list(last.values()), list(questions.values())


def score_questions(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenized: bool = False
) -> tuple[dict[str, Score], str]:
    """
    Args:
        hypotheses: a question each.
        references: one or more for each.
        tokenized: words are what spaces separate. Otherwise nltk's Treebank tokenizer divides the text, sacreBLEU's and
            rouge-score's apart, which always use their own.

    Returns:
        The scores by name, without METEOR where it cannot be computed; and the signature of sacreBLEU.
    """
    split = str.split if tokenized else TreebankWordTokenizer().tokenize
    words = [split(hypothesis.lower()) for hypothesis in hypotheses]
    reference_words = [[split(reference.lower()) for reference in group] for group in references]
    joined, joined_references = _joined(words), [_joined(group) for group in reference_words]

    scores = {
        "bleu4": _bleu(joined, joined_references, tokenize="none", smooth_method="none"),
        "sacrebleu": _bleu(hypotheses, references, lowercase=True),
        "rougeL_coco": mean_score([coco_rouge_l(*example) for example in zip(words, reference_words, strict=True)]),
        "rougeL": _rouge_l(hypotheses, references),
    }
    with contextlib.suppress(*_UNUSABLE):
        wordnet.ensure_loaded()
        scores["meteor"] = _meteor(words, reference_words)
    return scores, _signature(hypotheses, references)


def _joined(tokenized: Sequence[Sequence[str]]) -> list[str]:
    return [" ".join(words) for words in tokenized]


def _bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]], **options) -> Score:
    """BLEU of the corpus: lengths, matches and n-grams are summed, not scores."""
    metric = BLEU(**options, effective_order=True)  # only to prevent a warning: the counts are the same
    sentences = [metric.sentence_score(*example) for example in zip(hypotheses, references, strict=True)]

    def corpus_bleu(sums: np.ndarray) -> float:
        length, reference_length, *ngrams = map(int, sums)
        matches, totals = ngrams[:ORDER], ngrams[ORDER:]
        return BLEU.compute_bleu(matches, totals, length, reference_length, metric.smooth_method).score

    return Score(
        np.array([[sentence.sys_len, sentence.ref_len, *sentence.counts, *sentence.totals] for sentence in sentences]),
        lambda sums: np.apply_along_axis(corpus_bleu, -1, sums),
    )


def _signature(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> str:
    metric = BLEU(lowercase=True, force=True)
    most = max(map(len, references))
    columns = zip(*([*group, *[None] * (most - len(group))] for group in references), strict=True)
    metric.corpus_score(hypotheses, [list(column) for column in columns])  # counts the references
    return metric.get_signature().format()


def coco_rouge_l(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L as the COCO caption evaluation has it: recall weighs more, and precision and recall may be the best of
    different references."""
    common = [_common_subsequence(words, reference) for reference in references]
    precision = max(length / max(len(words), 1) for length in common)
    recall = max(length / max(len(reference), 1) for length, reference in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + RECALL_WEIGHT**2) * precision * recall / (recall + RECALL_WEIGHT**2 * precision)


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest one."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(above, lengths[place - 1])
            diagonal = above
    return lengths[-1]


def _rouge_l(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    scorer = make_scorer(["rougeL"], stem=True)
    examples = zip(references, hypotheses, strict=True)
    return mean_score([scorer.score_multi(*example)["rougeL"].fmeasure for example in examples])


def _meteor(words: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Score:
    examples = zip(references, tqdm(words, desc="METEOR", leave=False, disable=None), strict=True)
    return mean_score([meteor_score(*example, wordnet=wordnet) for example in examples])
