"""Translation and BART finetuning, decoded by elseq."""

import difflib
import logging
import re
from dataclasses import dataclass
from functools import cache
from typing import Optional

import numpy as np
import torch
from fairseq import utils
from fairseq.data import AppendTokenDataset, BaseWrapperDataset
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask, load_langpair_dataset
from omegaconf import OmegaConf
from torch import Tensor

from elseq.compat.data import missing_files_named
from elseq.errors import UserError, as_option, check_choice
from elseq.generation import SequenceGenerator
from elseq.generation.cuda_graphs import release_memory
from elseq.models.config import option
from elseq.models.families import is_of_translation, is_trained_with_bos
from elseq.options import YES_OR_NO
from elseq.tasks.decoding import (
    DecodingConfig,
    DecodingTask,
    check_language,
    check_options,
)

logger = logging.getLogger(__name__)

# Codes of languages in dictionaries: en_XX of mBART, __en__ of M2M-100, eng_Latn of NLLB.
LANGUAGE = re.compile(r"[a-z]{2}_[A-Z]{2}|__[a-z]{2,3}__|[a-z]{3}_[A-Z][a-z]{3}")
SWITCHES = ("prepend_source_bos", "force_bos", "append_source_eos", "score_target_start")


def _yes_or_no(text: str, default: str = "yes for BART"):
    return option(f"{text}; yes or no (default: {default})", argparse_const="yes")


def _word(place: str, default: str = "none"):
    return option(f"word of the dictionary {place} (default: {default})")


@dataclass
class ElseqTranslationConfig(TranslationConfig, DecodingConfig):
    prepend_source_bos: Optional[str] = _yes_or_no("put <s> before the source, as BART was trained")
    force_bos: Optional[str] = _yes_or_no("begin every target with <s>, as BART was trained")
    append_source_eos: Optional[str] = _yes_or_no(
        "end every source with the end symbol, without which a Blenderbot-small was trained", "yes"
    )
    score_target_start: Optional[str] = _yes_or_no(
        "count the log-probability of the symbol that every target begins with, as transformers does not", "yes"
    )
    source_start: Optional[str] = _word("before every source, such as that of the source's language")
    source_end: Optional[str] = _word("after the end symbol of every source, as in mBART-25")
    target_start: Optional[str] = _word("before every generated target, such as that of the target's language")
    decoder_start: Optional[str] = _word(
        "that decoding starts from, such as the target's language in mBART-25", "the end symbol"
    )


@register_task("elseq_translation", dataclass=ElseqTranslationConfig)
class ElseqTranslationTask(TranslationTask, DecodingTask):
    """fairseq's translation task for elseq models, and for stock Transformer and BART checkpoints as they are."""

    trained_with_bos = False  # one of the models was
    # Of a validation of what `translation` has trained: its data has no <s>, whatever BARTs are given to decode.
    AS_FOLLOWED = {"prepend_source_bos": "no", "force_bos": "no"}

    @classmethod
    def setup_task(cls, cfg, **kwargs):
        check_options(cfg)
        for switch in SWITCHES:
            check_choice(as_option(switch), getattr(cfg, switch), YES_OR_NO)
        return super().setup_task(cfg, **kwargs)

    def valid_step(self, sample, model, criterion):
        try:
            return super().valid_step(sample, model, criterion)
        finally:
            release_memory()  # of --eval-bleu: training needs it

    def build_model(self, cfg, from_checkpoint=False):
        model = super().build_model(cfg, from_checkpoint)
        self.note_bos(cfg)
        return model

    def note_bos(self, cfg) -> None:
        """By a model's part of a configuration: whether texts begin with <s> if no option tells."""
        if is_trained_with_bos(cfg):
            self.trained_with_bos = True
            if is_of_translation(cfg) and None in (self.cfg.prepend_source_bos, self.cfg.force_bos):
                _tell_of_bos()

    def max_positions(self):
        return self.positions_of_windows(super().max_positions())

    @property
    def prepend_source_bos(self) -> bool:
        return self._switch("prepend_source_bos")

    @property
    def force_bos(self) -> bool:
        return self._switch("force_bos")

    @property
    def first_source_symbol(self) -> int | None:
        """The row of the symbol before every source: a language's symbol, or the <s> of a BART."""
        return self._first(self.src_dict, "source_start", self.prepend_source_bos)

    @property
    def last_source_symbol(self) -> int | None:
        """The row of the symbol after the end symbol of every source."""
        return self._row(self.src_dict, "source_end")

    @property
    def append_source_eos(self) -> bool:
        return self.cfg.append_source_eos != "no"

    @property
    def symbols_around_source(self) -> tuple[list[int], list[int]]:
        """The rows of the symbols before a source and after it, including the end symbol."""
        first, last = ([] if row is None else [row] for row in (self.first_source_symbol, self.last_source_symbol))
        return first, [self.src_dict.eos()] * self.append_source_eos + last

    @property
    def symbols_of_source(self) -> int:
        """How many symbols are put around a source and its end symbol; -1: that is taken away."""
        return sum(map(len, self.symbols_around_source)) - 1

    @property
    def first_target_symbol(self) -> int | None:
        """The row of the first symbol of every generated target."""
        return self._first(self.tgt_dict, "target_start", self.force_bos)

    @property
    def decoder_start_symbol(self) -> int | None:
        """The row of the symbol that decoding starts from, if that is not the end symbol."""
        row = self._row(self.tgt_dict, "decoder_start")
        return None if row == self.tgt_dict.eos() else row

    @property
    def score_target_start(self) -> bool:
        return self.first_target_symbol is None or self.cfg.score_target_start != "no"

    @property
    def _options_of_languages(self) -> tuple[str, str]:
        """The options whose words are the languages of source and target. In mBART-25 the language of a source follows
        its end, and decoding starts from that of the target."""
        return ("source_end", "decoder_start") if self.cfg.source_end else ("source_start", "target_start")

    @property
    def languages_of_texts(self) -> tuple[str | None, str | None]:
        source, target = self._options_of_languages
        return self.cfg[source], self.cfg[target]

    def for_languages(self, source, target):
        if self.languages_of_texts == (None, None):
            return super().for_languages(source, target)
        named = zip(self._options_of_languages, (source, target), (self.src_dict, self.tgt_dict), strict=True)
        sides = zip(("source_lang", "target_lang"), named, strict=True)
        words = {
            option: self._word_of(language, side, dictionary, self.cfg[option])
            for side, (option, language, dictionary) in sides
            if language is not None
        }
        task = type(self)(OmegaConf.merge(self.cfg, words), self.src_dict, self.tgt_dict)
        task.trained_with_bos, task.has_windows = self.trained_with_bos, self.has_windows
        return task

    @staticmethod
    def _word_of(language: str, side: str, dictionary, known: str | None) -> str:
        """The word of a dictionary for a language: its own name, or in M2M-100 __en__ for en.

        Args:
            side: source_lang or target_lang.
            known: the word for the language of this task.

        Raises:
            UserError: the dictionary has no such language, or codes of another form than `LANGUAGE`.
        """
        words = [word for word in dictionary.symbols if LANGUAGE.fullmatch(word)]
        if known is not None and known not in words:
            raise UserError(
                f"is not for this model: {known!r}, the language of the checkpoint, has none of the forms of languages "
                "that are known, and so which words are the others is not; leave it out",
                as_option(side),
            )
        if isinstance(language, str) and language in words:
            return language
        names = {word.strip("_"): word for word in words}
        check_language(language, list(names), side)
        return names[language]

    @property
    def symbols_of_target(self) -> int:
        return int(self.first_target_symbol is not None)

    def _first(self, dictionary, option: str, with_bos: bool) -> int | None:
        row = self._row(dictionary, option)
        return dictionary.bos() if row is None and with_bos else row

    def _row(self, dictionary, option: str) -> int | None:
        word = getattr(self.cfg, option)
        if word is None:
            return None
        if word not in dictionary:
            near = difflib.get_close_matches(word, dictionary.symbols, cutoff=0.5)
            instead = f": give another, such as {', '.join(near)}" if near else ": give one that it has"
            raise UserError(f"the dictionary does not have {word!r}{instead}", as_option(option))
        return dictionary.index(word)

    def _switch(self, option: str) -> bool:
        value = getattr(self.cfg, option)
        return self.trained_with_bos if value is None else value == "yes"

    @missing_files_named()
    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        """As fairseq does; and with <s> or a language's symbol around sources, and <s> before targets.

        Raises:
            UserError: training of a model whose targets begin with another symbol than <s>; or another end of sources
                that are padded to the lengths of buckets.
        """
        if self.cfg.target_start is not None and split == self.cfg.train_subset:
            raise UserError(
                f"{self.cfg.target_start} is put before targets in decoding only: to train, put it into the data, and "
                "leave the option out",
                "--target-start",
            )
        first, last, start = self.first_source_symbol, self.last_source_symbol, self.decoder_start_symbol
        if (first, last, start) == (None, None, None) and self.append_source_eos:
            return super().load_dataset(split, epoch, combine, **kwargs)
        ends_otherwise = last is not None or not self.append_source_eos
        if ends_otherwise and self.cfg.num_batch_buckets > 0:
            option = "--append-source-eos" if last is None else "--source-end"
            raise UserError("does not go with --num-batch-buckets: leave out one", option)
        paths = utils.split_paths(self.cfg.data)
        path = paths[(epoch - 1) % len(paths)] if split == self.cfg.train_subset else paths[0]
        dataset = self.datasets[split] = load_langpair_dataset(
            path,
            split,
            self.cfg.source_lang,
            self.src_dict,
            self.cfg.target_lang,
            self.tgt_dict,
            combine=combine,
            dataset_impl=self.cfg.dataset_impl,
            upsample_primary=self.cfg.upsample_primary,
            left_pad_source=self.cfg.left_pad_source,
            left_pad_target=self.cfg.left_pad_target,
            max_source_positions=self.cfg.max_source_positions - self.symbols_of_source,  # for --truncate-source
            max_target_positions=self.cfg.max_target_positions,
            prepend_bos=self.force_bos,
            load_alignments=self.cfg.load_alignments,
            truncate_source=self.cfg.truncate_source,
            num_buckets=self.cfg.num_batch_buckets,
            shuffle=split != "test",
            pad_to_multiple=self.cfg.required_seq_len_multiple,
            prepend_bos_src=first,
        )
        if not self.append_source_eos:
            dataset.src = _WithoutEnd(dataset.src, keeps_one=last is None)
        if last is not None:
            dataset.src = AppendTokenDataset(dataset.src, last)
        if ends_otherwise:
            dataset.src_sizes = dataset.src.sizes
            sizes = dataset.src_sizes, dataset.tgt_sizes
            dataset.sizes = dataset.src_sizes if dataset.tgt is None else np.stack(sizes, axis=1)
        if start is not None:
            dataset.eos = start  # which its batches put before the targets that the decoder reads

    def build_dataset_for_inference(self, src_tokens, src_lengths, constraints=None):
        symbols = self.first_source_symbol, self.last_source_symbol
        if not self.append_source_eos:
            src_tokens = [_without_end(tokens, keeps_one=symbols == (None, None)) for tokens in src_tokens]
            src_lengths = [len(tokens) for tokens in src_tokens]
        if symbols != (None, None):
            before, after = (torch.tensor([] if symbol is None else [symbol]).long() for symbol in symbols)
            src_tokens = [torch.cat((before, tokens, after)) for tokens in src_tokens]
            added = before.numel() + after.numel()
            src_lengths = [length + added for length in src_lengths]
        dataset = super().build_dataset_for_inference(src_tokens, src_lengths, constraints)
        dataset.left_pad_source = False  # behind a source, padding does not change how its sums are rounded
        return dataset

    def inference_step(self, generator, models, sample, prefix_tokens=None, constraints=None):
        if self.prefix_start is not None:
            prefix_tokens = self.with_prefix_start(sample, prefix_tokens)
        options = {"prefix_tokens": prefix_tokens, "constraints": constraints}
        if (start := self.decoder_start_symbol) is not None:
            options["bos_token"] = start
        if not self.score_target_start and isinstance(generator, SequenceGenerator):  # fairseq's counts it always
            options["uncounted"] = 1
        with torch.no_grad():
            return generator.generate(models, sample, **options)

    @property
    def prefix_start(self) -> int | None:
        return self.first_target_symbol

    def whole_target(self, tokens: Tensor) -> Tensor:
        symbol = self.first_target_symbol
        if symbol is None or tokens[0] == symbol:
            return tokens
        return torch.cat((torch.tensor([symbol]), tokens))

    def score_step(self, model, sample, targets):
        found = super().score_step(model, sample, targets)
        if not self.score_target_start:
            for each in found:
                each["positional_scores"][0] = 0
                each["score"] = each["positional_scores"].sum()
        return found


@cache
def _tell_of_bos() -> None:
    """Once, not for each model of an ensemble."""
    logger.info(
        "sources and targets begin with <s>, as in BART's pretraining. The task translation trained without it: to "
        "decode as it does, set the options prepend-source-bos and force-bos to no"
    )


class _WithoutEnd(BaseWrapperDataset):
    """Sources without their end symbol."""

    def __init__(self, dataset, keeps_one: bool):
        super().__init__(dataset)
        self.keeps_one = keeps_one

    def __getitem__(self, index):
        return _without_end(self.dataset[index], self.keeps_one)

    @property
    def sizes(self):
        return np.maximum(np.asarray(self.dataset.sizes) - 1, int(self.keeps_one))


def _without_end(source: Tensor, keeps_one: bool) -> Tensor:
    """
    Args:
        source: int64 [S], S tokens.
        keeps_one: keep the end symbol of a source of that alone: a model must read something.
    """
    return source[:-1] if len(source) > 1 or not keeps_one else source
