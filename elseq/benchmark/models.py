"""The model that is measured: a checkpoint given or made up, loaded as every mode wants it."""

import contextlib
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from fairseq import options
from fairseq.data import Dictionary
from fairseq.dataclass.configs import GenerationConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_MODEL_REGISTRY, FairseqLanguageModel

from elseq.compat.saving import save_archive
from elseq.errors import UserError, as_keyword, renamed
from elseq.interop.checkpoints import make_checkpoint, plain_configuration
from elseq.loading import Checkpoint, import_plugins
from elseq.models.stock import stock_configuration
from elseq.options import STOCK, Loading
from elseq.precision import INT8

SEED = 1
SPECIAL_SYMBOLS = 4  # of every dictionary


@dataclass(frozen=True)
class ModelFile:
    """A checkpoint, and the properties that are needed before another process loads it."""

    name: str
    path: str
    data: str  # folder of the dictionaries
    dictionary: str  # file of the source's dictionary
    target_dictionary: str
    is_language_model: bool
    special_positions: int  # of a source, for symbols that are no words: its end or the prompt's beginning, BART's <s>
    source_positions: int  # the longest source, special symbols included; 0 for a language model
    target_positions: int
    user_dir: str | None = None  # of a plugin that other processes will import, too
    source_lang: str | None = None  # as they were given
    target_lang: str | None = None
    symbols_of_language: tuple[int, ...] = ()  # rows of the target's dictionary that texts do not have

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
        UserError: an unknown architecture or option, or one that cannot be built or written.
    """
    if arch not in ARCH_MODEL_REGISTRY:
        raise UserError(f"{arch} is unknown; give an architecture of fairseq or elseq, such as bart_base", "arch")
    if vocabulary_size <= SPECIAL_SYMBOLS:
        raise UserError(f"{vocabulary_size} is too small; give at least {SPECIAL_SYMBOLS + 1}", "vocabulary_size")
    dictionary = Dictionary()
    for number in range(vocabulary_size - len(dictionary)):
        dictionary.add_symbol(f"piece{number}")
    with _room_in(folder):
        dictionary.save(str(folder / "dict.txt"))
    is_language_model = issubclass(ARCH_MODEL_REGISTRY[arch], FairseqLanguageModel)
    task_name = "language_modeling" if is_language_model else "translation"
    cfg = _configuration(["--arch", arch, "--task", task_name, str(folder), *model_options])
    checkpoint = Checkpoint(folder / "random.pt", {"cfg": cfg}, is_language_model)
    task = checkpoint.build_task(folder, checkpoint.dictionaries(folder), STOCK)
    torch.manual_seed(SEED)
    model = task.build_model(cfg.model)
    with _room_in(folder), open(checkpoint.path, "wb") as file:
        save_archive(make_checkpoint(plain_configuration(cfg), model.state_dict()), file)
    return _describe(arch, checkpoint, Loading(data=folder))


@contextlib.contextmanager
def _room_in(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the model cannot be written to {folder} ({error.strerror}): set TMPDIR to a folder that has room for it"
        ) from error


def checkpoint_model(
    path: Path,
    data: Path | None,
    user_dir: str | None = None,
    source_lang: str | None = None,
    target_lang: str | None = None,
) -> ModelFile:
    """Look into a checkpoint.

    Args:
        path: of the checkpoint, or of its folder.
        data: folder of its dictionaries. Default: the checkpoint's own folder, else that of its training.
        user_dir: of a plugin, imported already; other processes will import it, too.
        source_lang, target_lang: as in `Loading`.

    Raises:
        UserError: a file that is missing or is no checkpoint, one without its dictionaries, or a language that is
            missing or is not the model's.
    """
    checkpoint = Checkpoint.read(path)
    loading = Loading(data=data, source_lang=source_lang, target_lang=target_lang)
    with renamed(as_keyword):
        return replace(_describe(checkpoint.path.name, checkpoint, loading), user_dir=user_dir)


def load(
    model_file: ModelFile,
    mode: str,
    device: str = "cpu",
    dtype: str = "float32",
    for_training: bool = False,
    **options,
):
    """The model as a mode decodes it, and its task.

    Args:
        model_file: which model.
        mode: auto or a decoding method; or one that begins with stock, which gives fairseq's own modules even to a
            checkpoint that an elseq architecture has trained.
        device, dtype: as for `Checkpoint.build_model`.
        for_training: leave it in train mode; otherwise it is made to decode, and can do nothing else.
        options: others of the task.
    """
    import_plugins(model_file.user_dir)
    checkpoint = Checkpoint.read(model_file.path)
    is_stock = mode.startswith(STOCK)
    if is_stock:
        checkpoint = checkpoint.as_stock()
    languages = {"source_lang": model_file.source_lang, "target_lang": model_file.target_lang}
    loading = Loading(STOCK if is_stock else mode, **languages)
    decode_dtype = INT8 if dtype == INT8 else None  # the others are those of the parameters
    task, _ = checkpoint.task_by(loading, Path(model_file.data), decode_dtype=decode_dtype, **options)
    model = checkpoint.build_model(task, device, dtype, only_decodes=not for_training)
    if for_training:
        return model.train(), task
    model.eval()
    model.prepare_for_inference_(Namespace(generation=GenerationConfig()))
    return model, task


def _configuration(arguments: list[str]):
    """The configuration that fairseq-train makes of its command line."""

    def refuse(message: str):
        raise UserError(f"the model options are not fairseq-train's ({message}); see fairseq-train --help")

    parser = options.get_training_parser()
    parser.error = refuse  # in place of argparse's, which prints all options and exits
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, arguments))


def _describe(name: str, checkpoint: Checkpoint, loading: Loading) -> ModelFile:
    folder = checkpoint.folder(loading.data)
    task, (source, target) = checkpoint.task_by(replace(loading, attention=STOCK), folder)
    is_language_model = checkpoint.is_language_model
    languages = "-".join(filter(None, task.languages_of_texts))
    full = stock_configuration(checkpoint.cfg.model)
    target_positions = getattr(full, "max_target_positions", None) or getattr(full, "tokens_per_sample", None) or 1024
    return ModelFile(
        name=f"{name} ({languages})" if languages else name,
        path=str(checkpoint.path),
        data=str(folder),
        dictionary=str(source),
        target_dictionary=str(target),
        is_language_model=is_language_model,
        special_positions=1 + task.symbols_of_source,
        source_positions=0 if is_language_model else getattr(full, "max_source_positions", None) or 1024,
        target_positions=target_positions,
        source_lang=loading.source_lang,
        target_lang=loading.target_lang,
        symbols_of_language=tuple(sorted(task.symbols_of_language)),
    )
