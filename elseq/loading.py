"""Loads a checkpoint, its dictionaries, its task and its model, for every command. `elseq.options` has the options."""

import contextlib
import filecmp
import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import torch
from fairseq import checkpoint_utils, utils
from fairseq.data import Dictionary, data_utils
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from elseq.compat.commands import import_user_dirs
from elseq.compat.parameters import Adoption, WithoutRandomNumbers
from elseq.compat.settings import is_replaced, model_class, values
from elseq.compat.stored_tensors import StoredTensors
from elseq.errors import UserError, about, as_option
from elseq.files import check_ordinary, read_lines
from elseq.generation.options import STOPPING_OPTIONS
from elseq.heap import give_back_memory
from elseq.interop.checkpoints import to_stock
from elseq.model_files import DICTIONARIES, SUBWORDS
from elseq.models.families import check_task, is_language_model, task_name
from elseq.models.stock import EQUIVALENT
from elseq.models.transformer import Decoder
from elseq.options import CHECKPOINT_NAMES, OF_TASK, OF_TRANSLATION, Loading, as_path
from elseq.precision import DTYPES, INT8, prepared
from elseq.tasks import ElseqLanguageModelingTask, ElseqTranslationTask
from elseq.tasks.decoding import OPTIONS_OF_WINDOWS, DecodingTask, check_options, first_few
from elseq.tasks.language_modeling import ElseqLanguageModelingConfig
from elseq.tasks.multilingual import MULTILINGUAL_TASKS, MultilingualTask
from elseq.tasks.translation import ElseqTranslationConfig

# Options of a checkpoint's task that the model reads itself, or that each search, loading or training sets.
_NOT_OF_THE_TASK = {*STOPPING_OPTIONS, *OPTIONS_OF_WINDOWS, *OF_TASK}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that elseq can decode, as it was read."""

    path: Path
    state: dict  # as `fairseq.checkpoint_utils.load_checkpoint_to_cpu` returns it
    is_language_model: bool
    stored: StoredTensors = field(default_factory=StoredTensors)  # the tensors of `state` that are in the file

    @classmethod
    def read(cls, path: str | Path, allow_multilingual: bool = True, stays_in_file: bool = True) -> "Checkpoint":
        """
        Args:
            path: the checkpoint, or a folder with model.pt, checkpoint_best.pt or checkpoint_last.pt.
            allow_multilingual: whether it may be of a task of several languages.
            stays_in_file: the tensors do, and `build_model` reads those of the model.

        Raises:
            UserError: a file that is missing or cannot be used, or a model that elseq does not decode.
        """
        path, stored = checkpoint_path(path), StoredTensors()
        with stored.loading() if stays_in_file else contextlib.nullcontext():
            state = checkpoint_utils.load_checkpoint_to_cpu(str(path))
        with about(path):
            check_task(state["cfg"], allow_multilingual)
            language_model = is_language_model(state["cfg"].model)
        return cls(path, state, language_model, stored)

    @property
    def cfg(self):
        """The whole configuration."""
        return self.state["cfg"]

    @property
    def bpe(self) -> str | None:
        """The kind of the subword vocabulary, where the training had --bpe."""
        bpe = getattr(self.cfg, "bpe", None)
        return bpe if isinstance(bpe, str) else getattr(bpe, "_name", None)

    def as_stock(self) -> "Checkpoint":
        """The checkpoint with an architecture of fairseq instead of one of elseq.

        Raises:
            UserError: fairseq has no equivalent of the model.
        """
        if model_class(self.cfg.model) not in EQUIVALENT.values():
            return self
        state = to_stock(self.state)
        state["cfg"] = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
        return replace(self, state=state)

    def folder(self, data: str | Path | None = None) -> Path:
        """The folder of the dictionaries: `data`, otherwise the checkpoint's, otherwise that of its training data.

        Raises:
            UserError: none of them has a dictionary, or a file there is a pipe or a device.
        """
        paths = map(self._path_of_training, ("fixed_dictionary", "source_dict", "target_dict"))
        named = list(dict.fromkeys(path for path in paths if path is not None))
        if data is not None:
            folders = [as_path(data, "data")]
        else:
            folders = [self.path.parent, *(Path(folder) for folder in self._trained_on()[:1])]
        for folder in folders:
            with contextlib.suppress(OSError, ValueError):  # an invalid path, or one that is too long
                if _has_dictionaries(folder, named):
                    return folder
        names, looked = DICTIONARIES, " and ".join(map(str, folders))
        if named:
            names += f", or {' and '.join(path.name for path in named)} of the training"
        if data is not None:
            raise UserError(f"{looked} holds no dictionary ({names}); name another folder", "data")
        raise UserError(f"is missing, and no dictionary ({names}) was found in {looked}; name its folder", "data")

    def _trained_on(self) -> list[str]:
        return utils.split_paths(str(getattr(self.cfg.task, "data", "") or ""))

    @property
    def multilingual_task(self) -> type[MultilingualTask] | None:
        """The task of several languages that the checkpoint is of."""
        return MULTILINGUAL_TASKS.get(task_name(self.cfg))

    @property
    def has_words_of_languages(self) -> bool:
        """Whether the languages are words that options of the translation task put around texts, as from-hf records
        them."""
        return any(getattr(self.cfg.task, option, None) is not None for option in ("source_start", "source_end"))

    def languages(self, folder: Path, source: str | None = None, target: str | None = None) -> tuple[str | None, ...]:
        """The languages of source and target: those given, otherwise as in the checkpoint, otherwise as in the names of
        its data files, otherwise None.

        Args:
            folder: see `folder`.
            source, target: the ones given.

        Raises:
            UserError: the model has no languages, or a language of a model that is not multilingual has no dictionary.
        """
        if self.is_language_model:
            if given := source or target:
                raise UserError(f"{given} is for a model that translates, and this is a language model", "source_lang")
            return None, None
        for language, option in ((source, "source_lang"), (target, "target_lang")):
            file = f"dict.{language}.txt"
            if language is not None and not self.multilingual_task and not os.path.exists(folder / file):
                known = sorted(path.name[len("dict.") : -len(".txt")] for path in folder.glob("dict.?*.txt"))
                instead = f"give one of {first_few(known)}" if known else "leave it out"
                raise UserError(f"{language} does not name a dictionary, {file}, in {folder}: {instead}", option)
        trained = (getattr(self.cfg.task, f"{side}_lang", None) for side in ("source", "target"))
        languages = tuple(given or known for given, known in zip((source, target), trained, strict=True))
        if None not in languages or self.multilingual_task:
            return languages
        # The training may have inferred them from the names of the data files.
        places = (folder, *self._trained_on())
        found = (data_utils.infer_language_pair(str(place)) for place in places if os.path.isdir(place))
        pair = next((pair for pair in found if None not in pair), languages)
        return tuple(language or other for language, other in zip(languages, pair, strict=True))

    def dictionaries(self, folder: Path, languages: tuple[str | None, ...] | None = None) -> tuple[Path, Path]:
        """The dictionary files of source and target; for a language model, the same file twice.

        Args:
            folder: see `folder`.
            languages: those of `languages`.

        Raises:
            UserError: files are missing or ambiguous.
        """
        if self.is_language_model:
            return (folder / "dict.txt",) * 2
        languages = languages or self.languages(folder)
        sides = dict(zip(("source", "target"), languages, strict=True))
        named = {
            side: self._dictionary_of_training(side, folder) or folder / f"dict.{language}.txt"
            for side, language in sides.items()
        }
        missing = [side for side, path in named.items() if not os.path.exists(path)]
        present = sorted(folder.glob(DICTIONARIES))
        if missing and len({path.read_bytes() for path in present}) == 1:  # source and target share one
            named |= dict.fromkeys(missing, present[0])
        elif missing and present:
            names = ", ".join(path.name for path in present)
            raise UserError(
                f"is missing, and which of {names} in {folder} is the {missing[0]}'s is not known",
                f"{missing[0]}_lang",
            )
        elif missing and sides[missing[0]] is None:
            raise UserError(f"is missing, and {folder} has no dictionary of the {missing[0]}", f"{missing[0]}_lang")
        elif missing:
            raise UserError(f"{folder} holds no {named[missing[0]].name}, the {missing[0]} dictionary: copy it there")
        return named["source"], named["target"]

    def _dictionary_of_training(self, side: str, folder: Path) -> Path | None:
        """The file that the training of a multilingual model named for all languages of a side, if it did.

        Raises:
            UserError: it has no file of this name.
        """
        own = self._named(f"{side}_dict", folder, f"the {side} dictionary")
        # Without that of all languages the files of the folder are read.
        return self._named("fixed_dictionary", folder) if own is None else own

    def list_of_languages(self, folder: Path) -> Path | None:
        """The file with the codes of languages that the training of a multilingual model named, if it did.

        Args:
            folder: see `folder`.

        Raises:
            UserError: there is no file of this name.
        """
        return self._named("lang_dict", folder, "the list of languages")

    def _named(self, option: str, folder: Path, what: str | None = None) -> Path | None:
        """The file that an option of the training names: the one of its name in the folder, otherwise itself, or None.

        Args:
            option: of the task.
            folder: see `folder`.
            what: what it is, in the error if there is no such file. Default: that is no error.

        Raises:
            UserError: the option is no path, or the file is a pipe or a device, or is missing.
        """
        path = self._path_of_training(option)
        if path is None:
            return None
        found = next((each for each in (folder / path.name, path) if os.path.isfile(each)), None)
        check_ordinary(path if found is None else found)
        if found is None and what is not None:
            raise UserError(f"{path.name} was {what} of the training and is not in {folder}: copy it there")
        return found

    def _path_of_training(self, option: str) -> Path | None:
        """The path in an option of the training of a multilingual model.

        Raises:
            UserError: the option is no path of a file.
        """
        value = getattr(self.cfg.task, option, None) if self.multilingual_task else None
        if value in (None, ""):
            return None
        path = as_path(value, option)
        if not path.name:
            raise UserError(f"{path} names no file", option)
        return path

    def build_task(self, folder: Path, dictionaries: tuple[Path, Path], attention: str, **options):
        """The elseq task for the checkpoint, without data, with the options of its training.

        Args:
            folder: see `folder`.
            dictionaries: see `dictionaries`.
            attention: a value of --decode-attention.
            options: other options of `elseq.tasks.decoding.DecodingConfig`.

        Raises:
            UserError: an option of the checkpoint or of the arguments cannot be used.
        """
        if self.multilingual_task:
            return self._build_multilingual_task(folder, dictionaries, attention, **options)
        config = ElseqLanguageModelingConfig if self.is_language_model else ElseqTranslationConfig
        names = {field.name for field in fields(config)} - _NOT_OF_THE_TASK
        trained = self.cfg.task
        trained = vars(trained) if isinstance(trained, Namespace) else OmegaConf.to_container(trained)
        settings = {name: value for name, value in trained.items() if name in names and not name.startswith("eval_")}
        given = {"data": str(folder), "decode_attention": attention, "decode_dtype": None, **options}
        for name, value in given.items():
            if is_replaced(value):
                raise UserError(f"{value!r:.60} is not possible: give one without ${{ and ???", as_option(name))
        settings |= given
        try:
            defaults = OmegaConf.to_container(OmegaConf.structured(config), resolve=False)
            cfg = OmegaConf.create({**defaults, **settings})
        except OmegaConfBaseException as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"the task's settings in the checkpoint cannot be used ({reason}): it was changed"
            ) from error
        check_options(cfg)
        source, target = _load_dictionaries(dictionaries)
        if self.is_language_model:
            return ElseqLanguageModelingTask(cfg, source)
        task = ElseqTranslationTask(cfg, source, target)
        task.note_bos(self.cfg.model)
        return task

    def task_by(self, loading: Loading, folder: Path, **options) -> tuple[DecodingTask, tuple[Path, Path]]:
        """The task, in the languages of the options, and the files of its dictionaries.

        Args:
            loading: how the checkpoint is loaded.
            folder: see `folder`.
            options: others of `elseq.tasks.decoding.DecodingConfig`.

        Raises:
            UserError: as `languages`, `dictionaries` and `build_task`.
        """
        given = loading.source_lang, loading.target_lang
        by_words = self.has_words_of_languages and any(given)
        source, target = languages = self.languages(folder, *(() if by_words else given))
        dictionaries = self.dictionaries(folder, languages)
        options = loading.of_task() | options
        if self.is_language_model or self.multilingual_task:
            for name in OF_TRANSLATION:
                if name in options:
                    raise UserError("is for a model of the task translation: leave it out", name)
        if not self.is_language_model:
            options |= {"source_lang": source, "target_lang": target}
        task = self.build_task(folder, dictionaries, loading.attention, **options)
        return task.for_languages(*given) if by_words else task, dictionaries

    def _build_multilingual_task(self, folder: Path, dictionaries: tuple[Path, Path], attention: str, **options):
        """See `build_task`."""
        settings = self.multilingual_task.defaults(str(folder)) | {"seed": 1}
        trained = {name: value for name, value in values(self.cfg.task).items() if name in settings}
        settings |= {name: value for name, value in trained.items() if name not in _NOT_OF_THE_TASK}
        settings |= {"data": str(folder), "decode_attention": attention, "decode_dtype": None, **options}
        if settings.get("lang_dict"):
            settings["lang_dict"] = str(self.list_of_languages(folder))
        args = Namespace(**settings)
        check_options(args)
        self.multilingual_task.check_languages(args, needed=True)
        return self.multilingual_task.of_dictionaries(args, *_load_dictionaries(dictionaries))

    def build_model(
        self, task, device: str | torch.device = "cpu", dtype: str | None = None, only_decodes: bool = False
    ):
        """The model as the task decodes it. A second one needs another `read`.

        Args:
            task: of `build_task`.
            device: where it is.
            dtype: the type of its parameters, a value of --dtype. Default: float32 for any checkpoint.
            only_decodes: it is never trained, so that int8 weights can replace its own at once.

        Raises:
            UserError: the checkpoint does not fit the task, or the task cannot decode it; or its file has changed.
        """
        adoption = Adoption(self.stored)
        read = partial(adoption.read, device=device, dtype=DTYPES[dtype or "float32"])
        with adoption.active(), WithoutRandomNumbers():
            (model,), _ = checkpoint_utils.load_model_ensemble([str(self.path)], task=task, state=self.state)
        self.state["model"].clear()  # whoever else holds it: a weight that the model drops is to be gone
        if dtype == INT8 and only_decodes and _calls_linear_layers(model):
            read(next(model.parameters()))  # whose type and device count as those of all
            precision = prepared(model, dtype)
            precision.fresh_parameters = partial(_parameters, self.path.absolute(), self.stored.status, task)
            precision.make_products(read)
        for tensor in (*model.parameters(), *model.buffers()):
            read(tensor)
        self.stored.check_unchanged()
        give_back_memory()
        return model


@contextlib.contextmanager
def on_cpu_by_default() -> Iterator[None]:
    """What is made without a device is on the CPU, as texts and weights are at first, whatever
    `torch.set_default_device` says."""
    # torch 2.6 has no `get_default_device` after `set_default_device(None)`.
    with contextlib.nullcontext() if torch.empty(0).is_cpu else torch.device("cpu"):
        yield


def _calls_linear_layers(model) -> bool:
    """Whether a model is one of elseq's that calls its linear layers, but for those of which `PreparedModel` knows.
    A top-k feed-forward layer reads their weights."""
    has_top_k = any(getattr(module, "ffn_top_k", None) for module in model.modules())
    return isinstance(getattr(model, "decoder", None), Decoder) and not has_top_k


@torch.inference_mode(False)  # a copy of the model may be made in it
@on_cpu_by_default()
def _parameters(path: Path, status: tuple | None, task) -> dict[str, torch.Tensor]:
    """Of a checkpoint, once more.

    Args:
        path: of the file.
        status: of the tensors that were stored in it.
        task: of the model.

    Raises:
        UserError: the file has changed, or cannot be read.
    """
    checkpoint = Checkpoint.read(path)
    if checkpoint.stored.status != status:
        raise UserError(f"{path} has changed since the model was loaded, and has other weights: load the model again")
    return dict(checkpoint.build_model(task).named_parameters())


def _load_dictionaries(paths: tuple[Path, Path]) -> tuple[Dictionary, Dictionary]:
    """The dictionaries of source and target. Equal files are read once: the 250,000 words of mBART-50 take a while."""
    source = Dictionary.load(str(paths[0]))
    if paths[1].is_file() and filecmp.cmp(*paths, shallow=False):
        return source, source
    return source, Dictionary.load(str(paths[1]))


def import_plugins(user_dir: str | Path | None) -> None:
    """Import the folders of plugins, separated by colons. Call it before names are looked up.

    Raises:
        UserError: a folder that cannot be imported.
    """
    if user_dir is not None:
        import_user_dirs(str(as_path(user_dir, "user_dir")))


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device. Default: the first GPU if there is one, otherwise the CPU.

    Raises:
        UserError: the device does not exist or cannot compute.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        probe = torch.zeros(1, device=device)
        probe.cpu()  # fails for the device meta
        return probe.device
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:  # torch raises different errors
        found = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise UserError(f"{str(device)!r} cannot be used; there is {', '.join(found)}", "device") from error


def usable_dtype(dtype: str | torch.dtype | None) -> str | None:
    """Its name.

    Raises:
        UserError: a model cannot be decoded in this type.
    """
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    is_known = name is None or isinstance(name, str) and name in DTYPES
    if not is_known or dtype is torch.int8:  # the weights are not all of that type
        raise UserError(f"{dtype!r} cannot be used; give one of {', '.join(DTYPES)}", "dtype")
    return name


def load_language_model(
    path: str | Path, target: Path, attention: str, device: str | torch.device = "cpu", dtype: str | None = None
) -> tuple:
    """A language model for fusion, and the file of its dictionary.

    Args:
        path: its checkpoint.
        target: the dictionary file of the search's model, for a checkpoint without a dict.txt beside it or its
            training data.
        attention: a value of --decode-attention.
        device, dtype: as for `Checkpoint.build_model`.

    Raises:
        UserError: the checkpoint is no language model, or cannot be loaded with the dictionary.
    """
    checkpoint = Checkpoint.read(path)
    if not checkpoint.is_language_model:
        raise UserError(f"{checkpoint.path} is no language model: give one", "lm_path")
    dictionary = target
    with contextlib.suppress(UserError):
        if (own := checkpoint.folder() / "dict.txt").exists():
            dictionary = own  # fairseq's check for equal dictionaries reads it
    task = checkpoint.build_task(dictionary.parent, (dictionary,) * 2, attention)
    return checkpoint.build_model(task, device, dtype), dictionary


def _has_dictionaries(folder: Path, named: Sequence[Path]) -> bool:
    """Whether a folder has dictionaries.

    Args:
        folder: the folder.
        named: files that are dictionaries beside those of `DICTIONARIES`: those of their names in the folder, or they
            themselves.

    Raises:
        UserError: it has, and one of them or of its subword vocabularies is a pipe or a device.
    """
    files = (each for path in named for each in (folder / path.name, path))
    if not any(folder.glob(DICTIONARIES)) and not any(map(os.path.isfile, files)):
        return False
    for pattern in (DICTIONARIES, *SUBWORDS):
        for path in folder.glob(pattern):
            check_ordinary(path)
    return True


def check_same_kind(first: Checkpoint, other: Checkpoint) -> None:
    """Check that two checkpoints can be an ensemble, before their tasks are built.

    Raises:
        UserError: one is a language model, or they are of different tasks of several languages.
    """
    if other.is_language_model != first.is_language_model:
        raise UserError(f"{other.path} and {first.path} are no ensemble: one is a language model; give one of them")
    if other.multilingual_task is not first.multilingual_task:
        raise UserError(
            f"{other.path} and {first.path} are no ensemble: their tasks put symbols of languages elsewhere; "
            "give one of them"
        )


def check_same_task(
    of_first: tuple[Checkpoint, DecodingTask, tuple[Path, Path]],
    of_other: tuple[Checkpoint, DecodingTask, tuple[Path, Path]],
) -> None:
    """Check that two checkpoints can be an ensemble.

    Args:
        of_first, of_other: checkpoint, task, and the files of its dictionaries.

    Raises:
        UserError: they read or write text in different words.
    """
    (first, task, first_files), (other, others, other_files) = of_first, of_other
    for side, *files in zip(("source", "target"), other_files, first_files, strict=True):
        difference = _difference(*(getattr(each, f"{side}_dictionary") for each in (others, task)), *files)
        if difference is not None:
            raise UserError(f"{other.path} and {first.path} are no ensemble: {difference}; give one of them")
    names = [
        "symbols_around_source",
        "first_target_symbol",
        "score_target_start",
        "places_of_languages",
        "prompt_start",
    ]
    if first.multilingual_task is None:  # else the symbol is that of the language
        names.append("decoder_start_symbol")
    for name in names:
        if getattr(others, name, None) != getattr(task, name, None):
            raise UserError(
                f"{other.path} and {first.path} are no ensemble: their texts have different symbols; give one of them"
            )


def _difference(one: Dictionary, another: Dictionary, one_file: Path, another_file: Path) -> str | None:
    """In which word two dictionaries differ first, or else how many they have; None if they are equal."""
    if one.symbols == another.symbols:
        return None
    # without the words that a task adds for its languages
    sizes = [sum(1 for _ in read_lines(file)) for file in (one_file, another_file)]
    first = one.nspecial
    words = zip(one.symbols[first:], another.symbols[first:], range(1, min(sizes) + 1), strict=False)
    for mine, other, number in words:
        if mine != other:
            return f"word {number} of {one_file} is {mine!r:.60}, and of {another_file} {other!r:.60}"
    if sizes[0] != sizes[1]:
        return f"{one_file} has {sizes[0]} words, and {another_file} {sizes[1]}"
    return "they are of other languages"


def checkpoint_paths(path: str | Path) -> list[Path]:
    """The files of an ensemble, separated by colons, or of one checkpoint.

    Raises:
        UserError: a folder has no checkpoint, or the argument is not a path.
    """
    path = as_path(path, "path")
    parts = [str(path)] if os.path.exists(path) else utils.split_paths(str(path))
    return [checkpoint_path(part) for part in parts]


def checkpoint_path(path: str | Path) -> Path:
    """The file of a checkpoint: the path itself, or a file in the folder.

    Raises:
        UserError: the folder has no checkpoint, or the argument is not the path of one.
    """
    path = as_path(path, "path")
    parts = utils.split_paths(str(path))
    if len(parts) > 1 and not os.path.exists(path):
        raise UserError(f"{path} names {len(parts)} checkpoints; give one")
    if not os.path.isdir(path):
        return path
    for name in CHECKPOINT_NAMES:
        if (path / name).exists():
            return path / name
    if (path / "config.json").exists():
        raise UserError(
            f"{path} is a model of Hugging Face's transformers: give the folder that `elseq-convert from-hf {path} "
            "--output DIR` writes"
        )
    raise UserError(f"{path} holds none of {', '.join(CHECKPOINT_NAMES)}; give the path of a checkpoint")
