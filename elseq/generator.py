"""`elseq.load`: a fairseq checkpoint, ready to turn text into text."""

import contextlib
import logging
import os
import random
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from fairseq import checkpoint_utils, utils
from fairseq.data import Dictionary, data_utils, encoders
from fairseq.dataclass.configs import GenerationConfig
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from elseq.errors import UserError, renamed
from elseq.files import check_ordinary
from elseq.generation.batches import SplittingDecoder, cut_batches
from elseq.generation.budget import capacity, read_bytes
from elseq.generation.options import search_configuration
from elseq.interop.stock import model_class
from elseq.tasks import ElseqLanguageModelingTask, ElseqTranslationTask
from elseq.tasks.decoding import DECODE_ATTENTION, check_choice, check_options
from elseq.tasks.language_modeling import ElseqLanguageModelingConfig
from elseq.tasks.translation import ElseqTranslationConfig

logger = logging.getLogger(__name__)

CHECKPOINT_NAMES = ("model.pt", "checkpoint_best.pt", "checkpoint_last.pt")
DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}


class TextGenerator:
    """A model with its dictionaries and its subword vocabulary. `elseq.load` makes one."""

    def __init__(self, model, task, bpe=None):
        """
        Args:
            model: a fairseq model.
            task: an ElseqTranslationTask or ElseqLanguageModelingTask.
            bpe: something with `encode` and `decode`, as fairseq.data.encoders makes it; None: text is pieces already.
        """
        self.model = model.eval()
        self.task = task
        self.bpe = bpe
        model.make_generation_fast_()

    def generate(
        self,
        texts: Iterable[str],
        *,
        max_tokens: int = 4096,
        memory_budget: int | str | None = None,
        truncate: bool = False,
        progress: bool | None = None,
        seed: int | None = None,
        **options,
    ) -> list[str] | list[list[str]]:
        """Generate for each text; for a language model, what follows it.

        Args:
            texts: the sources, or the prompts. A blank one gives a blank result.
            max_tokens: size of a batch: sentences times the longest source, in tokens.
            memory_budget: bytes that a batch may take beside the model, such as "16G", instead of max_tokens; what
                counts is in `elseq.generation.budget.batch_bytes`.
            truncate: shorten a source that the model's positions cannot hold, rather than refuse it.
            progress: show a progress bar. Default: if standard error is a terminal.
            seed: of the random numbers, for sampling.
            options: those of fairseq-generate that decide which hypotheses are found, by their names there:
                `elseq.generation.options.SEARCH_OPTIONS`.

        Returns:
            One string for each text, in their order; with nbest above 1, lists of strings, best first.

        Raises:
            UserError: an option that is unknown or does not go together with another, something that is no list of
                strings, or a text that is too long.
        """
        if isinstance(texts, str):
            raise UserError("generate takes a list of texts and was given one string; put it into a list")
        if not isinstance(texts, Iterable):
            raise UserError(f"generate takes a list of texts and was given {texts!r}")
        texts = list(texts)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"text {index} is of type {type(text).__name__}; give strings")
        cfg = search_configuration(options)
        check_max_tokens(max_tokens)
        nbest = cfg.nbest
        search = self.make_search(cfg)
        results: list = ["" if nbest == 1 else [""] for _ in texts]
        encoded = {}
        for index, text in enumerate(texts):
            if text.strip():
                encoded[index], _ = self.encode(text, search, f"text {index}", truncate, "set truncate=True")
        lengths = [encoded[index].numel() if index in encoded else 0 for index in range(len(texts))]
        decode = self.batch_decoder(search, encoded, lengths, lambda index: f"text {index}", seed)
        with tqdm(total=len(texts), unit=" texts", disable=None if progress is None else not progress) as bar:
            bar.update(len(texts) - len(encoded))
            for batch in self.cut_batches(search, lengths, max_tokens, memory_budget, lambda index: f"text {index}"):
                for part, hypotheses in decode(batch):
                    for index, found in zip(part, hypotheses, strict=True):
                        strings = [self.text(hypothesis["tokens"]) for hypothesis in found[:nbest]]
                        results[index] = strings[0] if nbest == 1 else strings
                    bar.update(len(part))
        return results

    # What `generate` is made of; the command elseq-generate is made of the same.

    def make_search(self, cfg: GenerationConfig):
        """The generator, fairseq's or ours, that searches as `search_configuration` has it."""
        with renamed(_as_keyword):
            return self.task.build_generator([self.model], cfg)

    def encode(self, text: str, search, name: str, truncate: bool, remedy: str) -> tuple[torch.Tensor, bool]:
        """The tokens of a text, the end symbol included, and whether they were cut.

        Args:
            text: not blank.
            search: see `make_search`.
            name: what to call the text in an error.
            truncate: cut it where the model's positions end.
            remedy: what to do else.

        Raises:
            UserError: a text that is too long and not to be cut.
        """
        pieces = self.bpe.encode(text) if self.bpe else text
        tokens = self.task.source_dictionary.encode_line(pieces, add_if_not_exist=False).long()
        positions = utils.resolve_max_positions(self.task.max_positions(), self.model.max_positions())
        # A prompt shares the positions with its continuation.
        room = self._symbols_before() if hasattr(self.model, "encoder") else max(1, search.min_len)
        limit = (positions[0] if isinstance(positions, tuple) else positions) - room
        if tokens.numel() <= limit:
            return tokens, False
        if limit < 1 or not truncate:
            raise UserError(
                f"{name} has {tokens.numel()} tokens and the model takes {max(limit, 0)}; shorten it or {remedy}"
            )
        return torch.cat((tokens[: limit - 1], tokens[-1:])), True

    def cut_batches(
        self,
        search,
        lengths: Sequence[int],
        max_tokens: int,
        memory_budget: int | str | None,
        name: Callable[[int], str],
    ) -> list[np.ndarray]:
        """The batches in which encoded texts are decoded: arrays of their numbers.

        Args:
            search: see `make_search`.
            lengths: tokens of each text; 0: a blank one, which is in no batch.
            max_tokens, memory_budget: as for `generate`.
            name: what to call a text in an error, given its number.

        Raises:
            UserError: a budget that is none, or is too small for a text, or that this model cannot be held to.
        """
        if memory_budget is None:
            return cut_batches(lengths, lambda length: max(1, max_tokens // length))
        lengths = np.asarray(lengths)
        sentences = capacity(
            self.model,
            search,
            read_bytes(str(memory_budget)),
            lambda length: name(int(np.argmax(lengths == length))),
            self._symbols_before(),
        )
        return cut_batches(lengths, sentences)

    def _symbols_before(self) -> int:
        """How many symbols the task puts before a source: the <s> of a BART."""
        return int(getattr(self.task, "prepend_source_bos", False))

    def batch_decoder(
        self,
        search,
        sources: Mapping[int, torch.Tensor],
        lengths: Sequence[int],
        name: Callable[[int], str],
        seed: int | None,
    ) -> SplittingDecoder:
        """What decodes a batch, given the numbers of its texts, and in parts where memory does not suffice.

        Args:
            search: see `make_search`.
            sources: the tokens of each text.
            lengths: how many they are.
            name: what to call a text in an error, given its number.
            seed: of the random numbers. Those of a batch depend on it and on the batch alone, not on what was decoded
                before.
        """

        def decode(numbers: list[int]) -> list[list[dict]]:
            if seed is not None:
                utils.set_torch_seed(random.Random(f"{seed} {numbers[0]}").getrandbits(63))
            return self._decode(search, [sources[number] for number in numbers])

        return SplittingDecoder(decode, lengths, name)

    def _decode(self, search, sources: list[torch.Tensor]) -> list[list[dict]]:
        """The hypotheses of each source of a batch, in their order."""
        dataset = self.task.build_dataset_for_inference(sources, [source.numel() for source in sources])
        sample = dataset.collater([dataset[index] for index in range(len(dataset))])
        place = {number: row for row, number in enumerate(sample["id"].tolist())}
        device = next(self.model.parameters()).device
        sample = utils.apply_to_sample(lambda tensor: tensor.to(device), sample)
        hypotheses = self.task.inference_step(search, [self.model], sample)
        return [hypotheses[place[number]] for number in range(len(sources))]

    def text(self, tokens: torch.Tensor) -> str:
        """What the tokens of a hypothesis say."""
        pieces = self.task.target_dictionary.string(tokens.cpu())
        return self.bpe.decode(pieces).strip() if self.bpe else pieces


def load(
    path: str | Path,
    attention: str = "auto",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    data: str | Path | None = None,
    languages: tuple[str, str] | None = None,
    *,
    apply_top_k: int | None = None,
    apply_top_k_in: str | None = None,
    apply_ffn_top_k: int | None = None,
) -> TextGenerator:
    """Load a checkpoint of a Transformer, BART or language model, trained by fairseq or by elseq.

    Args:
        path: the checkpoint, or a folder with model.pt, checkpoint_best.pt or checkpoint_last.pt.
        attention: how attention is evaluated while decoding: auto, kv, el, or stock for fairseq's own decoding.
        device: default: the first GPU if there is one, else the CPU.
        dtype: of the parameters. Default: as in the checkpoint.
        data: folder of the dictionaries (dict.txt, dict.LANGUAGE.txt) and of the subword vocabulary (encoder.json with
            vocab.bpe, or a sentencepiece .model). Default: the checkpoint's folder, else the one it was trained on.
        languages: those of source and target, as in the names of the dictionaries. Default: as in the checkpoint.
        apply_top_k: decode with the k largest scores of each query only; 0: with all. Default: as it was trained.
        apply_top_k_in: where apply_top_k counts: of encoder, decoder and cross, with commas. Default: everywhere.
        apply_ffn_top_k: decode with the k most activated units of a feed-forward layer only, for each token; 0: with
            all. Default: as it was trained.

    Raises:
        UserError: a file that is missing or cannot be used, or an argument that is none of these.
    """
    check_choice("attention", attention, DECODE_ATTENTION)
    device = _usable_device(device)
    if dtype is not None and dtype not in DTYPES.values():
        raise UserError(f"{dtype!r} cannot be used; give one of {', '.join(map(str, DTYPES.values()))}", "dtype")
    path = checkpoint_path(path)
    state = checkpoint_utils.load_checkpoint_to_cpu(str(path))
    cfg = state["cfg"]
    folder = _data_folder(path, cfg, data)
    for place in {folder, path.parent}:
        for pattern in ("dict*.txt", "encoder.json", "vocab.bpe", "*.model"):
            for file in place.glob(pattern):
                check_ordinary(file)
    with renamed(_as_keyword):
        top_k = {"apply_top_k": apply_top_k, "apply_top_k_in": apply_top_k_in, "apply_ffn_top_k": apply_ffn_top_k}
        task = _build_task(cfg, folder, attention, languages, top_k)
        (model,), _ = checkpoint_utils.load_model_ensemble([str(path)], task=task, state=state)
    return TextGenerator(model.to(device=device, dtype=dtype), task, _find_bpe({folder, path.parent}))


def _as_keyword(option: str) -> str:
    """What an option of our tasks is called here."""
    return "attention" if option == "--decode-attention" else option.removeprefix("--").replace("-", "_")


def check_max_tokens(max_tokens: int) -> None:
    """
    Raises:
        UserError: it is no whole number above 0.
    """
    if not isinstance(max_tokens, Integral) or max_tokens < 1:
        raise UserError(f"{max_tokens!r} is not a whole number above 0", "max_tokens")


def _usable_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:  # torch has many ways to say no
        found = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise UserError(f"{str(device)!r} cannot be used; there is {', '.join(found)}", "device") from error


def checkpoint_path(path: str | Path) -> Path:
    """The file that `load` takes: the one named, or that in the folder named.

    Raises:
        UserError: a folder without any, or what is no path.
    """
    path = _as_path(path, "path")
    if not path.is_dir():
        return path
    for name in CHECKPOINT_NAMES:
        if (path / name).exists():
            return path / name
    raise UserError(f"{path} holds none of {', '.join(CHECKPOINT_NAMES)}; give the path of a checkpoint")


def _as_path(value, argument: str) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{value!r} is no path; give one", argument)
    return Path(value).expanduser()


def _data_folder(path: Path, cfg, data: str | Path | None) -> Path:
    if data is not None:
        folder = _as_path(data, "data")
        if not any(folder.glob("dict*.txt")):
            raise UserError(f"{folder} holds no dictionary (dict*.txt); name another folder", "data")
        return folder
    trained_on = utils.split_paths(str(getattr(cfg.task, "data", "") or ""))
    folders = [path.parent, *(Path(folder) for folder in trained_on[:1])]
    for folder in folders:
        with contextlib.suppress(OSError, ValueError):  # a name that is too long, or none
            if any(folder.glob("dict*.txt")):
                return folder
    looked = " and ".join(str(folder) for folder in folders)
    raise UserError(f"is missing, and no dictionary (dict*.txt) was found in {looked}; name its folder", "data")


def _build_task(cfg, folder: Path, attention: str, languages: tuple[str, str] | None, top_k: dict):
    language_model = not hasattr(model_class(cfg.model), "build_encoder")
    config = ElseqLanguageModelingConfig if language_model else ElseqTranslationConfig
    names = {field.name for field in fields(config)}
    trained = vars(cfg.task) if isinstance(cfg.task, Namespace) else OmegaConf.to_container(cfg.task)
    options = {name: value for name, value in trained.items() if name in names and not name.startswith("eval_")}
    options.update(data=str(folder), decode_attention=attention)
    options.update({name: value for name, value in top_k.items() if value is not None})
    try:
        task_cfg = OmegaConf.create({**OmegaConf.to_container(OmegaConf.structured(config), resolve=False), **options})
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"the task's settings in the checkpoint cannot be used ({reason}): it was changed") from error
    check_options(task_cfg)
    if language_model:
        dictionary = Dictionary.load(str(folder / "dict.txt"))
        return ElseqLanguageModelingTask(task_cfg, dictionary)
    if languages is not None:
        names = [languages] if isinstance(languages, str) else list(languages)
        if len(names) != 2 or not all((folder / f"dict.{name}.txt").exists() for name in names):
            raise UserError(
                f"{','.join(map(str, names))} does not name two dictionaries, dict.LANGUAGE.txt, in {folder}",
                "languages",
            )
    languages = languages or (options.get("source_lang"), options.get("target_lang"))
    return ElseqTranslationTask(task_cfg, *_load_dictionaries(folder, languages, str(trained.get("data", ""))))


def _load_dictionaries(folder: Path, languages, trained_on: str) -> list[Dictionary]:
    """Those of source and target."""
    if None in languages:
        # The command line may have left them to be found in the names of the data files.
        found = [data_utils.infer_language_pair(place) for place in (folder, trained_on) if Path(place).is_dir()]
        languages = next((pair for pair in found if None not in pair), languages)
    named = [folder / f"dict.{language}.txt" for language in languages]
    if all(path.exists() for path in named):
        return [Dictionary.load(str(path)) for path in named]
    present = sorted(folder.glob("dict*.txt"))
    if len({path.read_bytes() for path in present}) == 1:  # source and target share one
        return [Dictionary.load(str(present[0]))] * 2
    names = ", ".join(path.name for path in present)
    raise UserError(
        f"is missing, and which of {names} in {folder} is the source's and which the target's is not known; name both",
        "languages",
    )


def _find_bpe(folders: set[Path]):
    """The subword vocabulary in one of these folders, or None."""
    for folder in sorted(folders):
        encoder, merges = folder / "encoder.json", folder / "vocab.bpe"
        if encoder.exists() != merges.exists():
            there, missing = sorted((encoder, merges), key=Path.exists, reverse=True)
            raise UserError(f"{folder} has {there.name} but no {missing.name}; the subwords need both: copy it there")
        if encoder.exists():
            logger.info("subwords: GPT-2 byte-level BPE of %s", folder)
            return encoders.build_bpe(Namespace(bpe="gpt2", gpt2_encoder_json=str(encoder), gpt2_vocab_bpe=str(merges)))
        models = sorted(folder.glob("*.model"))
        if len(models) > 1:
            raise UserError(f"{folder} holds several sentencepiece models; leave one there, or name another", "data")
        if models:
            logger.info("subwords: sentencepiece %s", models[0])
            return encoders.build_bpe(Namespace(bpe="sentencepiece", sentencepiece_model=str(models[0])))
    return None
