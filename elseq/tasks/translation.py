"""Translation and BART finetuning, decoded by elseq."""

import difflib
from dataclasses import dataclass, field
from typing import Optional

import torch
from fairseq import utils
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask, load_langpair_dataset
from omegaconf import OmegaConf
from torch import Tensor

from elseq.errors import UserError, as_option, check_choice
from elseq.generation.cuda_graphs import release_memory
from elseq.models.families import is_trained_with_bos
from elseq.tasks.decoding import (
    DecodingConfig,
    DecodingTask,
    check_options,
    missing_files_named,
)

YES_OR_NO = ("yes", "no")


def _yes_or_no(text: str):
    return field(default=None, metadata={"help": text + "; yes or no (default: yes for BART)", "argparse_const": "yes"})


def _word(what: str, example: str):
    return field(
        default=None,
        metadata={"help": f"word of the dictionary before every {what}, such as {example} (default: none)"},
    )


@dataclass
class ElseqTranslationConfig(TranslationConfig, DecodingConfig):
    prepend_source_bos: Optional[str] = _yes_or_no("put <s> before the source, as BART was trained")  # noqa: UP045
    force_bos: Optional[str] = _yes_or_no("begin every target with <s>, as BART was trained")  # noqa: UP045
    source_start: Optional[str] = _word("source", "that of the source's language")  # noqa: UP045
    target_start: Optional[str] = _word("generated target", "that of the target's language")  # noqa: UP045


@register_task("elseq_translation", dataclass=ElseqTranslationConfig)
class ElseqTranslationTask(TranslationTask, DecodingTask):
    """fairseq's translation task for elseq models, and for stock Transformer and BART checkpoints as they are."""

    trained_with_bos = False  # one of the models was

    @classmethod
    def setup_task(cls, cfg, **kwargs):
        check_options(cfg)
        check_choice("--prepend-source-bos", cfg.prepend_source_bos, YES_OR_NO)
        check_choice("--force-bos", cfg.force_bos, YES_OR_NO)
        try:
            with missing_files_named():
                return super().setup_task(cfg, **kwargs)
        except Exception as error:
            if not str(error).startswith("Could not infer language pair"):
                raise
            raise UserError(
                f"{cfg.data} holds no files of a language pair (SUBSET.SOURCE-TARGET.SOURCE); check the data folder, "
                "or give --source-lang and --target-lang"
            ) from error

    def valid_step(self, sample, model, criterion):
        try:
            return super().valid_step(sample, model, criterion)
        finally:
            release_memory()  # of --eval-bleu: training needs it

    def build_model(self, cfg, from_checkpoint=False):
        model = super().build_model(cfg, from_checkpoint)
        self.trained_with_bos |= is_trained_with_bos(cfg)
        return model

    @property
    def prepend_source_bos(self) -> bool:
        return self._switch("prepend_source_bos")

    @property
    def force_bos(self) -> bool:
        return self._switch("force_bos")

    @property
    def first_source_symbol(self) -> int | None:
        """The row of what is put before every source: a language's symbol, or the <s> of a BART."""
        return self._first(self.src_dict, "source_start", self.prepend_source_bos)

    @property
    def first_target_symbol(self) -> int | None:
        """The row of what every generated target begins with."""
        return self._first(self.tgt_dict, "target_start", self.force_bos)

    @property
    def languages_of_texts(self) -> tuple[str | None, str | None]:
        return self.cfg.source_start, self.cfg.target_start

    def for_languages(self, source, target):
        if self.languages_of_texts == (None, None):
            return super().for_languages(source, target)
        starts = {}
        for option, language, dictionary in (
            ("source_start", source, self.src_dict),
            ("target_start", target, self.tgt_dict),
        ):
            if language is not None:
                starts[option] = self._word(language, dictionary)
        cfg = OmegaConf.merge(self.cfg, starts)
        task = type(self)(cfg, self.src_dict, self.tgt_dict)
        task.trained_with_bos = self.trained_with_bos
        return task

    @staticmethod
    def _word(language: str, dictionary) -> str:
        """The word of a dictionary for a language: its own name, or in M2M-100 __en__ for en."""
        return f"__{language}__" if f"__{language}__" in dictionary else language

    @property
    def symbols_of_source(self) -> int:
        return int(self.first_source_symbol is not None)

    @property
    def symbols_of_target(self) -> int:
        return int(self.first_target_symbol is not None)

    def _first(self, dictionary, option: str, with_bos: bool) -> int | None:
        word = getattr(self.cfg, option)
        if word is None:
            return dictionary.bos() if with_bos else None
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
        """As fairseq does; and with <s> or a language's symbol before sources, and <s> before targets.

        Raises:
            UserError: training of a model whose targets begin with another symbol than <s>.
        """
        if self.cfg.target_start is not None and split == self.cfg.train_subset:
            raise UserError(
                f"{self.cfg.target_start} is put before targets in decoding only: to train, put it into the data, and "
                "leave the option out",
                "--target-start",
            )
        first = self.first_source_symbol
        if first is None:
            return super().load_dataset(split, epoch, combine, **kwargs)
        paths = utils.split_paths(self.cfg.data)
        path = paths[(epoch - 1) % len(paths)] if split == self.cfg.train_subset else paths[0]
        self.datasets[split] = load_langpair_dataset(
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
            max_source_positions=self.cfg.max_source_positions - 1,  # for --truncate-source: room for it
            max_target_positions=self.cfg.max_target_positions,
            prepend_bos=self.force_bos,
            load_alignments=self.cfg.load_alignments,
            truncate_source=self.cfg.truncate_source,
            num_buckets=self.cfg.num_batch_buckets,
            shuffle=split != "test",
            pad_to_multiple=self.cfg.required_seq_len_multiple,
            prepend_bos_src=first,
        )

    def build_dataset_for_inference(self, src_tokens, src_lengths, constraints=None):
        if (symbol := self.first_source_symbol) is not None:
            first = torch.tensor([symbol])
            src_tokens = [torch.cat((first, tokens)) for tokens in src_tokens]
            src_lengths = [length + 1 for length in src_lengths]
        return super().build_dataset_for_inference(src_tokens, src_lengths, constraints)

    def inference_step(self, generator, models, sample, prefix_tokens=None, constraints=None):
        if (symbol := self.first_target_symbol) is not None:
            prefix_tokens = self._with_first(symbol, sample, prefix_tokens)
        return super().inference_step(generator, models, sample, prefix_tokens, constraints)

    def score_step(self, model, sample, targets):
        """As the base class; each target begins with the symbol with which generated ones begin."""
        if (symbol := self.first_target_symbol) is not None:
            first = torch.tensor([symbol])
            targets = [each if each[0] == symbol else torch.cat((first, each)) for each in targets]
        return super().score_step(model, sample, targets)

    @staticmethod
    def _with_first(symbol: int, sample: dict, prefix_tokens: Tensor | None) -> Tensor:
        source = sample["net_input"]["src_tokens"]
        first = source.new_full((source.size(0), 1), symbol)
        if prefix_tokens is None:
            return first
        if bool(prefix_tokens[:, :1].eq(first).all()):
            return prefix_tokens
        return torch.cat((first, prefix_tokens), dim=1)
