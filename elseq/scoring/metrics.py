"""Scores of one system as numbers under the headings of a table, and how they were computed."""

from collections.abc import Sequence

from sacrebleu.metrics import BLEU

from elseq.scoring.inputs import into_sentences
from elseq.scoring.questions import score_questions
from elseq.scoring.report import HEADINGS
from elseq.scoring.summaries import other_letters, score_summaries


def bleu(outputs: Sequence[str], references: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    metric = BLEU()
    value = metric.corpus_score(outputs, [references]).score
    return {HEADINGS["sacrebleu"]: value}, [f"sacreBLEU {metric.get_signature()}"]


def rouge(outputs: Sequence[str], references: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    scores = score_summaries(into_sentences(outputs, None), into_sentences(references, None))
    return _told(scores), ["rouge-score with stemming", *other_letters("the references", references)]


def questions(outputs: Sequence[str], references: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    scores, signature = score_questions(outputs, [[reference] for reference in references])
    return _told(scores), [f"sacreBLEU {signature}"]


def _told(scores: dict) -> dict[str, float]:
    return {HEADINGS[name]: scores[name].total for name in HEADINGS if name in scores}


METRICS = {"bleu": bleu, "rouge": rouge, "qg": questions}
