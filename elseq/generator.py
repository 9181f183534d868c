"""`elseq.load`: a fairseq checkpoint, ready to turn text into text."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from fairseq import utils
from fairseq.dataclass.configs import GenerationConfig
from fairseq.token_generation_constraints import pack_constraints
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from elseq.arguments import read_bytes
from elseq.errors import UserError, check_choice, renamed
from elseq.generation.batches import SplittingDecoder, cut_batches
from elseq.generation.budget import capacity
from elseq.generation.options import search_configuration
from elseq.loading import (
    Checkpoint,
    check_same_task,
    checkpoint_paths,
    import_plugins,
    load_language_model,
    usable_device,
    usable_dtype,
)
from elseq.options import Loading, decode_attention_names
from elseq.precision import DTYPES, INT8, prepared
from elseq.subwords.finding import find_subwords, read_subwords


class TextGenerator:
    """A model, or an ensemble, with its dictionaries and its subword vocabulary. `elseq.load` makes one."""

    def __init__(self, models: Sequence, task, bpe=None, language_model=None):
        """
        Args:
            models: fairseq models, an ensemble if several.
            task: an ElseqTranslationTask or ElseqLanguageModelingTask.
            bpe: an `elseq.subwords.base.Subwords`, or None if texts consist of words of the dictionary.
            language_model: a model whose log-probabilities are added with the option lm_weight, or None.
        """
        self.models = list(models)
        self.model = self.models[0]  # the others are of its kind, and on its device
        self.task = task
        self.bpe = bpe
        self.language_model = language_model
        for model in self.models if language_model is None else [*self.models, language_model]:
            model.eval()
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
        prefixes: Iterable[str] | None = None,
        **options,
    ) -> list[str] | list[list[str]]:
        """Generate the output for each text; for a language model, its continuation.

        Args:
            texts: the sources or prompts. The output for a blank text is blank. With the option constraints, phrases
                that the output must contain stand after a source, each after a tab, as in fairseq-interactive.
            max_tokens: size of a batch: sentences times the longest source, in tokens.
            memory_budget: bytes of a batch without the model, such as "16G", instead of max_tokens; see
                `elseq.generation.budget.batch_bytes`.
            truncate: shorten sources with more tokens than the model has positions instead of refusing them.
            progress: show a progress bar. Default: if standard error is a terminal.
            seed: seed of the random numbers for sampling.
            prefixes: what the output for each text begins with; a blank one is none. The output holds it.
            options: search options of fairseq-generate, with their names there; see
                `elseq.options.Search`.

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
        encoded, forced = {}, {}
        for index, text in enumerate(texts):
            if text.strip():
                source, constraints = self.split_constraints(text, cfg)
                encoded[index], _ = self.encode(source, search, f"text {index}", truncate, "set truncate=True")
                if constraints is not None:
                    forced.setdefault("constraints", {})[index] = constraints
        lengths = [encoded[index].numel() if index in encoded else 0 for index in range(len(texts))]
        if prefixes is not None:
            prefixes = list(prefixes)
            if len(prefixes) != len(texts):
                raise UserError(f"has {len(prefixes)} texts for {len(texts)} sources: give one for each", "prefixes")
            forced["prefixes"] = {
                index: self.encode_prefix(prefixes[index], search, source.numel(), f"prefix {index}")
                for index, source in encoded.items()
            }
        decode = self.batch_decoder(search, encoded, lengths, lambda index: f"text {index}", seed, **forced)
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
        if cfg.lm_weight and self.language_model is None:
            raise UserError(f"{cfg.lm_weight:g} needs a language model, and none is loaded: name one", "lm_weight")
        fused = {} if self.language_model is None else {"lm_model": self.language_model, "lm_weight": cfg.lm_weight}
        with renamed(_as_keyword):
            search = self.task.build_generator(self.models, cfg, extra_gen_cls_kwargs=fused)
        if self.language_model is not None:
            search.max_len = min(search.max_len, self.language_model.max_positions())
        return search

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
        positions = utils.resolve_max_positions(
            self.task.max_positions(), *(model.max_positions() for model in self.models)
        )
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

    def split_constraints(self, text: str, cfg: GenerationConfig) -> tuple[str, list[torch.Tensor] | None]:
        """The source in a text, and the tokens of each phrase that its output must contain.

        Args:
            text: a source, and with the option constraints phrases, each after a tab.
            cfg: see `make_search`. Without the option, the whole text is the source, and there are no phrases (None).

        Raises:
            UserError: the model has no encoder.
        """
        if cfg.constraints is None:
            return text, None
        if not hasattr(self.model, "encoder"):
            raise UserError(f"{cfg.constraints} is for models with an encoder: leave it out", "constraints")
        source, *phrases = text.split("\t")
        return source, [self._encode_target(phrase) for phrase in phrases if phrase.strip()]

    def _encode_target(self, text: str) -> torch.Tensor:
        """The tokens of a part of an output, which may be blank."""
        pieces = self.bpe.encode(text) if self.bpe and text.strip() else text
        return self.task.target_dictionary.encode_line(pieces, append_eos=False, add_if_not_exist=False).long()

    def encode_prefix(self, text: str, search, length: int, name: str) -> torch.Tensor:
        """The tokens that a hypothesis must begin with.

        Args:
            text: their text, which may be blank.
            search: see `make_search`.
            length: tokens of the source.
            name: name of the text in errors.

        Raises:
            UserError: the model has no encoder, or no hypothesis may have so many tokens.
        """
        if not hasattr(self.model, "encoder"):
            raise UserError("prefixes are for models with an encoder: add them to the prompts of a language model")
        tokens = self._encode_target(text)
        limit = min(search.max_len - 2, max(search.min_len, int(search.max_len_a * length + search.max_len_b)))
        if tokens.numel() > limit:
            raise UserError(f"{name} has {tokens.numel()} tokens and its output may have {limit}: shorten it")
        return tokens

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
            self.models,
            search,
            read_bytes(str(memory_budget)),
            lambda length: name(int(np.argmax(lengths == length))),
            self._symbols_before(),
        )
        return cut_batches(lengths, sentences)

    def _symbols_before(self) -> int:
        """Number of symbols that the task puts before a source: the <s> of a BART, a language."""
        return int(getattr(self.task, "first_source_symbol", None) is not None)

    def batch_decoder(
        self,
        search,
        sources: Mapping[int, torch.Tensor],
        lengths: Sequence[int],
        name: Callable[[int], str],
        seed: int | None,
        **forced: Mapping[int, torch.Tensor],
    ) -> SplittingDecoder:
        """A function that decodes a batch, given the indices of its texts, and splits it if memory runs out.

        Args:
            search: see `make_search`.
            sources: the tokens of each text.
            lengths: number of tokens of each text.
            name: gives the name of a text in errors from its index.
            seed: seed of the random numbers. Those of a batch depend on the seed and the batch, not on earlier batches.
            forced: for each text, what `_decode` takes.
        """

        def decode(numbers: list[int]) -> list[list[dict]]:
            if seed is not None:
                utils.set_torch_seed(random.Random(f"{seed} {numbers[0]}").getrandbits(63))
            given = {name: [of_text[number] for number in numbers] for name, of_text in forced.items()}
            return self._decode(search, [sources[number] for number in numbers], **given)

        return SplittingDecoder(decode, lengths, name)

    def _decode(
        self,
        search,
        sources: list[torch.Tensor],
        prefixes: list[torch.Tensor] | None = None,
        constraints: list[list[torch.Tensor]] | None = None,
    ) -> list[list[dict]]:
        """The hypotheses of each source of a batch, in their order.

        Args:
            search: see `make_search`.
            sources: the tokens of each.
            prefixes: the tokens that the hypotheses of each begin with.
            constraints: the tokens of each phrase that the hypotheses of each contain.
        """
        packed = {} if constraints is None else {"constraints": pack_constraints(constraints)}
        dataset = self.task.build_dataset_for_inference(sources, [source.numel() for source in sources], **packed)
        sample = dataset.collater([dataset[index] for index in range(len(dataset))])
        place = {number: row for row, number in enumerate(sample["id"].tolist())}
        device = next(self.model.parameters()).device
        sample = utils.apply_to_sample(lambda tensor: tensor.to(device), sample)
        options = {} if constraints is None else {"constraints": sample["constraints"]}
        if prefixes is not None and any(prefix.numel() for prefix in prefixes):
            rows = [prefixes[number] for number in sample["id"].tolist()]
            padded = pad_sequence(rows, batch_first=True, padding_value=self.task.target_dictionary.pad())
            options["prefix_tokens"] = padded.to(device)
        hypotheses = self.task.inference_step(search, self.models, sample, **options)
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
    sentencepiece_model: str | Path | None = None,
    gpt2_encoder_json: str | Path | None = None,
    gpt2_vocab_bpe: str | Path | None = None,
    tokenizer_json: str | Path | None = None,
    lm_path: str | Path | None = None,
    apply_top_k: int | None = None,
    apply_top_k_in: str | None = None,
    apply_ffn_top_k: int | None = None,
) -> TextGenerator:
    """Load a checkpoint of a Transformer, BART or language model, trained by fairseq or by elseq.

    Args:
        path: the checkpoint, or a folder with model.pt, checkpoint_best.pt or checkpoint_last.pt. Several, separated by
            colons, are an ensemble: the search reads the mean of their probabilities. They have the same dictionaries.
        attention: the decoding method: auto, kv, el, or stock for fairseq's own decoding.
        device: default: the first GPU if there is one, else the CPU.
        dtype: type of the parameters, or int8: linear layers in int8, on a CPU. Default: float32 for any checkpoint, as
            in fairseq-generate without --fp16.
        data: folder of the dictionaries (dict.txt, dict.LANGUAGE.txt) and of the subword vocabulary (tokenizer.json,
            encoder.json with vocab.bpe, or a sentencepiece .model). Default: the checkpoint's folder, otherwise
            that of its training data.
        languages: source and target language in the names of the dictionaries. Default: as in the checkpoint.
        user_dir: folder of a plugin that has the architecture; several are separated by colons.
        bpe: kind of the subword vocabulary in the files that are named, as in fairseq-interactive: subword_nmt,
            fastbpe, sentencepiece, gpt2, or hugging_face. Default: the one in the folder of data or of the checkpoint.
        bpe_codes: file of the codes of subword_nmt or fastbpe.
        sentencepiece_model: file of sentencepiece.
        gpt2_encoder_json, gpt2_vocab_bpe: files of gpt2.
        tokenizer_json: file of hugging_face.
        lm_path: checkpoint of a language model of the target's dictionary, for the option lm_weight of `generate`.
        apply_top_k: each query keeps only its k largest scores; 0: all. Default: as in training.
        apply_top_k_in: attentions to which apply_top_k applies: encoder, decoder, cross, comma-separated. Default: all.
        apply_ffn_top_k: each token uses only the k most activated units of a feed-forward layer; 0: all. Default: as in
            training.

    Raises:
        UserError: a file is missing or cannot be used, or an argument is invalid.
    """
    top_k = {"apply_top_k": apply_top_k, "apply_top_k_in": apply_top_k_in, "apply_ffn_top_k": apply_ffn_top_k}
    subwords = {"bpe": bpe, "bpe_codes": bpe_codes, "sentencepiece_model": sentencepiece_model}
    subwords |= {"gpt2_encoder_json": gpt2_encoder_json, "gpt2_vocab_bpe": gpt2_vocab_bpe}
    subwords |= {"tokenizer_json": tokenizer_json, "lm_path": lm_path}
    return load_by(path, Loading(attention, device, dtype, data, languages, user_dir, **subwords, **top_k))


@renamed(lambda option: _as_keyword(option))
def load_by(path: str | Path, loading: Loading) -> TextGenerator:
    """As `load`."""
    import_plugins(loading.user_dir)
    check_choice("attention", loading.attention, decode_attention_names())
    device, dtype = usable_device(loading.device), usable_dtype(loading.dtype)
    loading.check()
    checkpoint, *others = map(Checkpoint.read, checkpoint_paths(path))
    folder = checkpoint.folder(loading.data)
    options = loading.of_task() | {"decode_dtype": dtype}
    dictionaries = checkpoint.dictionaries(folder, loading.languages)
    task = checkpoint.build_task(folder, dictionaries, loading.attention, **options)
    for other in others:
        check_same_task(checkpoint, task, other, loading)
    known = task.source_dictionary.symbols, checkpoint.is_language_model
    if loading.bpe is None:
        subwords = find_subwords((folder, checkpoint.path.parent), *known)
    else:
        subwords = read_subwords(loading.bpe, loading.bpe_files(), *known)
    models = [each.build_model(task) for each in (checkpoint, *others)]
    models = [model.to(device=device, dtype=DTYPES.get(dtype)) for model in models]
    language_model = None
    if loading.lm_path is not None:
        language_model = load_language_model(loading.lm_path, dictionaries[1], loading.attention)
        language_model = language_model.to(device=device, dtype=DTYPES.get(dtype))
    generator = TextGenerator(models, task, subwords, language_model)
    for model, each in zip(models, (checkpoint, *others), strict=True):
        task.set_dtype(model)
        if dtype == INT8:
            prepared(model, dtype).fresh_parameters = partial(_parameters, each.path, task)
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
