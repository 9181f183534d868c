"""Checkpoints of architectures that are not registered, such as a plugin's that is not installed."""

import logging
import re
from argparse import Namespace
from collections.abc import Collection, Mapping
from contextvars import ContextVar

from fairseq import checkpoint_utils
from fairseq.models import ARCH_CONFIG_REGISTRY, MODEL_DATACLASS_REGISTRY
from fairseq.trainer import Trainer
from omegaconf import OmegaConf
from torch import Tensor

from elseq.compat.parameters import SIDES, layer_numbers, without_wrappers
from elseq.compat.patching import setting, wrap
from elseq.compat.settings import model_class, model_name, unlocked, values
from elseq.errors import UserError, as_option

logger = logging.getLogger(__name__)

_ATTENTION = re.compile(r"((?:encoder|decoder)\.layers)\.[0-9]+\.((?:self|encoder)_attn)\.(?:q_proj\.|in_proj_)")
_OF_ENCODER, _OF_DECODER = ("encoder.layers", "self_attn"), ("decoder.layers", "self_attn")
_EXPERTS = re.compile(r"\.(moe_layer|experts)\.")
# Options that change what a model computes, but not its parameters.
_INVISIBLE = ("activation_fn", "no_scale_embedding", "no_token_positional_embeddings")
_CONTINUES_TRAINING = ContextVar("continues_training", default=False)


def name_by_parameters():
    """A checkpoint whose architecture is not registered is refused, although most of these are fairseq's Transformer,
    BART or language model with other sizes, and the configuration has all of them."""
    wrap(checkpoint_utils, "_upgrade_state_dict", _upgrade_state_dict)
    wrap(Trainer, "load_checkpoint", _trainer_load_checkpoint)


def _upgrade_state_dict(upgrade, state):
    if not _CONTINUES_TRAINING.get():
        _name_by_parameters(state)
    return upgrade(state)


def _trainer_load_checkpoint(load, *args, **kwargs):
    with setting(_CONTINUES_TRAINING, True):  # a training has its own architecture and does not read the checkpoint's
        return load(*args, **kwargs)


def _name_by_parameters(state: dict) -> None:
    """Replace an architecture that is not registered by a base architecture with the same parameters, if there is one.

    Raises:
        UserError: a mixture of experts, or a model that the parameters and the configuration do not determine.
    """
    settings = state["args"] if state.get("args") is not None else (state.get("cfg") or {}).get("model")
    name, parameters = model_name(settings), without_wrappers(state["model"])
    if not isinstance(name, str):
        return
    kind = model_class(settings)
    given = _given(settings)
    if kind is None or kind.__module__.startswith("fairseq.models."):
        _refuse_experts(given, parameters)
    ours = "num_kv_heads" in values(settings)  # all of elseq's models have it, and only these
    base = _base(given, parameters, ours) if kind is None else None
    if base is None:
        return
    reason = _why_not(base, given, parameters)
    if reason is not None:
        raise UserError(f"the architecture {name!r} is unknown, and {reason}")
    logger.warning(
        "the architecture %r is not registered: decoded as %s, whose parameters it must have%s",
        name,
        base,
        _ignored(base, settings),
    )
    with unlocked(settings):
        for key in ("_name", "arch"):
            if key in values(settings):
                values(settings)[key] = base


def _given(settings) -> dict:
    """The settings that have a value."""
    named = vars(settings) if isinstance(settings, Namespace) else OmegaConf.to_container(settings, enum_to_str=True)
    return {option: value for option, value in named.items() if value is not None and value != "???"}


def _refuse_experts(given: Mapping, parameters: Collection[str]) -> None:
    found = next(filter(_EXPERTS.search, parameters), None)
    if found is None and given.get("moe_freq"):
        found = f"--moe-freq {given['moe_freq']}"
    if found is not None:
        raise UserError(
            f"the model is a mixture of experts ({found}), which neither fairseq 0.12 nor elseq decodes: use the "
            "version of fairseq that trained it"
        )


def _base(given: Mapping, parameters: Collection[str], ours: bool) -> str | None:
    """The base architecture that has these parameters, or None."""
    attentions = {found.groups() for found in map(_ATTENTION.match, parameters) if found is not None}
    if attentions == {_OF_DECODER} and not any(name.startswith("encoder.") for name in parameters):
        return "elseq_transformer_lm" if ours else "transformer_lm"
    if not attentions >= {_OF_ENCODER, _OF_DECODER}:
        return None
    if "pooler_activation_fn" not in given:
        return "elseq_transformer" if ours else "transformer"
    if ours:
        return "elseq_bart"
    # The class of BART is that of mBART, which scales its embeddings and begins with symbols of languages.
    return "bart_large" if given.get("no_scale_embedding") else "mbart_large"


def _why_not(base: str, given: Mapping, parameters: Mapping[str, Tensor]) -> str | None:
    """Why the checkpoint cannot be decoded as `base`, and what to do, or None."""
    remedy = "name the folder of its plugin by --user-dir"
    overrides = "to fairseq-generate by --model-overrides"
    rotary = next((name for name in parameters if name.endswith(".inv_freq")), None)
    if rotary is not None:
        return f"{rotary} says that it has rotary positions, which {base} does not have: {remedy}"
    layer = _missing_layer(given, parameters)
    if layer is not None:
        return (
            f"its parameters lack {layer}, which {base} with its configuration has: {remedy}, or, if it was trained "
            f"with fewer layers, give their number {overrides}"
        )
    lacking = _undetermined(base, given, parameters)
    if lacking:
        return (
            f"its configuration lacks {', '.join(map(as_option, lacking))}, without which it cannot be decoded as "
            f"{base}: {remedy}, or give the values {overrides}"
        )
    return None


def _missing_layer(given: Mapping, parameters: Collection[str]) -> str | None:
    """The first layer that the configuration has and the parameters lack, or None.

    A registered architecture was then trained with --encoder-layers-to-keep or the like. In another architecture,
    layers may share parameters.
    """
    for side in SIDES:
        there, said = layer_numbers(parameters, side), given.get(f"{side}_layers")
        if there and isinstance(said, int) and len(there) < said:
            return f"{side}.layers.{min({*range(len(there) + 1)} - there)}"
    return None


def _undetermined(base: str, given: Mapping, parameters: Mapping[str, Tensor]) -> list[str]:
    """Options that the configuration lacks, and for which the default of `base` is not known to be right."""
    sides = [side for side in SIDES if any(name.startswith(f"{side}.") for name in parameters)]
    needed = [*(f"{side}_attention_heads" for side in sides), *_INVISIBLE]
    if given.get("no_decoder_final_norm"):  # otherwise the final norm shows it
        needed.append("decoder_normalize_before")
    if base.endswith(("bart", "bart_large")):  # it shares by default, and would drop one of two tables
        needed += ["share_all_embeddings", "share_decoder_input_output_embed"]
    defaults = _defaults(base, given)
    shown = {option: value for side in sides for option, value in _shown(side, parameters).items()}
    needed += [option for option, value in shown.items() if defaults.get(option) != value]
    return [option for option in needed if option not in given]


def _shown(side: str, parameters: Mapping[str, Tensor]) -> dict:
    """Options that the parameters of the encoder or decoder show, with their values."""
    shown = {
        f"{side}_layers": len(layer_numbers(parameters, side)),
        f"{side}_learned_pos": f"{side}.embed_positions.weight" in parameters,
        f"{side}_normalize_before": f"{side}.layer_norm.weight" in parameters,
        "layernorm_embedding": f"{side}.layernorm_embedding.weight" in parameters,
    }
    fully_connected = parameters.get(f"{side}.layers.0.fc1.weight")
    if isinstance(fully_connected, Tensor) and fully_connected.dim() == 2:
        shown[f"{side}_ffn_embed_dim"], shown[f"{side}_embed_dim"] = fully_connected.shape
    return shown


def _defaults(base: str, given: Mapping) -> dict:
    """The options of the base architecture, completed as fairseq does."""
    if base in MODEL_DATACLASS_REGISTRY:
        return {**vars(MODEL_DATACLASS_REGISTRY[base]()), **given}
    completed = Namespace(**given)
    ARCH_CONFIG_REGISTRY[base](completed)
    return vars(completed)


def _ignored(base: str, settings) -> str:
    """For the log line: options that are set and that the base architecture does not have.

    A namespace holds the options of the whole training, and does not tell which are the model's.
    """
    if isinstance(settings, Namespace) or base not in MODEL_DATACLASS_REGISTRY:
        return ""
    known = {*vars(MODEL_DATACLASS_REGISTRY[base]()), "arch"}
    ignored = [as_option(option) for option, value in _given(settings).items() if value and option not in known]
    return f", and without {', '.join(ignored)}" if ignored else ""
