"""Whether elseq decodes a checkpoint, and as which kind of model, from its configuration and model."""

from argparse import Namespace

from fairseq.models import FairseqEncoderDecoderModel, FairseqLanguageModel
from fairseq.models.bart import BARTModel
from fairseq.models.multilingual_transformer import MultilingualTransformerModel
from fairseq.models.nat import FairseqNATModel
from fairseq.tasks import TASK_REGISTRY

from elseq.compat.checkpoints import unknown
from elseq.compat.settings import model_class, model_name, whole_of
from elseq.errors import UserError

# Tasks of several languages that elseq has as well, as elseq_NAME.
MULTILINGUAL = ("translation_multi_simple_epoch", "translation_from_pretrained_bart", "multilingual_translation")
# Prefixes of the tasks whose checkpoints only these tasks can decode, and the reason.
_ONLY_THEIR_TASK = {
    "translation_multi multilingual translation_from_pretrained online_backtranslation semisupervised_translation "
    "cross_lingual_lm laser": "only it knows the symbols of its languages",
    "translation_moe": "only it knows the symbols of its experts",
    "speech audio hubert simul_speech text_to_speech frm_text_to_speech unpaired_audio image mae_image multimodal": (
        "it is not from text to text"
    ),
}


def check_task(cfg, allow_multilingual: bool = True) -> None:
    """
    Args:
        cfg: the whole configuration of a checkpoint.
        allow_multilingual: whether the checkpoint may be of a task of `MULTILINGUAL`.

    Raises:
        UserError: only the checkpoint's own task, or one that it is derived from, can decode it: mixtures of experts,
            speech, tasks of several languages that are not `MULTILINGUAL`.
    """
    name = task_name(cfg)
    _check_task_name(name)
    if name in MULTILINGUAL and not allow_multilingual:
        raise UserError(
            f"only the task {name} knows the symbols of its languages: decode it by elseq-generate, elseq.load, or "
            f"fairseq's commands with --task elseq_{name}"
        )


def task_name(cfg) -> str | None:
    """The name of a checkpoint's task, without the elseq_ of one of ours.

    Args:
        cfg: the whole configuration of a checkpoint.
    """
    name = getattr(cfg.task, "_name", None) or getattr(cfg.task, "task", None)
    return name.removeprefix("elseq_") if isinstance(name, str) else None


def check_task_of_model(cfg, multilingual_name: str | None) -> None:
    """
    Args:
        cfg: the model's part of a checkpoint's configuration, which fairseq gives to a task.
        multilingual_name: of this task, if it is one of `MULTILINGUAL`.

    Raises:
        UserError: as `check_task`; or this task does not know the symbols of the checkpoint's languages.
    """
    whole = whole_of(cfg)
    name = task_name(Namespace(task=Namespace(task=getattr(cfg, "task", None))) if whole is None else whole)
    _check_task_name(name)
    if name in MULTILINGUAL and name != multilingual_name:
        raise UserError(
            f"only the task {name} knows the symbols of the languages of this checkpoint: give --task elseq_{name}"
        )


def _check_task_name(name: str | None) -> None:
    if name is None or name in MULTILINGUAL:
        return
    # A plugin's task may be derived from one of them.
    lineage = getattr(TASK_REGISTRY.get(name), "__mro__", ())
    names = [name, *(known for known, kind in TASK_REGISTRY.items() if kind in lineage)]
    for beginnings, reason in _ONLY_THEIR_TASK.items():
        if any(each.startswith(tuple(beginnings.split())) for each in names):
            raise UserError(
                f"a checkpoint of the task {name} cannot be converted or decoded by elseq: {reason}; decode it by "
                f"fairseq's commands with --task {name}"
            )


def is_trained_with_bos(cfg) -> bool:
    """Whether a model was trained with <s> before its source and as the first word of its target, as BART was.

    mBART has the same class in fairseq, but was trained with symbols of languages.

    Args:
        cfg: the model's part of a configuration.
    """
    kind = model_class(cfg)
    return kind is not None and issubclass(kind, BARTModel) and not str(model_name(cfg)).startswith("mbart")


def is_of_translation(cfg) -> bool:
    """Whether a checkpoint is of fairseq's own task translation, whose data has no <s>.

    Args:
        cfg: the model's part of a configuration.
    """
    whole = whole_of(cfg)
    task = Namespace(_name=getattr(cfg, "task", None)) if whole is None else whole.task
    return getattr(task, "_name", None) == "translation"


def is_language_model(cfg) -> bool:
    """Whether the model of a configuration is a language model, not an encoder-decoder.

    Args:
        cfg: the model's part of a configuration.

    Raises:
        UserError: the model is neither, or its architecture is unknown.
    """
    kind = model_class(cfg)
    if kind is None:
        raise UserError(unknown("architecture", model_name(cfg)))
    _check_kind(kind)
    return issubclass(kind, FairseqLanguageModel)


def check_model(model, language_model: bool) -> None:
    """
    Args:
        model: a model that fairseq has built.
        language_model: whether the task is for language models.

    Raises:
        UserError: the elseq tasks cannot decode the model, or it needs the other task.
    """
    _check_kind(type(model))
    if isinstance(model, FairseqLanguageModel) != language_model:
        what, task = (
            ("an encoder-decoder", "translation") if language_model else ("a language model", "language_modeling")
        )
        raise UserError(f"the model is {what} ({type(model).__name__}): give --task elseq_{task}")


def _check_kind(kind: type) -> None:
    if issubclass(kind, FairseqNATModel):
        raise UserError(
            f"the model is a {kind.__name__}, which refines its output iteratively: only fairseq decodes it, by "
            "--task translation_lev"
        )
    if not issubclass(kind, FairseqEncoderDecoderModel | FairseqLanguageModel | MultilingualTransformerModel):
        raise UserError(
            f"the model is a {kind.__name__}, which neither translates nor continues a text: give an encoder-decoder "
            "or a language model"
        )
