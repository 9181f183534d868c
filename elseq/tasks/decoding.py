"""The base of elseq's tasks: stock models become elseq models, and elseq's generator decodes them."""

import difflib
import logging
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Optional

import torch
from fairseq.distributed import FullyShardedDataParallel
from fairseq.tasks import FairseqTask
from torch import Tensor

from elseq.attention import methods
from elseq.attention.methods import AUTO
from elseq.bounds import check_flag, is_whole
from elseq.compat.generation import with_alignment
from elseq.compat.settings import model_class, values, whole_of
from elseq.errors import UserError, as_option, check_choice, renamed
from elseq.generation import SequenceGenerator
from elseq.generation.options import STOPPING_OPTIONS, StoppingConfig
from elseq.generation.scorer import score_targets
from elseq.generation.stopping import Stopping
from elseq.models import Decoder
from elseq.models.config import option
from elseq.models.families import check_model, check_task_of_model
from elseq.models.stock import EQUIVALENT, equivalent_model, stock_configuration
from elseq.models.top_k import CROSS, PLACES, apply_attention_top_k, apply_ffn_top_k, set_chunk_sizes
from elseq.models.windows import UNLIMITED, SourceWindows, chosen_windows
from elseq.options import STOCK, WINDOWS, Loading, decode_attention_names, help_of
from elseq.precision import DTYPES, INT8

logger = logging.getLogger(__name__)

# The options that apply top-k to any model, and those that train with it.
APPLIED = {"apply_top_k": "--attention-top-k", "apply_ffn_top_k": "--ffn-top-k"}
DTYPE = "--decode-dtype"
OPTIONS_OF_WINDOWS = (*WINDOWS, "train_windows")


@dataclass
class DecodingConfig(StoppingConfig):
    """Options of both tasks."""

    decode_attention: Optional[str] = option(
        f"{methods.describe()}; {STOCK} leaves everything to fairseq (default: as the model was configured)"
    )
    decode_dtype: Optional[str] = option(
        f"data type used for decoding: {', '.join(DTYPES)}; int8 evaluates the linear layers in int8 and all "
        "else in float32, on a CPU (default: those of the parameters)"
    )
    apply_top_k: Optional[int] = option(help_of(Loading, "apply_top_k"))
    apply_top_k_in: Optional[str] = option(help_of(Loading, "apply_top_k_in"))
    apply_ffn_top_k: Optional[int] = option(help_of(Loading, "apply_ffn_top_k"))
    query_chunk_size: Optional[int] = option(
        "queries that top-k attention evaluates together (default: as the model was configured)"
    )
    ffn_chunk_size: Optional[int] = option(
        "tokens that a top-k feed-forward layer evaluates together (default: as the model was configured)"
    )
    long_input: bool = option(help_of(Loading, "long_input"), False)
    source_window: Optional[int] = option(help_of(Loading, "source_window"))
    source_window_overlap: Optional[int] = option(help_of(Loading, "source_window_overlap"))
    train_windows: Optional[int] = option(
        "in training, gradients flow through so many random windows of a source (default: all)"
    )


def check_options(options) -> None:
    """
    Raises:
        UserError: there is no data, or an option of `DecodingConfig` has an impossible value.
    """
    if not options.data:
        raise UserError("the data folder is missing: give it (to Hydra, as task.data=FOLDER)")
    check_choice("--decode-attention", options.decode_attention, decode_attention_names())
    check_choice(DTYPE, options.decode_dtype, tuple(DTYPES))
    with renamed(as_option):
        Stopping(options.early_stopping, options.beam_patience)
    for name in APPLIED:
        value = getattr(options, name)
        if value is not None and not (is_whole(value) and value >= 0):
            raise UserError(f"{value} is not possible: give 1 or more, or 0 for all", as_option(name))
    for name in ("query_chunk_size", "ffn_chunk_size"):
        value = getattr(options, name)
        if value is not None and not (is_whole(value) and value >= 1):
            raise UserError(f"{value} is not possible: give 1 or more", as_option(name))
    windows_of(options)
    if options.apply_top_k_in is None:
        return
    if not isinstance(options.apply_top_k_in, str):
        raise UserError(f"{options.apply_top_k_in} is not possible: give names with commas", "--apply-top-k-in")
    places = _places(options.apply_top_k_in)
    for place in places:
        check_choice("--apply-top-k-in", place, PLACES)
    if options.apply_top_k is None and set(places) != set(PLACES):
        raise UserError(
            f"{options.apply_top_k_in} says where the k largest scores count, and there is no k: give both",
            "--apply-top-k-in",
        )


def windows_of(options, positions: int = UNLIMITED) -> SourceWindows | None:
    """
    Args:
        options: of a task.
        positions: of the encoder.

    Raises:
        UserError: an option has a wrong type, or options do not go together or with the positions.
    """
    given = {name: getattr(options, name, None) for name in OPTIONS_OF_WINDOWS}
    with renamed(as_option):
        for name, value in given.items():
            if value is None:
                continue
            if name == "long_input":
                check_flag(name, value)
            elif not is_whole(value):
                raise UserError(f"{value} is not possible: give a number", name)
        return chosen_windows(positions, **given)


def option_of_windows(options) -> str:
    """The option that asks for windows."""
    return as_option("long_input" if options.long_input else "source_window")


def _places(text: str) -> tuple[str, ...]:
    return tuple(place.strip() for place in text.split(","))


def check_language(language, languages: Sequence[str], side: str) -> None:
    """
    Args:
        language: the code of a language.
        languages: the languages of the model.
        side: source_lang or target_lang.

    Raises:
        UserError: the language is not one of the model's.
    """
    if isinstance(language, Iterable) and not isinstance(language, str):
        raise UserError(
            f"{language!r:.60} is no string: give one of {first_few(languages)} for all texts", as_option(side)
        )
    if language not in languages:
        near = difflib.get_close_matches(str(language), languages, n=3, cutoff=0.4)
        others = [each for each in languages if each not in near]
        instead = ", or ".join(filter(None, (" or ".join(near), f"one of {first_few(others)}" if others else "")))
        shown = language if isinstance(language, str) and language else repr(language)
        raise UserError(f"{shown} is not a language of the model: give {instead}", as_option(side))


def first_few(languages: Sequence[str]) -> str:
    """The first languages, for an error."""
    return ", ".join([*languages[:8], *(["..."] if len(languages) > 8 else [])])


def _task_settings(cfg) -> dict:
    """The settings of the task in the configuration that contains these settings of a model."""
    whole = whole_of(cfg)
    return values(cfg if whole is None else whole.task)


class DecodingTask(FairseqTask):
    """A base class that follows a task of fairseq. The options of the task include decode_attention."""

    decodes_language_models = False
    has_windows = False  # of at least one of the models
    search_options = STOPPING_OPTIONS  # that fairseq's generators do not have
    multilingual_name: str | None = None  # of this task, if it is one of `families.MULTILINGUAL`

    # Number of symbols that the task adds to a source, beside its end.
    symbols_of_source = 0
    # Number of symbols that `whole_target` adds to a target.
    symbols_of_target = 0
    # Row of the symbol that targets start from; None: the end symbol.
    decoder_start_symbol: int | None = None
    # Row of the symbol that a hypothesis has before the tokens of its prefix; None: there is none.
    prefix_start: int | None = None
    # Rows of the target's dictionary that hypotheses have and texts do not.
    symbols_of_language: frozenset[int] = frozenset()

    @property
    def languages_of_texts(self) -> tuple[str | None, str | None]:
        """The languages of sources and targets, if the model has symbols for several languages."""
        return None, None

    def for_languages(self, source: str | None, target: str | None):
        """The same task for other languages of the model; None keeps the language of this task.

        Raises:
            UserError: the model has no symbols of languages, or not these.
        """
        raise UserError(
            "is for a multilingual model: leave it out", "--target-lang" if source is None else "--source-lang"
        )

    @property
    def options(self):
        return self.args if self.cfg is None else self.cfg

    def build_model(self, cfg, from_checkpoint=False):
        """The model of a configuration: for a stock one, the elseq model with the same parameters if there is one.

        Raises:
            UserError: decode_attention names a method that the model does not have, or top-k is to be applied to
                a model that cannot take it, or that is to be trained: its checkpoint would not say so; or a checkpoint
                that this task cannot decode (see `elseq.models.families`).
        """
        if not from_checkpoint:
            return self._build(cfg, from_checkpoint)
        check_task_of_model(cfg, self.multilingual_name)
        model = self._build(cfg, from_checkpoint)
        check_model(model, self.decodes_language_models)
        return model

    def _build(self, cfg, from_checkpoint: bool):
        wanted = self.options.decode_attention
        applied = self._applied()
        if applied in APPLIED and not from_checkpoint:
            raise UserError(
                "is for a model that is trained: to train with top-k give an architecture of elseq's, such as "
                f"elseq_transformer, and {APPLIED[applied]}",
                as_option(applied),
            )
        if self.options.decode_dtype is not None and not from_checkpoint and not getattr(self.options, "eval_bleu", 0):
            remedy = "leave it out, or give --eval-bleu" if "eval_bleu" in self.options else "leave it out"
            raise UserError(f"is for decoding, and this training does not decode: {remedy}", DTYPE)
        stock = model_class(cfg)
        if stock in EQUIVALENT.values():
            model = super().build_model(cfg, from_checkpoint)
        elif wanted == STOCK:
            self.check_stock(cfg, from_checkpoint)
            return super().build_model(cfg, from_checkpoint)
        else:
            kind, reason = equivalent_model(cfg)
            if kind is None:
                if applied is not None:
                    raise UserError(f"cannot be applied to this model, because {reason}", as_option(applied))
                if wanted not in (None, AUTO):
                    raise UserError(
                        f"{wanted} cannot decode this model, because {reason}; use stock", "--decode-attention"
                    )
                logger.info("the model keeps fairseq's own modules, because %s", reason)
                return super().build_model(cfg, from_checkpoint)
            model = kind.build_model(stock_configuration(cfg), self)
            logger.info("%s rebuilt as %s, weights untouched", stock.__name__, kind.__name__)
        if wanted not in (None, STOCK):
            model.decoder.decode_attention = wanted
        windows = self._windows_in_force(_task_settings(cfg) if from_checkpoint else {})
        self._apply_windows(model, windows)
        self._apply_top_k(model, windows.long_input)
        return model

    def _applied(self) -> str | None:
        """An option that changes what a model computes."""
        given = [name for name in APPLIED if getattr(self.options, name) is not None]
        return next(iter((*given, *(name for name in WINDOWS if getattr(self.options, name)))), None)

    def check_stock(self, cfg, from_checkpoint: bool) -> None:
        """
        Args:
            cfg, from_checkpoint: as for `build_model`.

        Raises:
            UserError: an option that fairseq's own decoding does not have.
        """
        applied = self._applied()
        if applied is not None:
            raise UserError("does not go with stock, fairseq's own decoding: leave out one", as_option(applied))
        if from_checkpoint and any(_task_settings(cfg).get(name) for name in WINDOWS):
            logger.warning("the model was trained on sources in windows, which stock, fairseq's own decoding, has not")

    def _apply_top_k(self, model, long_input: bool) -> None:
        options = self.options
        if options.apply_top_k is not None:
            default = (CROSS,) if long_input else PLACES  # with long inputs, k is for the attention to the source
            places = default if options.apply_top_k_in is None else _places(options.apply_top_k_in)
            apply_attention_top_k(model, options.apply_top_k or None, places)
        if options.apply_ffn_top_k is not None:
            apply_ffn_top_k(model, options.apply_ffn_top_k or None)
        set_chunk_sizes(model, options.query_chunk_size, options.ffn_chunk_size)

    def _windows_in_force(self, trained: dict) -> Namespace:
        """The `OPTIONS_OF_WINDOWS` that are given or, if there are none, those of the checkpoint's training."""
        given = {name: getattr(self.options, name) for name in OPTIONS_OF_WINDOWS}
        if not given["long_input"] and given["source_window"] is None:
            given |= {name: trained.get(name) for name in WINDOWS}
        return Namespace(**given)

    def _apply_windows(self, model, options: Namespace) -> None:
        """
        Args:
            options: see `_windows_in_force`.

        Raises:
            UserError: a model without an encoder or with sharded layers, or windows longer than its positions.
        """
        if windows_of(options) is None:
            return
        if self.decodes_language_models:
            raise UserError(
                "is for a model with an encoder: a language model has one row of positions for prompt and output",
                option_of_windows(options),
            )
        if any(isinstance(module, FullyShardedDataParallel) for module in model.encoder.modules()):
            raise UserError(
                f"fully_sharded does not go with {option_of_windows(options)}: its processes gather each layer "
                "together, and each of them has another number of windows; leave out one of the two",
                "--ddp-backend",
            )
        windows = model.encoder.source_windows = windows_of(options, model.encoder.max_positions())
        self.has_windows = True
        if options.long_input and self.options.apply_top_k is None:
            for layer in model.decoder.layers:
                layer.encoder_attn.top_k = layer.encoder_attn.top_k or windows.length

    def positions_of_windows(self, positions: tuple[int, int]) -> tuple[int, int]:
        """The positions of sources and targets, given those of a model: windows read sources of any length. In
        an ensemble, a model without windows limits the others."""
        return (UNLIMITED, positions[1]) if self.has_windows else positions

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, prefix_allowed_tokens_fn=None):
        """fairseq's choice of a search strategy, with elseq's generator unless decode_attention is stock."""
        extra = dict(extra_gen_cls_kwargs or {})
        for model in models:
            self.set_dtype(model)
        language_model = extra.get("lm_model")  # one of fairseq's, so int8 is not for it
        if language_model is not None and self.options.decode_dtype != INT8:
            self.set_dtype(language_model)
        # The options of this generator come before the task's.
        stopping = {name: getattr(args, name, getattr(self.options, name)) for name in STOPPING_OPTIONS}
        differing = Stopping(**stopping).option
        if differing is not None and self.options.decode_attention == STOCK:
            name, value = differing
            raise UserError(f"{value} does not go with stock, fairseq's own search: leave out one", as_option(name))
        if seq_gen_cls is None and self.options.decode_attention != STOCK:
            seq_gen_cls = SequenceGenerator
            extra |= stopping
            extra["print_alignment"] = getattr(with_alignment(args), "print_alignment", None)
        return super().build_generator(models, args, seq_gen_cls, extra, prefix_allowed_tokens_fn)

    def with_prefix_start(self, sample: dict, prefix_tokens: Tensor | None) -> Tensor:
        """The first tokens of hypotheses, int64 [B, P]: `prefix_start`, then the prefix, unless it begins with that.

        Args:
            sample: a batch of B sentences.
            prefix_tokens: [B, Q], padded on the right, or None.
        """
        source = sample["net_input"]["src_tokens"]
        first = source.new_full((source.size(0), 1), self.prefix_start)
        if prefix_tokens is None:
            return first
        has_first = prefix_tokens[:, :1].eq(self.prefix_start)
        if bool(has_first.all()):  # a column of padding would be a step in which fairseq knows no minimum length
            return prefix_tokens
        as_it_is = torch.cat((prefix_tokens, torch.full_like(first, self.target_dictionary.pad())), dim=1)
        return torch.where(has_first, as_it_is, torch.cat((first, prefix_tokens), dim=1))

    def whole_target(self, tokens: Tensor) -> Tensor:
        """A text's target, int64 [T] ending with the end symbol, with the symbols that generated ones have."""
        return tokens

    def score_step(self, model, sample: dict, targets: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """The log-probabilities of given targets, in place of the generated ones of `inference_step`.

        Args:
            model: a fairseq model.
            sample: a batch of B sentences, as `build_dataset_for_inference` gives it.
            targets: for each sentence the tokens of a text, int64 [T], ending with the end symbol.

        Returns:
            As `elseq.generation.scorer.score_targets`.
        """
        whole = [self.whole_target(target) for target in targets]
        return score_targets(
            model, sample["net_input"], whole, self.target_dictionary, bos_token=self.decoder_start_symbol
        )

    def set_dtype(self, model) -> None:
        """Let a model decode in decode_dtype.

        Raises:
            UserError: decode_dtype is not for this model.
        """
        name = self.options.decode_dtype
        if name is None:
            return
        decoder, parameter = getattr(model, "decoder", None), next(model.parameters())
        if name == INT8 and not isinstance(decoder, Decoder):
            raise UserError(f"{name} is not for a model that keeps fairseq's own modules: give float32", DTYPE)
        if name == INT8 and self.options.decode_attention == STOCK:  # with a model of elseq's architectures
            raise UserError(f"{name} does not go with stock, fairseq's own search: leave out one", DTYPE)
        if name == INT8 and parameter.device.type != "cpu":
            raise UserError(f"{name} is for a CPU: on a GPU give float16 or bfloat16, or take the CPU", DTYPE)
        if parameter.dtype not in (torch.float32, DTYPES[name]):
            is_in = str(parameter.dtype).removeprefix("torch.")
            raise UserError(f"{name} is not for a model in {is_in}: leave it out, or leave out --fp16 or --bf16", DTYPE)
        if name == INT8:
            decoder.decode_dtype = name
        elif parameter.dtype != DTYPES[name]:
            if model.training:
                raise UserError(f"{name} is not for a model that is being trained: give int8, or leave it out", DTYPE)
            model.to(DTYPES[name])
