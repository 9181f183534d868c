"""Maps stock fairseq models to elseq models with the same parameters and names."""

import contextlib
from argparse import ArgumentParser, Namespace
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import get_args

from fairseq.dataclass.configs import CommonConfig
from fairseq.dataclass.utils import merge_with_parent
from fairseq.models import ARCH_CONFIG_REGISTRY, MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY
from fairseq.models.bart import BARTModel
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer_lm import TransformerLanguageModel
from fairseq.tasks.language_modeling import LanguageModelingConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from elseq.compat.checkpoints import unknown
from elseq.compat.settings import model_class, model_name
from elseq.errors import UserError, as_option
from elseq.models import ElseqBARTModel, ElseqTransformerLanguageModel, ElseqTransformerModel
from elseq.models.config import (
    PLACES,
    SWISH,
    AttentionConfig,
    TopKConfig,
    kv_heads_by_layer,
    num_kv_heads,
    to_namespace,
    why_unsupported,
)

# By exact class, because the forward pass of a subclass may differ.
EQUIVALENT = {
    TransformerModel: ElseqTransformerModel,
    BARTModel: ElseqBARTModel,
    TransformerLanguageModel: ElseqTransformerLanguageModel,
}
# fairseq's name for the model of each of our classes. Every option is given explicitly.
_STOCK_NAMES = {
    "elseq_transformer": "transformer",
    "elseq_bart": "bart_large",
    "elseq_transformer_lm": "transformer_lm",
}
# Options that fairseq's language model ignores: its checkpoints have no such parameters.
_DROPPED = ("scale_attn", "scale_fc", "scale_heads", "scale_resids")
_OWN_OPTIONS = {field.name for kind in (AttentionConfig, TopKConfig) for field in fields(kind)}
_OWN_OPTIONS |= {f"{where}_{name}" for where in PLACES for name in ("num_kv_heads", "kv_heads_by_layer")}


def equivalent_model(cfg) -> tuple[type | None, str | None]:
    """The elseq class for a stock model's configuration, or None and the reason."""
    stock = model_class(cfg)
    if stock not in EQUIVALENT:
        return None, f"it is a {getattr(stock, '__name__', 'model of an unknown kind')}"
    reason = why_unsupported(cfg)
    return (EQUIVALENT[stock], None) if reason is None else (None, f"it uses {reason}")


@contextlib.contextmanager
def _settings_checked():
    """
    Raises:
        UserError: a setting has a type that its option cannot have.
    """
    try:
        yield
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"the model's setting {error.full_key} cannot be used ({reason}): it was changed") from error


def stock_configuration(cfg) -> Namespace:
    """A stock model's configuration, completed with every option as fairseq does before building the model."""
    name = model_name(cfg)
    if name in MODEL_DATACLASS_REGISTRY and isinstance(cfg, DictConfig):
        # An old checkpoint lacks newer options, and may have removed ones.
        with _settings_checked():
            cfg = merge_with_parent(MODEL_DATACLASS_REGISTRY[name](), cfg, remove_missing=True)
    args = Namespace(**vars(to_namespace(cfg)))
    if name not in MODEL_DATACLASS_REGISTRY and name in ARCH_CONFIG_REGISTRY:
        ARCH_CONFIG_REGISTRY[name](args)
    if model_class(cfg) is TransformerLanguageModel:
        vars(args).update(dict.fromkeys(_DROPPED, False))
    return args


def elseq_configuration(cfg) -> dict:
    """The configuration of the elseq model with the same parameters: `_name` and every field of its dataclass.

    Args:
        cfg: the configuration of a fairseq or elseq model.

    Raises:
        UserError: elseq has no equivalent of the model, or its architecture is unknown.
    """
    kind, reason = model_class(cfg), why_unsupported(cfg)
    if kind is None:
        raise UserError(unknown("architecture", model_name(cfg)))
    if kind not in EQUIVALENT.values():
        kind, reason = equivalent_model(cfg)
    elif reason is not None:
        reason = f"it uses {reason}"
    if reason is not None:
        raise UserError(
            f"the model cannot become one of elseq's, because {reason}; give a Transformer, BART or language model"
        )
    name = next(name for name, registered in MODEL_REGISTRY.items() if registered is kind)
    kinds = {field.name: field.type for field in fields(MODEL_DATACLASS_REGISTRY[name])}
    values = {
        # --adaptive-softmax-cutoff: a list or text in fairseq, text in elseq
        option: ",".join(map(str, value)) if isinstance(value, list) else value
        for option, value in vars(stock_configuration(cfg)).items()
        # Old checkpoints have None for "the default" where today's type has no None.
        if option in kinds and (value is not None or type(None) in get_args(kinds[option]))
    }
    with _settings_checked():
        model = OmegaConf.merge(OmegaConf.structured(MODEL_DATACLASS_REGISTRY[name]), {**values, "_name": name})
    whole = OmegaConf.create({"model": model})  # derived options refer to others as "model.NAME"
    return OmegaConf.to_container(whole, resolve=True, enum_to_str=True)["model"]


def as_stock(configuration: dict, besides: Collection[str] = (), program: str = "stock fairseq") -> dict:
    """The configuration of the stock model with the same parameters: `_name` and every option.

    Args:
        configuration: configuration of an elseq model, from `elseq_configuration`.
        besides: the options whose values need not be fairseq's, because another program has more: "output_bias",
            "norm_before_positions" and "activation_fn" (swish).
        program: its name in errors.

    Raises:
        UserError: fairseq has no equivalent of the model.
    """
    reason = why_not_stock(configuration, besides)
    if reason is not None:
        raise UserError(f"the model has {reason}, which {program} does not have")
    name = _STOCK_NAMES[configuration["_name"]]
    options = {option: value for option, value in configuration.items() if option not in _OWN_OPTIONS}
    return {**options, "_name": name}


def why_not_stock(configuration: dict, besides: Collection[str] = ()) -> str | None:
    """A feature of this elseq configuration that no stock model has, or None. `besides`: as for `as_stock`."""
    cfg = Namespace(**configuration)
    for where in PLACES:
        side = "encoder" if where == "encoder" else "decoder"
        heads = getattr(cfg, f"{side}_attention_heads", None)
        numbers = kv_heads_by_layer(cfg, where) or [num_kv_heads(cfg, where)]
        if heads is not None and not {*numbers} <= {None, heads}:
            return f"{','.join(map(str, numbers))} key/value heads for {heads} heads"
        width = getattr(cfg, f"{side}_embed_dim", None)
        if heads is not None and cfg.head_dim not in (None, width // heads):
            return f"heads of a width of their own (--head-dim {cfg.head_dim})"
    if cfg.local_attention_radius is not None:
        return f"local attention (--local-attention-radius {cfg.local_attention_radius})"
    if cfg.output_bias and "output_bias" not in besides:
        return "a bias in its output layer (--output-bias)"
    if cfg.norm_before_positions and "norm_before_positions" not in besides:
        return "a norm of the decoder's embeddings before positions are added (--norm-before-positions)"
    if cfg.activation_fn == SWISH and "activation_fn" not in besides:
        return f"another activation (--activation-fn {SWISH})"
    for option, kind in (("attention_top_k", "attention"), ("ffn_top_k", "feed-forward layers")):
        if getattr(cfg, option):
            return f"top-k {kind} ({as_option(option)} {getattr(cfg, option)})"
    return None


def training_options(configuration: dict) -> list[str]:
    """The options of fairseq-train for an elseq model's configuration: all that differ from the defaults."""
    others = {"task": LanguageModelingConfig, "common": CommonConfig}  # options of a language model refer to these
    defaults = {}
    for option in fields(MODEL_DATACLASS_REGISTRY[configuration["_name"]]):
        defaults[option.name] = option.default
        if part_and_name := _reference(option.default):
            part, name = part_and_name
            defaults[option.name] = configuration[name] if part == "model" else vars(others[part]())[name]
    return ["--arch", configuration["_name"], *_arguments(configuration, defaults)]


def recorded_options(kind: type | None, recorded: Mapping, besides: Collection[str] = ()) -> list[str]:
    """The options of fairseq-train for the task or the criterion that a checkpoint records: all that differ from the
    defaults, without those that belong to other parts of the configuration, such as the batches.

    Args:
        kind: the class of the task or the criterion; None for an unknown one, of which there are no options.
        recorded: the settings.
        besides: other options that are left out.
    """
    if kind is None:
        return []
    parser = ArgumentParser(add_help=False)
    kind.add_args(parser)
    arguments = []
    for action in parser._actions:
        value = None if action.dest in besides else recorded.get(action.dest)
        if action.option_strings and value is not None and _as_text(value) != _as_text(action.default):
            arguments += _argument(action.option_strings[-1], None if action.nargs == 0 else _as_text(value))
    return arguments


def _as_text(value) -> str:
    """The value of an option as a command line has it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _reference(default) -> tuple[str, str] | None:
    """The part and the name of the option that a default refers to."""
    if isinstance(default, str) and default.startswith("${"):
        part, _, name = default[2:-1].partition(".")
        return part, name
    return None


def _arguments(values: Mapping, defaults: Mapping) -> list[str]:
    arguments = []
    for name, default in defaults.items():
        value = values[name]
        if name != "_name" and value != default:
            arguments += _argument(as_option(name), None if isinstance(value, bool) else str(value))
    return arguments


def _argument(option: str, text: str | None) -> list[str]:
    if text is None:
        return [option]
    return [f"{option}={text}"] if text.startswith("-") else [option, text]  # argparse would read it as an option
