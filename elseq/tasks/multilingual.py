"""fairseq's tasks of several languages, decoded by elseq.

The places of the symbols of languages depend on the task:

| task | before the source | at its end | the target begins with | ends with |
|-|-|-|-|-|
| translation_multi_simple_epoch | a language | `</s>` | `</s>`, the target's language | `</s>` |
| the same, --lang-tok-replacing-bos-eos | | a language | the target's language | `</s>` |
| translation_from_pretrained_bart | | `</s>`, the source's language | the target's language | the target's language |
| multilingual_translation | | a language or `</s>` | the target's language or `</s>` | `</s>` |

With --prepend-bos, <s> is the first word of sources and targets of translation_from_pretrained_bart.
"""

import inspect
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from fairseq.data import Dictionary
from fairseq.data.multilingual.multilingual_data_manager import MultilingualDatasetManager
from fairseq.data.multilingual.multilingual_utils import LangTokStyle
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.tasks import register_task
from fairseq.tasks.multilingual_translation import MultilingualTranslationTask
from fairseq.tasks.translation_from_pretrained_bart import TranslationFromPretrainedBARTTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from torch import Tensor

from elseq.errors import UserError, as_option
from elseq.files import check_ordinary
from elseq.options import STOCK
from elseq.tasks.decoding import (
    DecodingConfig,
    DecodingTask,
    check_language,
    check_options,
    first_few,
    option_of_windows,
    windows_of,
)

# Words that the NLLB branch of fairseq adds to a dictionary, after the languages. They are put before sources that are
# not from human translators, in training only.
DATA_SOURCES = ("<MINED_DATA>", "<MMT_BT_DATA>", "<SMT_BT_DATA>")


class MultilingualTask:
    """A base class that precedes a task of fairseq; `DecodingTask` follows it.

    Attributes:
        languages: the codes that the model was trained with, in the order of their symbols.
    """

    languages: Sequence[str]

    @classmethod
    def add_args(cls, parser):
        super().add_args(parser)
        gen_parser_from_dataclass(parser, DecodingConfig())

    @classmethod
    def defaults(cls, data: str) -> dict:
        """All options of the task.

        Args:
            data: the folder of the data.
        """
        parser = ArgumentParser()
        cls.add_args(parser)
        return vars(parser.parse_args([data]))

    @classmethod
    def setup_task(cls, args, **kwargs):
        """
        Raises:
            UserError: an option is missing or has an impossible value, a language is not the model's, or a file is
                missing.
        """
        for name, value in cls.defaults(str(args.data)).items():
            if not hasattr(args, name):  # fairseq-validate reads the options of the training
                setattr(args, name, value)
        check_options(args)
        cls.check_languages(args)
        return super().setup_task(args, **kwargs)

    @classmethod
    def languages_of(cls, args) -> list[str]:
        """The codes of all languages, in the order of their symbols.

        Raises:
            UserError: the option with the languages is missing.
        """
        raise NotImplementedError

    @classmethod
    def of_dictionaries(cls, args, source: Dictionary, target: Dictionary):
        """The task for `args.source_lang` and `args.target_lang`, without data.

        Args:
            args: all options of the task.
            source, target: the dictionaries. The symbols of the languages are added if they lack them.
        """
        raise NotImplementedError

    @property
    def languages_of_texts(self) -> tuple[str, str]:
        return self.args.source_lang, self.args.target_lang

    def pair_with(self, source: str | None, target: str | None) -> tuple[str, str]:
        """The given languages; for None, those of this task."""
        known = self.languages_of_texts
        return known[0] if source is None else source, known[1] if target is None else target

    def options_for(self, source: str | None, target: str | None) -> Namespace:
        """The options for other languages of the model; arguments as of `for_languages`.

        Raises:
            UserError: a language is not the model's.
        """
        source, target = self.pair_with(source, target)
        args = Namespace(**{**vars(self.args), "source_lang": source, "target_lang": target})
        self.check_languages(args)
        return args

    def for_languages(self, source, target):
        args = self.options_for(source, target)
        task = self.of_dictionaries(args, self.source_dictionary, self.target_dictionary)
        task.has_windows = self.has_windows
        return task

    @classmethod
    def check_languages(cls, args, needed: bool = False) -> None:
        """
        Args:
            args: the options of the task.
            needed: whether there must be languages, as in decoding.

        Raises:
            UserError: a language is missing, or is not the model's.
        """
        languages = cls.languages_of(args)
        for side in ("source_lang", "target_lang"):
            language = getattr(args, side)
            if language is None and (needed or args.source_lang is not None or args.target_lang is not None):
                raise UserError(f"is missing: give one of {first_few(languages)}", as_option(side))
            if language is not None:
                check_language(language, languages, side)

    def build_model(self, cfg, from_checkpoint=False):
        return DecodingTask.build_model(self, cfg, from_checkpoint)

    def max_positions(self):
        return self.positions_of_windows(super().max_positions())

    def build_generator(self, *args, **kwargs):
        """As for other tasks. Only a training and fairseq-validate may do without languages."""
        self.check_languages(self.args, needed=True)
        return super().build_generator(*args, **kwargs)

    def build_dataset_for_inference(self, src_tokens, src_lengths, constraints=None):
        if constraints is not None:
            raise UserError(f"is not for models of the task {self.multilingual_name}: leave it out", "--constraints")
        return super().build_dataset_for_inference(src_tokens, src_lengths)

    def inference_step(self, generator, models, sample, prefix_tokens=None, constraints=None):
        if prefix_tokens is not None and self.prefix_start is not None:  # fairseq leaves it out
            prefix_tokens = self.with_prefix_start(sample, prefix_tokens)
        return super().inference_step(generator, models, sample, prefix_tokens, constraints)


def _pairs(args) -> list[str]:
    """
    Raises:
        UserError: --lang-pairs is missing, or is no list of pairs.
    """
    if not args.lang_pairs:
        raise UserError("is missing: give the pairs of the training, such as de-en,en-de", "--lang-pairs")
    return _checked_pairs(_names(args, "lang_pairs"), "--lang-pairs")


def _checked_pairs(pairs: list[str], option: str) -> list[str]:
    for pair in pairs:
        _check_hyphens(pair, 1, option)
        if len(list(filter(None, pair.split("-")))) != 2:
            raise UserError(f"{pair or repr(pair)} is no pair of languages: give such as de-en", option)
    return pairs


def _check_hyphens(name: str, most: int, option: str) -> None:
    """
    Raises:
        UserError: the code of a language has a hyphen.
    """
    if name.count("-") > most:
        raise UserError(
            f"{name} has a language with a hyphen, and fairseq takes pairs apart at hyphens: write such as zh_CN for "
            "zh-CN, also in the names of the data files",
            option,
        )


def _names(args, option: str) -> list[str]:
    """
    Raises:
        UserError: the option is neither names with commas nor a list of names, or has no name.
    """
    given = getattr(args, option)
    names = given.split(",") if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{given!r:.60} is no list of names: give names with commas", as_option(option))
    if not any(names):
        raise UserError("is empty: give names with commas", as_option(option))
    return list(names)


def _table(args, option: str) -> dict:
    """
    Raises:
        UserError: the option is no dictionary.
    """
    given = getattr(args, option)
    if given is not None and not isinstance(given, Mapping):
        raise UserError(f"{given!r:.60} is no dictionary: give it as in the training", as_option(option))
    return dict(given or {})


def _languages_of(pairs: Sequence[str]) -> list[str]:
    return sorted({language for pair in pairs for language in pair.split("-")})


@register_task("elseq_translation_multi_simple_epoch")
class ElseqTranslationMultiSimpleEpochTask(MultilingualTask, TranslationMultiSimpleEpochTask, DecodingTask):
    """M2M-100, mBART-50, NLLB."""

    multilingual_name = "translation_multi_simple_epoch"

    @classmethod
    def add_args(cls, parser):
        super().add_args(parser)
        parser.add_argument(
            "--add-data-source-prefix-tags",
            action="store_true",
            help=f"the dictionary ends with {' '.join(DATA_SOURCES)}, as in NLLB",
        )

    @classmethod
    def setup_task(cls, args, **kwargs):
        for side in ("source_lang", "target_lang"):
            _check_hyphens(str(getattr(args, side, None) or ""), 0, as_option(side))
        return super().setup_task(args, **kwargs)

    def __init__(self, args, langs, dicts, training):
        self.languages = langs
        if args.add_data_source_prefix_tags:
            for dictionary in dicts.values():
                for word in DATA_SOURCES:
                    dictionary.add_symbol(word)
        super().__init__(args, langs, dicts, training)
        if not training:
            before, first = args.langtoks["main"]
            try:
                self.data_manager.get_encoder_langtok(args.source_lang, args.target_lang, before)
                self.data_manager.get_decoder_langtok(args.target_lang, first)
            except AssertionError as error:
                raise UserError(f"{error}: give --langtoks-specs as in the training", "--langtoks") from error

    def build_model(self, cfg, from_checkpoint=False):
        """
        Raises:
            UserError: as for other tasks, or batches are to have numbers of languages that the model does not take.
        """
        model = super().build_model(cfg, from_checkpoint)
        if self.args.enable_lang_ids and not any(
            "src_lang_id" in inspect.signature(module.forward).parameters for module in model.modules()
        ):
            raise UserError(
                "is for a model of a plugin that reads src_lang_id, and this one does not: leave it out",
                "--enable-lang-ids",
            )
        return model

    @property
    def places_of_languages(self) -> tuple:
        """The settings that decide where the symbols of languages are."""
        return self.args.langtoks["main"], bool(self.args.lang_tok_replacing_bos_eos)

    @property
    def symbols_of_source(self) -> int:
        before, _ = self.args.langtoks["main"]
        return int(before is not None and not self.args.lang_tok_replacing_bos_eos)

    @property
    def symbols_of_target(self) -> int:
        return len(self.symbols_of_language) if not self.args.lang_tok_replacing_bos_eos else 0

    @property
    def prefix_start(self) -> int | None:
        return next(iter(self.symbols_of_language)) if self.symbols_of_target else None

    @property
    def decoder_start_symbol(self) -> int | None:
        return next(iter(self.symbols_of_language), None) if self.args.lang_tok_replacing_bos_eos else None

    def whole_target(self, tokens: Tensor) -> Tensor:
        return tokens if self.prefix_start is None else torch.cat((tokens.new_tensor([self.prefix_start]), tokens))

    @property
    def symbols_of_language(self) -> frozenset[int]:
        _, first = self.args.langtoks["main"]
        if first is None:
            return frozenset()
        return frozenset({self.data_manager.get_decoder_langtok(self.args.target_lang, first)})

    @classmethod
    def languages_of(cls, args) -> list[str]:
        pairs = _pairs(args)
        if args.langs and args.lang_dict:
            raise UserError("does not go with --langs: give one of them", "--lang-dict")
        if not args.langs and not args.lang_dict:
            return _languages_of(pairs)
        if args.langs:
            return _names(args, "langs")
        check_ordinary(args.lang_dict)
        try:
            languages = MultilingualDatasetManager.load_langs(args)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{args.lang_dict} cannot be read ({reason}): give a text file", "--lang-dict") from error
        if not languages:
            raise UserError(f"{args.lang_dict} names no language: give one on each line", "--lang-dict")
        return languages

    @classmethod
    def check_languages(cls, args, needed=False) -> None:
        super().check_languages(args, needed)
        if args.source_lang is None and args.target_lang is None:
            languages = cls.languages_of(args)
            unknown = [language for language in _languages_of(_pairs(args)) if language not in languages]
            if unknown:
                raise UserError(
                    f"{unknown[0]} is none of the languages, {first_few(languages)}: add it", "--lang-pairs"
                )
        cls._check_symbols(args)

    @classmethod
    def _check_symbols(cls, args) -> None:
        """
        Raises:
            UserError: an option for the symbols of languages, or for their places, has an unknown value. fairseq
                checks these when it reads the data, or never.
        """
        styles = [style.value for style in LangTokStyle]
        if args.lang_tok_style not in styles:
            raise UserError(f"{args.lang_tok_style} is unknown; choose one of {', '.join(styles)}", "--lang-tok-style")
        _names(args, "langtoks_specs")
        _table(args, "extra_data")
        for pairs in _table(args, "extra_lang_pairs").values():
            if not isinstance(pairs, str):
                raise UserError(f"{pairs!r:.60} is no text: give pairs with commas", "--extra-lang-pairs")
            _checked_pairs(pairs.split(","), "--extra-lang-pairs")
        places = _table(args, "langtoks")
        for pair in places.values():
            if (
                isinstance(pair, str)
                or not isinstance(pair, Sequence)
                or len(pair) != 2
                or not all(place is None or isinstance(place, str) and place for place in pair)
            ):
                raise UserError(
                    f"{pair!r:.60} does not say where symbols stand: give two, such as ('src', 'tgt') or (None, 'tgt')",
                    "--langtoks",
                )
        args.langtoks = {name: tuple(pair) for name, pair in places.items()}

    @classmethod
    def of_dictionaries(cls, args, source, target):
        args.langs, args.lang_dict = cls.languages_of(args), None  # otherwise fairseq would log them each time
        args.enable_lang_ids = False  # they are for batches of data sets
        args.lang_pairs = _names(args, "lang_pairs")[:1]  # each `for_languages` would read all of NLLB's 40,000
        args.fixed_dictionary, args.source_dict, args.target_dict = None, "source", "target"
        langs, dicts, training = MultilingualDatasetManager.prepare(
            {"source": source, "target": target}.__getitem__, args
        )
        return cls(args, langs, dicts, training)


@register_task("elseq_translation_from_pretrained_bart")
class ElseqTranslationFromPretrainedBARTTask(MultilingualTask, TranslationFromPretrainedBARTTask, DecodingTask):
    """mBART-25."""

    multilingual_name = "translation_from_pretrained_bart"

    def __init__(self, args, src_dict, tgt_dict):
        self.languages = self.languages_of(args)
        args.langs = ",".join(self.languages)
        super().__init__(args, src_dict, tgt_dict)

    @classmethod
    def languages_of(cls, args) -> list[str]:
        if not args.langs:
            raise UserError("is missing: give the languages of the training, in their order", "--langs")
        return _names(args, "langs")

    @classmethod
    def of_dictionaries(cls, args, source, target):
        return cls(args, source, target)

    @property
    def symbols_of_language(self) -> frozenset[int]:
        return frozenset({self.target_dictionary.index(f"[{self.args.target_lang}]")})

    def build_model(self, cfg, from_checkpoint=False):
        return TranslationFromPretrainedBARTTask.build_model(self, cfg, from_checkpoint)

    @property
    def decoder_start_symbol(self) -> int:
        (end,) = self.symbols_of_language
        return end

    def whole_target(self, tokens: Tensor) -> Tensor:
        first = [self.target_dictionary.bos()] * self.args.prepend_bos
        return torch.cat((tokens.new_tensor(first), tokens, tokens.new_tensor([self.decoder_start_symbol])))

    @property
    def symbols_of_source(self) -> int:
        return 1 + self.args.prepend_bos

    symbols_of_target = symbols_of_source

    @property
    def prefix_start(self) -> int | None:
        return self.target_dictionary.bos() if self.args.prepend_bos else None

    @property
    def places_of_languages(self) -> tuple:
        """The setting on which the symbols around texts depend."""
        return (self.args.prepend_bos,)

    def build_dataset_for_inference(self, src_tokens, src_lengths, constraints=None):
        if self.args.prepend_bos:  # fairseq does this only for data sets
            first = self.source_dictionary.bos()
            src_tokens = [torch.cat((each.new_tensor([first]), each)) for each in src_tokens]
            src_lengths = [length + 1 for length in src_lengths]
        return super().build_dataset_for_inference(src_tokens, src_lengths, constraints)

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, **kwargs):
        """As for other tasks, but hypotheses start and end with the symbol of the target's language."""
        (end,) = self.symbols_of_language
        extra = {**(extra_gen_cls_kwargs or {}), "eos": end}
        generator = DecodingTask.build_generator(self, models, args, seq_gen_cls, extra, **kwargs)
        if getattr(args, "score_reference", False):  # `FairseqTask` gives its scorer nothing of `extra`
            generator.eos, generator.symbols_to_strip_from_output = end, {end}
        return generator


@register_task("elseq_multilingual_translation")
class ElseqMultilingualTranslationTask(MultilingualTask, MultilingualTranslationTask, DecodingTask):
    """A task for models of several pairs of languages. One pair is decoded."""

    multilingual_name = "multilingual_translation"

    def __init__(self, args, dicts, training):
        super().__init__(args, dicts, training)
        self.languages = self.languages_of(args)

    @classmethod
    def languages_of(cls, args) -> list[str]:
        return _languages_of(_pairs(args))

    @property
    def places_of_languages(self) -> tuple:
        """The settings that decide where the symbols of languages are."""
        return self.args.encoder_langtok or None, bool(self.args.decoder_langtok)

    @classmethod
    def check_languages(cls, args, needed=False) -> None:
        super().check_languages(args, needed)
        if args.source_lang is not None and f"{args.source_lang}-{args.target_lang}" not in _pairs(args):
            raise _unfit(args, f"is not a pair of the model: give one of {first_few(_pairs(args))}")

    @classmethod
    def of_dictionaries(cls, args, source, target):
        cls.update_args(args)
        if args.encoder_langtok is not None or args.decoder_langtok:
            for dictionary in (source, target):
                for language in cls.languages_of(args):
                    dictionary.add_symbol(f"__{language}__")
        return cls(args, {args.source_lang: source, args.target_lang: target}, training=False)

    def for_languages(self, source, target):
        args = self.options_for(source, target)
        if (args.source_lang, args.target_lang) != self.languages_of_texts:
            raise _unfit(args, f"is not the pair of the model, {self.lang_pairs[0]}: load the checkpoint for this pair")
        return self

    def build_model(self, cfg, from_checkpoint=False):
        """For decoding, the Transformer of the pair, with the parameters of fairseq's `models.SOURCE-TARGET`."""
        if not from_checkpoint or self.training:
            if windows_of(self.args) is not None:
                raise UserError("is not for the training of several pairs: leave it out", option_of_windows(self.args))
            return MultilingualTranslationTask.build_model(self, cfg, from_checkpoint)
        self._check_training(cfg)
        if self.options.decode_attention == STOCK:
            self.check_stock(cfg, from_checkpoint)
            model = MultilingualTranslationTask.build_model(self, cfg, from_checkpoint)
            model.max_positions = model.models[self.lang_pairs[0]].max_positions  # as `self.max_positions`
            return model
        model = super().build_model(_of_pair(cfg), from_checkpoint)
        model.load_state_dict = partial(_load_pair, model.load_state_dict, f"models.{self.lang_pairs[0]}.")
        return model

    def _check_training(self, cfg) -> None:
        """
        Raises:
            UserError: an option differs from that of the training.
        """
        for option in ("encoder_langtok", "decoder_langtok"):
            trained, given = getattr(cfg, option, None), getattr(self.args, option)
            if (trained or None) != (given or None):
                remedy = f"give {as_option(option)}" if trained else f"leave out {as_option(option)}"
                value = f" {trained}" if isinstance(trained, str) else ""
                raise UserError(
                    f"the model was trained {'with' if trained else 'without'} it: {remedy}{value}", as_option(option)
                )
        if sorted(_pairs(cfg)) != sorted(_pairs(self.args)):
            raise UserError(f"differs from the training's: give {','.join(_pairs(cfg))}", "--lang-pairs")

    def build_dataset_for_inference(self, src_tokens, src_lengths, constraints=None):
        dataset = super().build_dataset_for_inference(src_tokens, src_lengths, constraints)
        return dataset.datasets[self.lang_pairs[0]]

    @property
    def decoder_start_symbol(self) -> int:
        return self.get_decoder_langtok(self.args.target_lang)

    def _per_lang_pair_valid_loss(self, lang_pair, model, criterion, sample):
        return criterion(getattr(model, "models", {lang_pair: model})[lang_pair], sample[lang_pair])

    def max_positions(self):
        if self.training:
            return MultilingualTranslationTask.max_positions(self)
        return self.positions_of_windows((self.args.max_source_positions, self.args.max_target_positions))


def _unfit(args, what: str) -> UserError:
    """A sentence about both languages of the options."""
    pair = f"{args.source_lang} with --target-lang {args.target_lang}"
    return UserError(f"{pair} {what}", "--source-lang", ["--target-lang"])


def _of_pair(cfg) -> Namespace:
    """The configuration of a pair's Transformer."""
    options = {**vars(cfg), "_name": "transformer", "arch": "transformer"}
    if options.get("share_all_embeddings"):
        options["share_decoder_input_output_embed"] = True
    return Namespace(**options)


def _load_pair(load, beginning: str, state_dict: dict, *args, **kwargs):
    """Load the parameters whose names have this beginning."""
    return load(
        {name.removeprefix(beginning): tensor for name, tensor in state_dict.items() if name.startswith(beginning)},
        *args,
        **kwargs,
    )


# By fairseq's name of the task.
MULTILINGUAL_TASKS = {
    task.multilingual_name: task
    for task in (
        ElseqTranslationMultiSimpleEpochTask,
        ElseqTranslationFromPretrainedBARTTask,
        ElseqMultilingualTranslationTask,
    )
}
