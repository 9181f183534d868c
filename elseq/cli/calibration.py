"""The calibration text of elseq-convert heads: lines of text, or a binarized split."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fairseq import utils
from fairseq.dataclass.configs import FairseqConfig
from omegaconf import OmegaConf
from torch.nn.functional import nll_loss

from elseq.errors import UserError
from elseq.files import check_ordinary, read_lines
from elseq.generator import TextGenerator

MOST_UNKNOWN = 0.5  # share of the words of a text that its model may not know


@dataclass(frozen=True)
class Calibration:
    """Calibration text as a model reads it."""

    name: str  # of the file or split
    samples: list[dict]  # batches of one text: "net_input" and "target" [1, T]

    @property
    def texts(self) -> list[dict]:
        """The input of the model for each text."""
        return [sample["net_input"] for sample in self.samples]

    @property
    def tokens(self) -> int:
        """That are predicted."""
        return sum(sample["target"].numel() for sample in self.samples)

    def record(self) -> dict:
        """For a checkpoint that was made by this text."""
        return {"text": self.name, "sentences": len(self.samples), "tokens": self.tokens}

    @torch.no_grad()
    def loss(self, model) -> float:
        """Bits per token."""
        total = 0.0
        for sample in self.samples:
            log_probs = model.get_normalized_probs(model(**sample["net_input"]), log_probs=True, sample=sample)
            total += float(nll_loss(log_probs.flatten(0, -2), sample["target"].flatten(), reduction="sum"))
        return total / self.tokens / math.log(2)


def read_calibration(
    generator: TextGenerator, text: Path, target: Path | None, sentences: int, needed: int
) -> Calibration:
    """
    Args:
        generator: the model, which also encodes the text.
        text: a file of sources, or for a language model of texts; otherwise the name of a split of the task's data.
        target: the file of targets, or None.
        sentences: how many are taken, spread evenly.
        needed: tokens that the sources and the targets must have at least.

    Raises:
        UserError: a file or split that is missing, empty, too short, of other lengths than its target, or mostly of
            words that the model does not know.
    """
    if text.is_file():
        name = text.name
        samples = _read_files(generator, text, target, sentences)
    elif target is not None:
        raise UserError(f"{text} is no file, and --calibration-target is for a file: give one, or leave it out")
    else:
        name = str(text)
        samples = _read_split(generator.task, generator.model, name, sentences)
    calibration = Calibration(name, list(samples))
    _check(calibration, generator.task, needed)
    return calibration


def _spread(count: int, chosen: int) -> list[int]:
    """So many indices of a list, or all of them."""
    return np.unique(np.linspace(0, count - 1, min(count, chosen)).round().astype(int)).tolist() if count else []


def _read_files(generator: TextGenerator, source: Path, target: Path | None, sentences: int) -> Iterator[dict]:
    has_encoder = hasattr(generator.model, "encoder")
    if has_encoder and target is None:
        raise UserError("--calibration-target is missing: name the file of the translations of --calibration")
    if not has_encoder and target is not None:
        raise UserError("--calibration-target is for models with an encoder: leave it out")
    check_ordinary(source)
    sources = list(read_lines(source))
    targets = [None] * len(sources)
    if target is not None:
        check_ordinary(target)
        targets = list(read_lines(target))
        if len(targets) != len(sources):
            raise UserError(f"{source} has {len(sources)} lines and {target} has {len(targets)}: give one for each")
    lines = [
        (number, pair)
        for number, pair in enumerate(zip(sources, targets, strict=True), start=1)
        if all(side is None or side.strip() for side in pair)
    ]
    for index in _spread(len(lines), sentences):
        number, pair = lines[index]
        yield generator.training_sample(*pair, f"line {number} of {source}")


def _read_split(task, model, split: str, sentences: int) -> Iterator[dict]:
    if OmegaConf.is_config(task.options) and task.options._get_parent() is None:
        task.options._set_parent(OmegaConf.structured(FairseqConfig()))  # to which those of another task refer
    try:
        task.load_dataset(split)
    except UserError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise UserError(
            f"--calibration {split}: there is neither a file nor, in {task.options.data}, a split of this name; give "
            "one of them"
        ) from error
    dataset = task.dataset(split)
    positions = utils.resolve_max_positions(task.max_positions(), model.max_positions())
    indices = task.filter_indices_by_size(np.arange(len(dataset)), dataset, positions, ignore_invalid_inputs=True)
    for index in _spread(len(indices), sentences):
        sample = dataset.collater([dataset[int(indices[index])]])
        yield {"net_input": sample["net_input"], "target": sample["target"]}


def _check(calibration: Calibration, task, needed: int) -> None:
    text = calibration.name
    if not calibration.samples:
        raise UserError(f"calibration text {text} is empty: give some hundred sentences")
    sides = {"src_tokens": task.source_dictionary, "target": task.target_dictionary}
    for side, dictionary in sides.items():
        rows = torch.cat([{**sample["net_input"], **sample}[side].flatten() for sample in calibration.samples])
        unknown = (rows.eq(dictionary.unk()) | rows.ge(len(dictionary))).double().mean()
        if unknown > MOST_UNKNOWN or bool(rows.ge(len(dictionary)).any()):
            raise UserError(
                f"calibration text {text}: {unknown:.0%} of its tokens are not in the model's dictionary; give text of "
                "the model's languages, in its subwords"
            )
        if rows.numel() < needed:
            raise UserError(
                f"calibration text {text} has {rows.numel()} tokens and the heads of this model need {needed} or more: "
                "give a longer text, or raise --calibration-sentences"
            )
