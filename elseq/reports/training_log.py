"""What the logs of fairseq-train and fairseq-validate say, with --log-format simple."""

import re
import statistics
from typing import NamedTuple

from elseq.errors import UserError


class Point(NamedTuple):
    updates: int
    loss: float  # what is minimized: label-smoothed cross-entropy, base 2
    nll_loss: float  # cross-entropy, base 2

    @property
    def perplexity(self):
        return 2**self.nll_loss


class TrainingLog(NamedTuple):
    """What fairseq-train says with --log-format simple."""

    kv_heads: int
    ffn_width: int
    parameters: int
    training: list[Point]
    validation: list[Point]
    best: Point  # the validation of checkpoint_best.pt
    words_per_second: float  # median of the intervals that are logged


def _point(values, updates):
    return Point(int(updates), float(values["loss"]), float(values["nll_loss"]))


def training_intervals(text):
    """The values of each train_inner line, by their names."""
    for line in re.findall(r"\| train_inner \| (.*)$", text, flags=re.MULTILINE):
        yield dict(re.findall(r"(\w+)=([^,\s]+)", line))


def validations(text):
    """One point for each number of updates; fairseq-validate names none, and that is 0 here."""
    points = {}
    for line in re.findall(r"valid on '\w+' subset( \| .*)$", text, flags=re.MULTILINE):
        values = dict(re.findall(r"\| (\w+) (\S+)", line))
        updates = int(values.get("num_updates", 0))
        points[updates] = _point(values, updates)
    return [points[updates] for updates in sorted(points)]


def _option(text, name):
    found = re.search(rf"'{name}': (\d+|None)", text)
    return None if found is None or found[1] == "None" else int(found[1])


def parse_training(text):
    """
    Raises:
        ValueError: the log of a training that did not come to a validation and a checkpoint.
    """
    intervals, validation = list(training_intervals(text)), validations(text)
    # Not every validation is followed by a checkpoint: the lowest loss need not be that of checkpoint_best.pt.
    saved = {int(updates) for updates in re.findall(r"Saved checkpoint .* @ (\d+) updates", text)}
    candidates = [point for point in validation if point.updates in saved]
    size = re.search(r"num\. shared model params: ([\d,]+)", text)
    if not (intervals and candidates and size):
        raise ValueError("there is no complete training in it")
    return TrainingLog(
        kv_heads=_option(text, "num_kv_heads") or _option(text, "decoder_attention_heads"),
        ffn_width=_option(text, "encoder_ffn_embed_dim"),
        parameters=int(size[1].replace(",", "")),
        training=[_point(values, values["num_updates"]) for values in intervals],
        validation=validation,
        best=min(candidates, key=lambda point: point.loss),
        words_per_second=statistics.median(float(values["wps"]) for values in intervals),
    )


def _read(path, parse):
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}; run the recipe again with --fresh") from error


def read_training(path):
    return _read(path, parse_training)


def read_validations(path):
    found = _read(path, validations)
    if not found:
        raise UserError(f"{path}: there is no validation in it")
    return found
