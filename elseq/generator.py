"""`elseq.load`: a fairseq checkpoint, ready to turn text into text."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from fairseq import utils
from fairseq.dataclass.configs import GenerationConfig
from tqdm import tqdm

from elseq.arguments import count
from elseq.errors import UserError, as_option, check_choice, renamed
from elseq.generation.batches import SplittingDecoder, cut_batches
from elseq.generation.budget import capacity, read_bytes
from elseq.generation.options import search_configuration
from elseq.loading import Checkpoint, Loading, import_plugins, usable_codes, usable_device, usable_dtype
from elseq.precision import DTYPES, INT8, prepared
from elseq.subwords.finding import find_subwords
from elseq.tasks.decoding import decode_attention_names


@dataclass(frozen=True)
class Batching:
    """How texts are decoded together."""

    max_tokens: int = field(
        default=4096, metadata={"type": count, "metavar": "N", "help": "of a batch: texts times the longest text"}
    )
    memory_budget: int | str | None = field(
        default=None,
        metadata={
            "type": read_bytes,
            "metavar": "BYTES",
            "help": "memory of a batch, such as 16G, instead of --max-tokens. It covers the decoding state (exact), "
            "the activations of a layer, the logits and the generated words (upper estimates), but not the parameters "
            "and what the allocator loses: leave a tenth of the memory for that. With --attention auto it assumes the "
            "larger of kv and el. A batch that runs out of memory is split in any case",
        },
    )
    truncate: bool = field(default=False, metadata={"help": "cut texts that are too long instead of refusing them"})
    seed: int | None = field(
        default=None, metadata={"type": int, "metavar": "N", "help": "seed of the random numbers for --sampling"}
    )

    def deciding(self) -> dict:
        """The options that decide the output, by their names on the command line."""
        options = {as_option(each.name): getattr(self, each.name) for each in fields(self)}
        return options | {"--max-tokens": self.max_tokens if self.memory_budget is None else None}


class TextGenerator:
    """A model with its dictionaries and its subword vocabulary. `elseq.load` makes one."""

    def __init__(self, model, task, bpe=None):
        """
        Args:
            model: a fairseq model.
            task: an ElseqTranslationTask or ElseqLanguageModelingTask.
            bpe: an `elseq.subwords.base.Subwords`, or None if texts consist of words of the dictionary.
        """
        self.model = model.eval()
        self.task = task
        self.bpe = bpe
        model.make_generation_fast_()
        model.train = partial(_refuse_training, model)

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
        """Generate the output for each text; for a language model, its continuation.

        Args:
            texts: the sources or prompts. The output for a blank text is blank.
            max_tokens: size of a batch: sentences times the longest source, in tokens.
            memory_budget: bytes of a batch without the model, such as "16G", instead of max_tokens; see
                `elseq.generation.budget.batch_bytes`.
            truncate: shorten sources with more tokens than the model has positions instead of refusing them.
            progress: show a progress bar. Default: if standard error is a terminal.
            seed: seed of the random numbers for sampling.
            options: search options of fairseq-generate, with their names there; see
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

    # The parts of `generate`, which elseq-generate also uses.

    def make_search(self, cfg: GenerationConfig):
        """The generator (fairseq's or elseq's) for a configuration of `search_configuration`."""
        with renamed(_as_keyword):
            return self.task.build_generator([self.model], cfg)

    def encode(self, text: str, search, name: str, truncate: bool, remedy: str) -> tuple[torch.Tensor, bool]:
        """The tokens of a text, including the end symbol, and whether they were truncated.

        Args:
            text: a text that is not blank.
            search: see `make_search`.
            name: name of the text in errors.
            truncate: truncate the text to the model's positions.
            remedy: what else the error tells the user to do.

        Raises:
            UserError: the text is too long, and truncate is not set.
        """
        pieces = self.bpe.encode(text) if self.bpe else text
        tokens = self.task.source_dictionary.encode_line(pieces, add_if_not_exist=False).long()
        positions = utils.resolve_max_positions(self.task.max_positions(), self.model.max_positions())
        # A prompt shares the positions with its continuation.
        room = self._symbols_before() if hasattr(self.model, "encoder") else max(1, search.min_len)
        limit = (positions[0] if isinstance(positions, tuple) else positions) - room
        if tokens.numel() <= limit:
            return tokens, False
        if limit < 1 and search.min_len > 1:
            raise UserError(
                f"{search.min_len} leaves no room for {name}: the model has {limit + room} positions; lower it",
                "min_len",
            )
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
        """The batches of encoded texts, as arrays of indices.

        Args:
            search: see `make_search`.
            lengths: number of tokens of each text. Blank texts have 0 and are in no batch.
            max_tokens, memory_budget: as for `generate`.
            name: gives the name of a text in errors from its index.

        Raises:
            UserError: the budget is invalid or too small for a text, or the model does not support one.
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
        """Number of symbols that the task puts around a source: the <s> of a BART, a language."""
        return getattr(self.task, "symbols_of_source", 0)

    def batch_decoder(
        self,
        search,
        sources: Mapping[int, torch.Tensor],
        lengths: Sequence[int],
        name: Callable[[int], str],
        seed: int | None,
    ) -> SplittingDecoder:
        """A function that decodes a batch, given the indices of its texts, and splits it if memory runs out.

        Args:
            search: see `make_search`.
            sources: the tokens of each text.
            lengths: number of tokens of each text.
            name: gives the name of a text in errors from its index.
            seed: seed of the random numbers. Those of a batch depend on the seed and the batch, not on earlier batches.
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
        """The text of the tokens of a hypothesis; for a language model with the white space after the prompt."""
        words = self.task.target_dictionary.string(tokens.cpu())
        if self.bpe is None:
            return words
        return self.bpe.decode(words) if hasattr(self.model, "encoder") else self.bpe.decode_continuation(words)


def _refuse_training(model, mode: bool = True):
    if mode:
        raise UserError(
            "a model of elseq.load generates and cannot be trained: continue from its checkpoint by fairseq-train "
            "--finetune-from-model, or load one by fairseq.checkpoint_utils.load_model_ensemble_and_task"
        )
    return model


def load(
    path: str | Path,
    attention: str = "auto",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    data: str | Path | None = None,
    languages: tuple[str, str] | None = None,
    *,
    user_dir: str | Path | None = None,
    bpe: str | None = None,
    bpe_codes: str | Path | None = None,
    apply_top_k: int | None = None,
    apply_top_k_in: str | None = None,
    apply_ffn_top_k: int | None = None,
) -> TextGenerator:
    """Load a checkpoint of a Transformer, BART or language model, trained by fairseq or by elseq.

    Args:
        path: the checkpoint, or a folder with model.pt, checkpoint_best.pt or checkpoint_last.pt.
        attention: the decoding method: auto, kv, el, or stock for fairseq's own decoding.
        device: default: the first GPU if there is one, else the CPU.
        dtype: type of the parameters, or int8: linear layers in int8, on a CPU. Default: float32 for any checkpoint, as
            in fairseq-generate without --fp16.
        data: folder of the dictionaries (dict.txt, dict.LANGUAGE.txt) and of the subword vocabulary (tokenizer.json,
            encoder.json with vocab.bpe, or a sentencepiece .model). Default: the checkpoint's folder, otherwise
            that of its training data.
        languages: source and target language in the names of the dictionaries. Default: as in the checkpoint.
        user_dir: folder of a plugin that has the architecture; several are separated by colons.
        bpe: program of bpe_codes, subword_nmt or fastbpe, instead of a subword vocabulary.
        bpe_codes: file of the codes.
        apply_top_k: each query keeps only its k largest scores; 0: all. Default: as in training.
        apply_top_k_in: attentions to which apply_top_k applies: encoder, decoder, cross, comma-separated. Default: all.
        apply_ffn_top_k: each token uses only the k most activated units of a feed-forward layer; 0: all. Default: as in
            training.

    Raises:
        UserError: a file is missing or cannot be used, or an argument is invalid.
    """
    top_k = {"apply_top_k": apply_top_k, "apply_top_k_in": apply_top_k_in, "apply_ffn_top_k": apply_ffn_top_k}
    codes = {"bpe": bpe, "bpe_codes": bpe_codes}
    return load_by(path, Loading(attention, device, dtype, data, languages, user_dir, **codes, **top_k))


@renamed(lambda option: _as_keyword(option))
def load_by(path: str | Path, loading: Loading) -> TextGenerator:
    """As `load`."""
    import_plugins(loading.user_dir)
    check_choice("attention", loading.attention, decode_attention_names())
    device, dtype = usable_device(loading.device), usable_dtype(loading.dtype)
    codes = usable_codes(loading.bpe, loading.bpe_codes)
    checkpoint = Checkpoint.read(path)
    folder = checkpoint.folder(loading.data)
    dictionaries = checkpoint.dictionaries(folder, loading.languages)
    options = loading.of_task() | {"decode_dtype": dtype}
    task = checkpoint.build_task(folder, dictionaries, loading.attention, **options)
    model = checkpoint.build_model(task)
    subwords = codes or find_subwords(
        (folder, checkpoint.path.parent), task.source_dictionary.symbols, checkpoint.is_language_model
    )
    generator = TextGenerator(model.to(device=device, dtype=DTYPES.get(dtype)), task, subwords)
    task.set_dtype(model)
    if dtype == INT8:
        prepared(model, dtype).fresh_parameters = partial(_parameters, checkpoint.path, task)
    return generator


def _parameters(path: Path, task) -> dict[str, torch.Tensor]:
    """Of the checkpoint, once more."""
    return dict(Checkpoint.read(path).build_model(task).named_parameters())


def _as_keyword(option: str) -> str:
    """Keyword of an option of our tasks."""
    return option.removeprefix("--").removeprefix("decode-").replace("-", "_")


def check_max_tokens(max_tokens: int) -> None:
    """
    Raises:
        UserError: it is not an integer above 0.
    """
    if not isinstance(max_tokens, Integral) or max_tokens < 1:
        raise UserError(f"{max_tokens!r} is not a whole number above 0", "max_tokens")
