"""The model that is measured: a checkpoint given or made up, loaded as every mode wants it."""

from argparse import Namespace
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from fairseq import checkpoint_utils, options
from fairseq.data import Dictionary, data_utils
from fairseq.dataclass.configs import GenerationConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_MODEL_REGISTRY, FairseqLanguageModel
from fairseq.models.bart import BARTModel
from omegaconf import OmegaConf

from elseq.compat.commands import import_user_dirs
from elseq.errors import UserError, about
from elseq.models.families import check_task, is_language_model
from elseq.models.stock import EQUIVALENT, model_class, stock_configuration
from elseq.tasks.language_modeling import ElseqLanguageModelingConfig, ElseqLanguageModelingTask
from elseq.tasks.translation import ElseqTranslationConfig, ElseqTranslationTask

SEED = 1
SPECIAL_SYMBOLS = 4  # of every dictionary
_TRANSLATION_OPTIONS = ("left_pad_source", "left_pad_target", "prepend_source_bos", "force_bos")


@dataclass(frozen=True)
class ModelFile:
    """A checkpoint, and what else is needed to load it."""

    name: str
    path: str
    dictionaries: tuple[str, str]  # of source and target
    task_options: dict
    is_language_model: bool
    is_bart: bool
    source_positions: int  # the longest source, special symbols included; 0 for a language model
    target_positions: int
    user_dir: str | None = None  # of the plugin that has its architecture

    def to_dict(self) -> dict:
        return asdict(self)


def random_model(arch: str, vocabulary_size: int, model_options: list[str], folder: Path) -> ModelFile:
    """Write a checkpoint with random weights, the same for the same arguments.

    Args:
        arch: an architecture that fairseq or elseq has registered.
        vocabulary_size: entries of the dictionary, special symbols included.
        model_options: as fairseq-train has them, such as --encoder-layers 2.
        folder: where to write.

    Raises:
        UserError: an unknown architecture or option, or one that cannot be built.
    """
    if arch not in ARCH_MODEL_REGISTRY:
        raise UserError(f"--arch {arch} is unknown; give an architecture of fairseq or elseq, such as bart_base")
    if vocabulary_size <= SPECIAL_SYMBOLS:
        raise UserError(f"--vocabulary-size {vocabulary_size} is too small; give at least {SPECIAL_SYMBOLS + 1}")
    dictionary = Dictionary()
    for number in range(vocabulary_size - len(dictionary)):
        dictionary.add_symbol(f"piece{number}")
    dictionary.save(str(folder / "dict.txt"))
    task_name = "language_modeling" if issubclass(ARCH_MODEL_REGISTRY[arch], FairseqLanguageModel) else "translation"
    cfg = _configuration(["--arch", arch, "--task", task_name, str(folder), *model_options])
    path = folder / "random.pt"
    model_file = _describe(arch, path, cfg, folder)
    task = make_task(model_file, "stock")
    torch.manual_seed(SEED)
    model = task.build_model(cfg.model)
    checkpoint = {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "model": model.state_dict(),
        "optimizer_history": [{"num_updates": 0, "lr_scheduler_state": {}}],
        "extra_state": {},
        "task_state": {},
    }
    torch.save(checkpoint, path)
    return model_file


def checkpoint_model(path: Path, data: Path | None, user_dir: str | None = None) -> ModelFile:
    """Look into a checkpoint.

    Args:
        path: of the checkpoint.
        data: folder of its dictionaries. Default: the checkpoint's own folder.
        user_dir: of a plugin, imported already; other processes will have to.

    Raises:
        UserError: a file that is missing or is no checkpoint, or one without its dictionaries.
    """
    state = checkpoint_utils.load_checkpoint_to_cpu(str(path))
    cfg = state["cfg"] if state.get("cfg") is not None else convert_namespace_to_omegaconf(state["args"])
    return replace(_describe(path.name, path, cfg, data or path.parent), user_dir=user_dir)


def load(model_file: ModelFile, mode: str, for_training: bool = False):
    """The model as a mode decodes it, and its task.

    Args:
        model_file: which model.
        mode: auto, kv or el; or one that begins with stock, which gives fairseq's own modules even to a checkpoint
            that an elseq architecture has trained.
        for_training: leave it in train mode; otherwise it is made to decode, and can do nothing else.
    """
    if model_file.user_dir is not None:
        import_user_dirs(model_file.user_dir)
    is_stock = mode.startswith("stock")
    task = make_task(model_file, "stock" if is_stock else mode)
    if is_stock:
        build = task.build_model
        task.build_model = lambda cfg, from_checkpoint=False: _build_stock(cfg, task, build, from_checkpoint)
    [model], _, _ = checkpoint_utils.load_model_ensemble_and_task([model_file.path], task=task)
    if for_training:
        return model.train(), task
    model.eval()
    model.prepare_for_inference_(Namespace(generation=GenerationConfig()))
    return model, task


def make_task(model_file: ModelFile, decode_attention: str):
    """The elseq task of a model, without data."""
    source, target = (_read_dictionary(Path(path)) for path in model_file.dictionaries)
    kind = ElseqLanguageModelingConfig if model_file.is_language_model else ElseqTranslationConfig
    cfg = kind(**model_file.task_options, decode_attention=decode_attention)
    if model_file.is_language_model:
        return ElseqLanguageModelingTask(cfg, source, target, targets=["future"])
    task = ElseqTranslationTask(cfg, source, target)
    task.has_bart = model_file.is_bart
    return task


def _configuration(arguments: list[str]):
    """The configuration that fairseq-train makes of its command line."""

    def refuse(message: str):
        raise UserError(f"the model options are not fairseq-train's ({message}); see fairseq-train --help")

    parser = options.get_training_parser()
    parser.error = refuse  # in place of argparse's, which prints all options and exits
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, arguments))


def _describe(name: str, path: Path, cfg, data: Path) -> ModelFile:
    with about(path):
        check_task(cfg)
        language_model = is_language_model(cfg.model)
    kept = ("add_bos_token", "output_dictionary_size") if language_model else _TRANSLATION_OPTIONS
    task_options = {key: cfg.task[key] for key in kept if cfg.task.get(key) is not None}
    languages = [None, None]
    if not language_model:
        # The languages are in the checkpoint if its user named them, and always in what fairseq-preprocess wrote.
        named = [cfg.task.get("source_lang"), cfg.task.get("target_lang")]
        languages = named if all(named) or not data.is_dir() else data_utils.infer_language_pair(str(data))
    full = stock_configuration(cfg.model)
    target_positions = getattr(full, "max_target_positions", None) or getattr(full, "tokens_per_sample", None) or 1024
    return ModelFile(
        name=name,
        path=str(path),
        dictionaries=tuple(str(_find_dictionary(data, language)) for language in languages),
        task_options={**task_options, "data": str(data)},
        is_language_model=language_model,
        is_bart=issubclass(model_class(cfg.model), BARTModel),
        source_positions=0 if language_model else getattr(full, "max_source_positions", None) or 1024,
        target_positions=target_positions,
    )


def _find_dictionary(data: Path, language: str | None) -> Path:
    names = ["dict.txt"] if language is None else [f"dict.{language}.txt", "dict.txt"]
    for name in names:
        if (data / name).is_file():
            return data / name
    raise UserError(f"{data} has no {' or '.join(names)}; name the folder of the model's dictionary by --data")


def _read_dictionary(path: Path) -> Dictionary:
    try:
        return Dictionary.load(str(path))
    except OSError as error:
        raise UserError(f"the dictionary {path} cannot be read ({error.strerror}): check --data") from error
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} is not a dictionary of fairseq: name by --data what fairseq-preprocess wrote"
        ) from error


def _build_stock(cfg, task, build, from_checkpoint: bool):
    for stock, ours in EQUIVALENT.items():
        if model_class(cfg) is ours:
            args = stock_configuration(cfg)
            args.task = getattr(args, "task", None)
            return stock.build_model(args, task)
    return build(cfg, from_checkpoint)
