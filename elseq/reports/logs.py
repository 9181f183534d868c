"""Readers of logs of fairseq-generate, fairseq-train and fairseq-validate; the last two with --log-format simple."""

import re
import statistics
from pathlib import Path
from typing import NamedTuple

from elseq.errors import UserError
from elseq.files import read_lines


class GenerationLog(NamedTuple):
    """Output of fairseq-generate for each sentence, by its number. With --nbest: for its best hypothesis."""

    pieces: dict[int, str]  # of the model
    scores: dict[int, float]  # of the hypothesis, base 2
    hypotheses: dict[int, str]  # as text
    token_scores: dict[int, list[float]]  # base 2; with --score-reference those of the reference
    samples_per_second: float | None  # None where it did not come to its end
    state_bytes: int | None  # None where fairseq decoded
    quality: str  # the last line: BLEU

    @property
    def in_order(self) -> list[str]:
        """The hypotheses, in the order of the test set."""
        return [self.hypotheses[number] for number in sorted(self.hypotheses)]


class Point(NamedTuple):
    """A line of a training, or of a validation."""

    updates: int
    loss: float  # the minimized one: label-smoothed cross-entropy, base 2
    nll_loss: float  # cross-entropy, base 2
    rounded_perplexity: float | None = None  # fairseq's, to two digits
    bleu: float | None = None  # None without --eval-bleu

    @property
    def perplexity(self) -> float:
        return 2**self.nll_loss


class TrainingLog(NamedTuple):
    kv_heads: int
    ffn_width: int
    parameters: int
    training: list[Point]
    validation: list[Point]
    best: Point  # the validation of checkpoint_best.pt
    words_per_second: float  # median of the intervals that are logged


def read_generation(path: Path) -> GenerationLog:
    """
    Raises:
        UserError: a file that cannot be read.
    """
    text = _text(path)
    scored = _sentences(text, r"^H-(\d+)\t([^\t\n]*)\t(.*)$")
    rate = re.search(r"Translated .* \(([\d.]+) sentences/s", text)
    state = re.search(r"decoding state: peak (\d+) bytes", text)
    quality = re.search(r"^Generate .*?: (.*)$", text, flags=re.MULTILINE)
    return GenerationLog(
        pieces={number: pieces for number, (_, pieces) in scored.items()},
        scores={number: float(score) for number, (score, _) in scored.items()},
        hypotheses={n: hypothesis for n, (hypothesis,) in _sentences(text, r"^D-(\d+)\t[^\t\n]*\t(.*)$").items()},
        token_scores={n: [*map(float, line.split())] for n, (line,) in _sentences(text, r"^P-(\d+)\t(.*)$").items()},
        samples_per_second=float(rate[1]) if rate else None,
        state_bytes=int(state[1]) if state else None,
        quality=quality[1] if quality else "",
    )


def read_finished(path: Path) -> GenerationLog:
    """
    Raises:
        UserError: a file that cannot be read, or of a generation that did not come to its end.
    """
    log = read_generation(path)
    if log.samples_per_second is None:
        raise UserError(f"{path}: fairseq-generate did not come to its end; run the recipe again")
    return log


def read_token_scores(path: Path) -> dict[int, list[float]]:
    """Of each sentence the scores of its tokens, base 2.

    Raises:
        UserError: a file that is missing, cannot be read, or has no scores.
    """
    if not path.exists():
        raise UserError(f"{path} is missing; run the recipe again")
    scores = read_generation(path).token_scores
    if not any(scores.values()):
        raise UserError(f"{path}: there are no scores in it")
    return scores


def read_training(path: Path) -> TrainingLog:
    """
    Raises:
        UserError: a file that cannot be read, or of a training that did not come to a validation and a checkpoint.
    """
    text = _text(path)
    intervals = [dict(re.findall(r"(\w+)=([^,\s]+)", line)) for line in re.findall(r"\| train_inner \| (.*)", text)]
    validation = _validations(text)
    # Not every validation is followed by a checkpoint: the lowest loss need not be that of checkpoint_best.pt.
    saved = {int(updates) for updates in re.findall(r"Saved checkpoint .* @ (\d+) updates", text)}
    candidates = [point for point in validation if point.updates in saved]
    size = re.search(r"num\. shared model params: ([\d,]+)", text)
    if not (intervals and candidates and size):
        raise UserError(f"{path}: there is no complete training in it; run the recipe again with --fresh")
    return TrainingLog(
        kv_heads=_option(text, "num_kv_heads") or _option(text, "decoder_attention_heads"),
        ffn_width=_option(text, "encoder_ffn_embed_dim"),
        parameters=int(size[1].replace(",", "")),
        training=[_point(values) for values in intervals],
        validation=validation,
        best=min(candidates, key=lambda point: point.loss),
        words_per_second=statistics.median(float(values["wps"]) for values in intervals),
    )


def read_validations(path: Path) -> list[Point]:
    """One point for each number of updates. A training that was continued may have several: the last one counts.
    fairseq-validate names no updates, which gives 0.

    Raises:
        UserError: a file that cannot be read, or without a validation.
    """
    found = _validations(_text(path))
    if not found:
        raise UserError(f"{path}: there is no validation in it")
    return found


def _text(path: Path) -> str:
    if path.is_file() and not path.stat().st_size:
        return ""  # a log in which nothing is found
    return "\n".join(read_lines(path))


def _sentences(text: str, pattern: str) -> dict[int, list[str]]:
    """The groups of a pattern after the first, by the number in the first group. The first of equal numbers counts."""
    found = {}
    for number, *fields in re.findall(pattern, text, flags=re.MULTILINE):
        found.setdefault(int(number), fields)
    return found


def _validations(text: str) -> list[Point]:
    lines = re.findall(r"valid on '\w+' subset( \| .*)", text)
    points = [_point(dict(re.findall(r"\| (\w+) (\S+)", line))) for line in lines]
    return sorted({point.updates: point for point in points}.values())


def _point(values: dict[str, str]) -> Point:
    optional = [float(values[name]) if name in values else None for name in ("ppl", "bleu")]
    loss = float(values["loss"])
    nll_loss = float(values.get("nll_loss", loss))  # cross_entropy has one loss
    return Point(int(values.get("num_updates", 0)), loss, nll_loss, *optional)


def _option(text: str, name: str) -> int | None:
    found = re.search(rf"'{name}': (\d+|None)", text)
    return None if found is None or found[1] == "None" else int(found[1])
