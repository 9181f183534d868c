"""The criterion elseq_distillation: a model learns from the targets and from the distributions of a teacher."""

import contextlib
from dataclasses import dataclass
from typing import Optional

import torch
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.data import Dictionary
from fairseq.models import FairseqMultiModel
from torch import Tensor

from elseq.bounds import is_possible, possible_values
from elseq.compat.patching import before_training
from elseq.errors import UserError
from elseq.loading import Checkpoint
from elseq.models.config import option


@dataclass
class DistillationConfig(LabelSmoothedCrossEntropyCriterionConfig):
    teacher: Optional[str] = option("checkpoint of the teacher: a model of the same dictionaries")
    distillation_weight: float = option(
        "weight of the loss against the teacher, 0 to 1; the rest is that of the targets", 0.5
    )
    distillation_temperature: float = option("temperature at which teacher and model are compared", 1.0)


@register_criterion("elseq_distillation", dataclass=DistillationConfig)
class DistillationCriterion(LabelSmoothedCrossEntropyCriterion):
    """Word-level distillation (1606.07947, section 3.1): label-smoothed cross-entropy with the targets, times
    1 - weight, plus the cross-entropy with the teacher's distributions, times weight. With a temperature T both are
    taken at T, and their cross-entropy counts T ** 2 times (1503.02531, section 2).

    Validation has the label-smoothed cross-entropy alone, which compares with other trainings, and needs no teacher.
    """

    def __init__(
        self,
        task,
        sentence_avg,
        label_smoothing,
        teacher=None,
        distillation_weight=0.5,
        distillation_temperature=1.0,
        ignore_prefix_size=0,
        report_accuracy=False,
    ):
        """
        Raises:
            UserError: no teacher, a weight that is not between 0 and 1, or a temperature out of its range.
        """
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)
        if teacher is None:
            raise UserError("--criterion elseq_distillation needs --teacher: name the checkpoint of a model")
        if not 0 <= distillation_weight <= 1:
            raise UserError(f"{distillation_weight:g} is not possible: give 0 to 1", "--distillation-weight")
        if not is_possible("temperature", distillation_temperature):
            raise UserError(
                f"{distillation_temperature:g} is not possible: give {possible_values('temperature')}",
                "--distillation-temperature",
            )
        self.weight = distillation_weight
        self.temperature = distillation_temperature
        self.path = teacher
        self._teacher: list = []  # not a part of this module, whose parameters are trained and saved

    def compute_loss(self, model, net_output, sample, reduce=True):
        loss, nll_loss = super().compute_loss(model, net_output, sample, reduce)
        if not model.training or not self.weight:
            return loss, nll_loss
        with torch.no_grad():
            wanted = self._log_probs(self.teacher(net_output[0])(**sample["net_input"])[0]).exp()
        against = -(wanted * self._log_probs(net_output[0])).sum(dim=-1, keepdim=True)
        target = sample["target"][:, self.ignore_prefix_size :].reshape(-1, 1)
        against = against.masked_fill(target.eq(self.padding_idx), 0.0) * self.temperature**2
        if reduce:
            against = against.sum()
        return (1 - self.weight) * loss + self.weight * against, nll_loss

    def _log_probs(self, logits: Tensor) -> Tensor:
        """[N, T, V] to [N T, V]."""
        logits = logits[:, self.ignore_prefix_size :].flatten(0, 1)
        return torch.log_softmax(logits.float() / self.temperature, dim=-1)

    def teacher(self, like: Tensor):
        """The teacher, on the device and in the type of a tensor.

        Raises:
            UserError: it cannot be loaded, or is not for the texts of this training.
        """
        self.load_teacher()
        return self._teacher[0].to(like)

    def load_teacher(self) -> None:
        """Load the teacher, unless it is.

        Raises:
            UserError: as for `teacher`.
        """
        if not self._teacher:
            self._teacher.append(self._load())

    def _load(self):
        checkpoint = Checkpoint.read(self.path)
        own = self.task.source_dictionary, self.task.target_dictionary
        for words, dictionary in zip(self._dictionaries(checkpoint), own, strict=False):
            # A task of several languages adds symbols to those of the file.
            if words != dictionary.symbols[: len(words)]:
                raise UserError(f"{self.path} has another dictionary than this training: give another", "--teacher")
        model = checkpoint.build_model(self.task)
        if isinstance(model, FairseqMultiModel):
            raise UserError(
                f"{self.path} holds a model for each pair of languages, which distillation does not take: give another",
                "--teacher",
            )
        if getattr(getattr(model, "decoder", None), "adaptive_softmax", None) is not None:
            raise UserError(
                f"{self.path} has an adaptive softmax, which distillation does not take: give another", "--teacher"
            )
        return model.eval().requires_grad_(False)

    @staticmethod
    def _dictionaries(checkpoint: Checkpoint) -> list[list[str]]:
        """The words of a checkpoint's sources and targets, if they are beside it or in the folder of its data."""
        with contextlib.suppress(UserError):
            return [Dictionary.load(str(path)).symbols for path in checkpoint.dictionaries(checkpoint.folder())]
        return []


def _check_teacher(cfg, task, model, criterion):
    if isinstance(criterion, DistillationCriterion) and criterion.weight:
        criterion.load_teacher()


before_training(_check_teacher)  # and not at the first update; a validation needs no teacher
