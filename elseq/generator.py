"""`elseq.load`: a fairseq checkpoint, ready to turn text into text."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from fairseq import utils
from fairseq.dataclass.configs import GenerationConfig
from fairseq.token_generation_constraints import pack_constraints
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from elseq.arguments import budget_bytes
from elseq.bounds import check_flag, is_whole, of_python
from elseq.compat.generation import with_language_model
from elseq.encoded_texts import EncodedTexts, numbered
from elseq.errors import UserError, as_keyword, check_choice, renamed
from elseq.files import check_text
from elseq.generation.batches import SplittingDecoder, cut_batches, cut_by
from elseq.generation.budget import scoring_capacity
from elseq.generation.cuda_graphs import release_memory
from elseq.generation.options import search_configuration
from elseq.generation.search import length_limit, max_positions
from elseq.loading import (
    Checkpoint,
    check_same_kind,
    check_same_task,
    checkpoint_paths,
    import_plugins,
    load_language_model,
    on_cpu_by_default,
    usable_device,
    usable_dtype,
)
from elseq.options import BPE, Loading, decode_attention_names
from elseq.subwords.finding import find_subwords, read_subwords

REMEDIES = "set truncate=True", "load the model with long_input=True"  # for texts that are too long


@dataclass(frozen=True)
class Hypothesis:
    """A text with its score under a model. T tokens, the end symbol included.

    Log-probabilities are natural logarithms.
    """

    text: str
    score: float  # of `TextGenerator.generate`: their sum / T ** lenpen, as in fairseq
    tokens: tuple[str, ...]  # [T]: words of the dictionary
    log_probs: tuple[float, ...]  # [T]: of each token, given the source and the tokens before it


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
        self.inputs: tuple[Path, ...] = ()  # files that `load_by` has read beside those that its options name
        for model in with_language_model(self.models, language_model):
            model.eval()
            model.make_generation_fast_()
            model.train = partial(_refuse_training, model)

    @on_cpu_by_default()
    def generate(
        self,
        texts: Iterable[str],
        *,
        max_tokens: int = 4096,
        memory_budget: int | str | None = None,
        truncate: bool = False,
        progress: bool | None = None,
        seed: int | None = None,
        source_lang: str | Sequence[str] | None = None,
        target_lang: str | Sequence[str] | None = None,
        prefixes: Iterable[str] | None = None,
        return_scores: bool = False,
        **options,
    ) -> list[str] | list[list[str]] | list[Hypothesis] | list[list[Hypothesis]]:
        """Generate the output for each text; for a language model, its continuation.

        Args:
            texts: the sources or prompts. The output for a blank text is blank. With the option constraints, phrases
                that the output must contain stand after a source, each after a tab, as in fairseq-interactive.
            max_tokens: size of a batch: sentences times the longest source, in tokens.
            memory_budget: bytes of a batch without the model, such as "16G", instead of max_tokens; see
                `elseq.generation.budget.batch_bytes`.
            truncate: shorten sources with more tokens than the model has positions instead of refusing them.
            progress: show a progress bar. Default: if standard error is a terminal.
            seed: seed of the random numbers for sampling. PyTorch's own stay as they are; only with the attention stock
                they are seeded during the call, and calls in other threads disturb it. Default: PyTorch's own.
            source_lang, target_lang: languages of a multilingual model, of all texts or of each. Default: as in `load`.
            prefixes: what the output for each text begins with; a blank one is none. The output holds it.
            return_scores: return a `Hypothesis` for each string, with its score, tokens and log-probabilities. That of
                a blank text has no tokens and the score 0.
            options: search options of fairseq-generate, with their names there; see `elseq.options.Search`.

        Returns:
            One string or `Hypothesis` for each text, in their order; with nbest above 1, lists of them, best first.

        Raises:
            UserError: an option that is unknown or does not go together with another, something that is no list of
                strings, or a text that is too long.
        """
        texts = _strings(texts, "generate", "text")
        _check_flags(truncate=truncate, progress=progress, return_scores=return_scores)
        if seed is not None and not is_whole(seed):
            raise UserError(f"{seed!r} is not possible: give a whole number", "seed")
        cfg = search_configuration(options)
        check_max_tokens(max_tokens)
        nbest = cfg.nbest
        if prefixes is not None:
            prefixes = _strings(prefixes, "generate", "prefix")
            if len(prefixes) != len(texts):
                raise UserError(f"has {len(prefixes)} texts for {len(texts)} sources: give one for each", "prefixes")
        encoded = EncodedTexts(
            texts,
            *self._by_languages(len(texts), source_lang, target_lang),
            cfg=cfg,
            name="text {}".format,
            truncate=truncate,
            remedies=REMEDIES,
            seed=seed,
        )
        if prefixes is not None:
            encoded.force_prefixes(prefixes, "prefix {}".format)
        blank = Hypothesis("", 0.0, (), ()) if return_scores else ""
        results: list = [blank if nbest == 1 else [blank] for _ in texts]
        with (
            ExitStack() as at_the_end,
            tqdm(total=len(texts), unit=" texts", disable=None if progress is None else not progress) as bar,
        ):
            at_the_end.callback(release_memory)  # the searches themselves may live until the garbage is collected
            bar.update(int(encoded.blank.sum()))
            for batch in encoded.batches(max_tokens, memory_budget):
                for part, hypotheses in encoded.decode(batch):
                    for index, found in zip(part, hypotheses, strict=True):
                        generator = encoded.generator(index)
                        best = [
                            generator.hypothesis(each) if return_scores else generator.text(each["tokens"])
                            for each in found[:nbest]
                        ]
                        results[index] = best[0] if nbest == 1 else best
                    bar.update(len(part))
        return results

    @on_cpu_by_default()
    def score(
        self,
        sources: Iterable[str],
        targets: Iterable[str],
        *,
        max_tokens: int = 4096,
        memory_budget: int | str | None = None,
        truncate: bool = False,
        progress: bool | None = None,
        source_lang: str | None = None,
        target_lang: str | None = None,
    ) -> list[Hypothesis]:
        """The log-probability of a target for each source, in one pass and without a search.

        It is the score of the same hypothesis in `generate` with lenpen 0. It includes the end symbol, and the symbol
        that the task puts before generated targets (the <s> of a BART, a language); the latter by 0 if the task does
        not count it. A word that is not in the dictionary counts as the unknown word.

        Args:
            sources: the sources, or for a language model the prompts. A blank one is an empty one.
            targets: a target for each source, or the continuation of each prompt, with its leading white space if the
                model has subwords.
            max_tokens: size of a batch: sentences times the longest source or target, in tokens; for a language model
                times the longest prompt with its target.
            memory_budget: as for `generate`, instead of max_tokens; see `elseq.generation.budget.scoring_bytes`.
            truncate: shorten sources with more tokens than the model has positions instead of refusing them.
            progress: show a progress bar. Default: if standard error is a terminal.
            source_lang, target_lang: languages of a multilingual model, each of all texts. Default: as in `load`.

        Returns:
            A `Hypothesis` for each target, in their order. Its text is the target, its score the sum of log_probs.

        Raises:
            UserError: something that is no list of strings, lists of different lengths, a text that is too long, an
                ensemble, or a memory budget that is invalid or too small.
        """
        if len(self.models) > 1:
            raise UserError(f"score takes one model, and this is an ensemble of {len(self.models)}: load one")
        if source_lang is not None or target_lang is not None:
            options = {"max_tokens": max_tokens, "memory_budget": memory_budget}
            options |= {"truncate": truncate, "progress": progress}
            return self.for_languages(source_lang, target_lang).score(sources, targets, **options)
        sources, targets = _strings(sources, "score", "source"), _strings(targets, "score", "target")
        if len(sources) != len(targets):
            raise UserError(f"there are {len(sources)} sources and {len(targets)} targets; give one for each")
        _check_flags(truncate=truncate, progress=progress)
        check_max_tokens(max_tokens)
        pairs = []
        for index, (source, target) in enumerate(zip(sources, targets, strict=True)):
            wanted = self._encode_target(target, f"target {index}")
            room = self.task.symbols_of_source if self._has_encoder else wanted.numel() - 1
            source, _ = self._encode(source, self._positions() - room, f"source {index}", truncate, REMEDIES)
            pairs.append((source, wanted))
        together = max if self._has_encoder else sum
        lengths = [together((source.numel(), target.numel())) for source, target in pairs]
        name = "pair {}".format
        decode = SplittingDecoder(lambda numbers: self._score([pairs[number] for number in numbers]), lengths, name)
        if memory_budget is None:
            batches = cut_batches(lengths, lambda length: max(1, max_tokens // length))
        else:
            added = self.task.symbols_of_source, self.task.symbols_of_target
            sizes = np.array([[each.numel() for each in pair] for pair in pairs]).reshape(-1, 2) + added
            pairs_of = scoring_capacity(self.model, budget_bytes(memory_budget), *sizes.T, name)
            batches = cut_by(lengths, pairs_of)
        results: list = [None] * len(pairs)
        with tqdm(total=len(pairs), unit=" texts", disable=None if progress is None else not progress) as bar:
            for batch in batches:
                for part, found in decode(batch):
                    for index, each in zip(part, found, strict=True):
                        results[index] = self.hypothesis(each, targets[index])
                    bar.update(len(part))
        return results

    def training_sample(self, source: str, target: str | None, name: str) -> dict:
        """A batch of one text as in training: the input of the model, "net_input", and the tokens to predict, "target"
        [1, T].

        Args:
            source: the source, or for a language model the text. It is truncated to the model's positions.
            target: the target; None for a language model.
            name: name of the text in errors.

        Raises:
            UserError: the target is too long.
        """
        if target is None:
            tokens, _ = self._encode(source, self._positions(), name, True, REMEDIES)
            sample, _ = self._sample([tokens])
            return sample | {"target": tokens.unsqueeze(0)}
        tokens = self.task.whole_target(self._encode_target(target, name))
        source, _ = self._encode(source, self._positions() - self.task.symbols_of_source, name, True, REMEDIES)
        sample, _ = self._sample([source])
        start = self.task.decoder_start_symbol
        start = self.task.target_dictionary.eos() if start is None else start
        read = torch.cat((tokens.new_tensor([start]), tokens[:-1])).unsqueeze(0)
        return sample | {"net_input": sample["net_input"] | {"prev_output_tokens": read}, "target": tokens.unsqueeze(0)}

    def for_languages(self, source: str | None, target: str | None) -> "TextGenerator":
        """The same model for other languages; None keeps the language of this generator.

        Raises:
            UserError: a language is not the model's, or the model is not multilingual.
        """
        with renamed(as_keyword):
            task = self.task.for_languages(source, target)
            return TextGenerator(self.models, task, self.bpe, self.language_model)

    def _by_languages(self, count: int, source, target) -> tuple[list["TextGenerator"], np.ndarray]:
        """The generators of the pairs of languages among so many texts, and which of them each text has, int64 [N].

        Args:
            source, target: the languages of all texts, or of each, or None for those of this generator.
        """
        if source is None and target is None:
            return [self], np.zeros(count, np.int64)
        sides = []
        for name, given in (("source_lang", source), ("target_lang", target)):
            if given is None or isinstance(given, str):
                sides.append([given] * count)
                continue
            each = list(given) if isinstance(given, Iterable) else [given]
            for language in each:
                if language is not None and not isinstance(language, str):
                    raise UserError(
                        f"{language!r} is no string: give the code of a language, or one for each text", name
                    )
            if len(each) != count:
                instead = "give a list of as many, or one language as a string"
                raise UserError(f"has {len(each)} languages for {count} texts: {instead}", name)
            sides.append(each)
        pairs, of_text = numbered(zip(*sides, strict=True))
        return [self.for_languages(*pair) for pair in pairs], of_text

    # What `EncodedTexts` asks for.

    def make_search(self, cfg: GenerationConfig):
        """The generator (fairseq's or elseq's) for a configuration of `search_configuration`."""
        if cfg.lm_weight and self.language_model is None:
            raise UserError(f"{cfg.lm_weight:g} needs a language model, and none is loaded: name one", "lm_weight")
        fused = {} if self.language_model is None else {"lm_model": self.language_model, "lm_weight": cfg.lm_weight}
        with renamed(as_keyword):
            search = self.task.build_generator(self.models, cfg, extra_gen_cls_kwargs=fused)
        if self.language_model is not None:  # fairseq's generator does not ask how long its targets may be
            search.max_len = min(search.max_len, self.language_model.max_positions())
        return search

    def encode(
        self, text: str, search, name: str, truncate: bool, remedies: tuple[str, str]
    ) -> tuple[torch.Tensor, bool]:
        """The tokens of a text, including the end symbol, and whether they were truncated.

        Args:
            text: a text that is not blank.
            search: see `make_search`.
            name: name of the text in errors.
            truncate: truncate the text to the model's positions.
            remedies: what else the error tells the user to do: to truncate, and to encode in windows.

        Raises:
            UserError: the text is too long, and truncate is not set.
        """
        # A prompt shares the positions with its continuation.
        room = self.task.symbols_of_source if self._has_encoder else max(1, search.min_len)
        positions = self._positions()
        if positions <= room and search.min_len > 1:
            raise UserError(
                f"{search.min_len} leaves no room for {name}: the model has {positions} positions; lower it", "min_len"
            )
        return self._encode(text, positions - room, name, truncate, remedies)

    @property
    def _has_encoder(self) -> bool:
        return hasattr(self.model, "encoder")

    def _positions(self) -> int:
        """Of a source or a prompt."""
        positions = utils.resolve_max_positions(
            self.task.max_positions(), *(model.max_positions() for model in self.models)
        )
        return positions[0] if isinstance(positions, tuple) else positions

    def _encode(
        self, text: str, limit: int, name: str, truncate: bool, remedies: tuple[str, str]
    ) -> tuple[torch.Tensor, bool]:
        """As `encode`, to at most `limit` tokens."""
        pieces = self.bpe.encode(text) if self.bpe else text
        tokens = self.task.source_dictionary.encode_line(pieces, add_if_not_exist=False).long()
        if tokens.numel() <= limit:
            return tokens, False
        if limit < 1 or not truncate:
            remedy = " or ".join(remedies if self._has_encoder else remedies[:1])
            raise UserError(
                f"{name} has {tokens.numel()} tokens and the model takes {max(limit, 0)}; shorten it or {remedy}"
            )
        return torch.cat((tokens[: limit - 1], tokens[-1:])), True

    def _encode_target(self, text: str, name: str) -> torch.Tensor:
        """The tokens of a text that the model is to generate, the end symbol included.

        Raises:
            UserError: the text is too long.
        """
        if self.bpe is not None:
            bpe = self.bpe.of_targets
            text = bpe.encode(text) if self._has_encoder else bpe.encode_continuation(text)
        tokens = self.task.target_dictionary.encode_line(text, add_if_not_exist=False).long()
        limit = max_positions([self.model]) - self.task.symbols_of_target
        if tokens.numel() > limit:
            raise UserError(f"{name} has {tokens.numel()} tokens and the model generates {limit}; shorten it")
        return tokens

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
        if not self._has_encoder:
            raise UserError(f"{cfg.constraints} is for models with an encoder: leave it out", "constraints")
        source, *phrases = text.split("\t")
        return source, [self._encode_part(phrase) for phrase in phrases if phrase.strip()]

    def _encode_part(self, text: str) -> torch.Tensor:
        """The tokens of a part of an output."""
        pieces = self.bpe.of_targets.encode(text) if self.bpe else text
        return self.task.target_dictionary.encode_line(pieces, append_eos=False, add_if_not_exist=False).long()

    def encode_prefix(self, text: str, search, length: int, name: str) -> torch.Tensor:
        """The tokens that a hypothesis must begin with.

        Args:
            text: their text, which is not blank.
            search: see `make_search`.
            length: tokens of the source.
            name: name of the text in errors.

        Raises:
            UserError: the model has no encoder, or no hypothesis may have so many tokens.
        """
        if not self._has_encoder:
            raise UserError("prefixes are for models with an encoder: add them to the prompts of a language model")
        tokens = self._encode_part(text)
        start = self.task.prefix_start
        is_added = start is not None and (not tokens.numel() or int(tokens[0]) != start)
        limit = length_limit(search, length + self.task.symbols_of_source) - is_added
        if tokens.numel() > limit:
            raise UserError(f"{name} has {tokens.numel()} tokens and its output may have {limit}: shorten it")
        return tokens

    @renamed(as_keyword)
    def decode(
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
        sample, order = self._sample(sources, **packed)
        options = {} if constraints is None else {"constraints": sample["constraints"]}
        if prefixes is not None and any(prefix.numel() for prefix in prefixes):
            rows = [prefixes[number] for number in order]
            padded = pad_sequence(rows, batch_first=True, padding_value=self.task.target_dictionary.pad())
            options["prefix_tokens"] = padded.to(next(self.model.parameters()).device)
        return _in_order(self.task.inference_step(search, self.models, sample, **options), order)

    @renamed(as_keyword)
    def _score(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> list[dict]:
        """The target of each pair of source and target with its log-probabilities."""
        sample, order = self._sample([source for source, _ in pairs])
        return _in_order(self.task.score_step(self.model, sample, [pairs[number][1] for number in order]), order)

    def _sample(self, sources: list[torch.Tensor], **constraints) -> tuple[dict, list[int]]:
        """A batch as the model takes it, and the source of each row."""
        dataset = self.task.build_dataset_for_inference(sources, [source.numel() for source in sources], **constraints)
        sample = dataset.collater([dataset[index] for index in range(len(dataset))])
        device = next(self.model.parameters()).device
        return utils.apply_to_sample(lambda tensor: tensor.to(device), sample), sample["id"].tolist()

    def text(self, tokens: torch.Tensor) -> str:
        """The text of the tokens of a hypothesis; for a language model with the white space after the prompt."""
        hidden = self.task.symbols_of_language
        words = self.task.target_dictionary.string(tokens.cpu(), extra_symbols_to_ignore=hidden)
        if self.bpe is None:
            return words
        return self.bpe.decode(words) if self._has_encoder else self.bpe.decode_continuation(words)

    def hypothesis(self, found: dict, text: str | None = None) -> Hypothesis:
        """
        Args:
            found: a hypothesis of a search: its "tokens" [T], "score" and "positional_scores" [T].
            text: its text. Default: that of the tokens.
        """
        symbols = self.task.target_dictionary.symbols
        tokens = tuple(symbols[token] for token in found["tokens"].tolist())
        text = self.text(found["tokens"]) if text is None else text
        return Hypothesis(text, float(found["score"]), tokens, tuple(found["positional_scores"].tolist()))


def _strings(texts: Iterable[str], function: str, name: str) -> list[str]:
    """
    Raises:
        UserError: the texts are not a list of strings.
    """
    names = f"{name}es" if name.endswith("x") else f"{name}s"
    if isinstance(texts, str):
        raise UserError(f"{function} takes a list of {names} and was given one string; put it into a list")
    is_one = getattr(texts, "shape", None) == ()  # an array of numpy or torch without dimensions, which is no iterable
    if not isinstance(texts, Iterable) or isinstance(texts, Mapping) or is_one:
        raise UserError(f"{function} takes a list of {names} and was given {texts!r}")
    texts = list(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"{name} {index} is of type {type(text).__name__}; give strings")
        check_text(text, f"{name} {index}", "decode it as UTF-8")
    return texts


def _in_order(results: list, order: list[int]) -> list:
    """The results in the order of the sources. Result n is that of source order[n]."""
    return [result for _, result in sorted(zip(order, results, strict=True), key=lambda pair: pair[0])]


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
    *,
    source_lang: str | None = None,
    target_lang: str | None = None,
    prepend_source_bos: str | bool | None = None,
    force_bos: str | bool | None = None,
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
    long_input: bool = False,
    source_window: int | None = None,
    source_window_overlap: int | None = None,
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
        source_lang: language of the sources: one of a multilingual model's, or that in the name of the dictionary.
            Default: as in the checkpoint.
        target_lang: the same of the targets.
        prepend_source_bos, force_bos: whether <s> is put before the source, and begins every target. Default: as in the
            checkpoint, where that tells, otherwise True for a BART.
        user_dir: folder of a plugin that has the architecture; several are separated by colons.
        bpe: kind of the subword vocabulary in the files that are named, as in fairseq-interactive: subword_nmt,
            fastbpe, sentencepiece, gpt2, or hugging_face. Default: the one in the folder of data or of the checkpoint.
        bpe_codes: file of the codes of subword_nmt or fastbpe.
        sentencepiece_model: file of sentencepiece.
        gpt2_encoder_json, gpt2_vocab_bpe: files of gpt2.
        tokenizer_json: file of hugging_face.
        lm_path: checkpoint of a language model of the target's dictionary, for the option lm_weight of `generate`.
        apply_top_k: each query keeps only its k largest scores; 0: all. Default: as in training.
        apply_top_k_in: attentions to which apply_top_k applies: encoder, decoder, cross, comma-separated. Default: all;
            with long_input cross, the attention to the source.
        apply_ffn_top_k: each token uses only the k most activated units of a feed-forward layer; 0: all. Default: as in
            training.
        long_input: sources of any length: the encoder reads windows of as many tokens as it has positions, which
            overlap by half, and each query of the decoder attends to as many states, those of the largest scores.
            Default: as in training.
        source_window: encode a source of more tokens in windows of so many; 0: none. Default: as in training.
        source_window_overlap: tokens that neighbouring windows have in common. Default: half of a window.

    Raises:
        UserError: a file is missing or cannot be used, or an argument is invalid.
    """
    # The arguments have the names of `Loading`.
    options = {name: of_python(value) for name, value in locals().items()}
    return load_by(options.pop("path"), Loading(**options))


@torch.inference_mode(False)  # whose tensors do not tell whether they were changed
@on_cpu_by_default()
@renamed(as_keyword)
def load_by(path: str | Path, loading: Loading) -> TextGenerator:
    """As `load`."""
    import_plugins(loading.user_dir)
    check_choice("attention", loading.attention, decode_attention_names())
    device, dtype = usable_device(loading.device), usable_dtype(loading.dtype)
    loading.check()
    checkpoint, *others = map(Checkpoint.read, checkpoint_paths(path))
    folder = checkpoint.folder(loading.data)
    task, dictionaries = checkpoint.task_by(loading, folder, decode_dtype=dtype)
    inputs = [folder, *dictionaries, checkpoint.list_of_languages(folder)]
    for other in others:
        check_same_kind(checkpoint, other)
        others_folder = other.folder(loading.data)
        others_task, others_dictionaries = other.task_by(loading, others_folder, decode_dtype=dtype)
        check_same_task((checkpoint, task, dictionaries), (other, others_task, others_dictionaries))
        inputs += [others_folder, *others_dictionaries, other.list_of_languages(others_folder)]
    known = task.source_dictionary.symbols, checkpoint.is_language_model
    if loading.bpe is None:
        subwords = find_subwords((folder, checkpoint.path.parent), *known)
        if subwords is not None and checkpoint.bpe not in (None, *BPE):
            raise UserError(
                f"{checkpoint.path} was trained with --bpe {checkpoint.bpe}, which elseq does not have: decode it by "
                "fairseq-interactive, or name the kind of the files by bpe",
                others=("bpe",),
            )
    else:
        subwords = read_subwords(loading.bpe, loading.bpe_files(), *known)
    models = [each.build_model(task, device, dtype, only_decodes=True) for each in (checkpoint, *others)]
    language_model = None
    if loading.lm_path is not None:
        language_model, dictionary = load_language_model(
            loading.lm_path, dictionaries[1], loading.attention, device, dtype
        )
        inputs.append(dictionary)
    generator = TextGenerator(models, task, subwords, language_model)
    generator.inputs = tuple(path for path in inputs if path is not None)
    for model in models:
        task.set_dtype(model)
    return generator


def _check_flags(**flags: bool | None) -> None:
    """
    Raises:
        UserError: one is neither True nor False nor left to its default, None.
    """
    for name, value in flags.items():
        if value is not None:
            check_flag(name, value)


def check_max_tokens(max_tokens: int) -> None:
    """
    Raises:
        UserError: it is not an integer above 0.
    """
    if not is_whole(max_tokens) or max_tokens < 1:
        raise UserError(f"{max_tokens!r} is not a whole number above 0", "max_tokens")
