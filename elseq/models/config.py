"""Configuration of the models: flat dataclasses, because fairseq's command line cannot read nested ones.

Inside, the models use fairseq's nested `TransformerConfig`, which it builds from a flat namespace.
"""

import copy
from argparse import Namespace
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from typing import Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models.transformer import TransformerConfig
from fairseq.models.transformer_lm import TransformerLanguageModelConfig
from fairseq.utils import get_available_activation_fns
from omegaconf import II, DictConfig, OmegaConf

from elseq.attention import methods
from elseq.attention.methods import AUTO
from elseq.attention.top_k import ACTIVATIONS
from elseq.errors import UserError, as_option, check_choice

# Options that fairseq's base architecture derives from others.
_DERIVED = {
    "decoder_embed_dim": II("model.encoder_embed_dim"),
    "decoder_ffn_embed_dim": II("model.encoder_ffn_embed_dim"),
    "decoder_input_dim": II("model.decoder_embed_dim"),
    "decoder_output_dim": II("model.decoder_embed_dim"),
}
SWISH = "swish"  # which fairseq's layers name and do not compute
_ACTIVATIONS = ChoiceEnum([*get_available_activation_fns(), SWISH])
# Their type is wrong in fairseq.
_TEXT = {"encoder_layers_to_keep", "decoder_layers_to_keep", "adaptive_softmax_cutoff"}
CROSS = "cross"  # of the decoder to the encoder
PLACES = ("encoder", "decoder", CROSS)  # where layers have attention


def _flat_fields(nested: type, prefix: str = ""):
    for entry in fields(nested):
        if entry.name == "_name":
            continue
        name = prefix + entry.name
        default = entry.default
        if is_dataclass(default):
            yield from _flat_fields(default, name + "_")
            continue
        kind = Optional[str] if name in _TEXT else entry.type
        kind = _ACTIVATIONS if name == "activation_fn" else kind
        metadata = dict(entry.metadata)
        if name in _DERIVED:
            # Without a help text fairseq leaves an option with a derived default off the command line.
            metadata.setdefault("help", f"{name.replace('_', ' ')} (default: as {_DERIVED[name]})")
        yield name, kind, field(default=_DERIVED.get(name, default), metadata=metadata)


_FlatTransformerConfig = make_dataclass(
    "_FlatTransformerConfig", list(_flat_fields(TransformerConfig)), bases=(FairseqDataclass,)
)


def option(help: str, default=None, **metadata):
    """A field of a dataclass of fairseq, and so an option of its commands."""
    return field(default=default, metadata={"help": help, **metadata})


def kv_heads_by_layer_option(where: str):
    return option(
        f"key/value heads of each layer {where}, from the first, with commas, such as 4,2,1 (default: as many in all "
        "layers)"
    )


def kv_heads_option(where: str, default: str):
    return option(
        f"key/value heads {where}: 1 is multi-query attention, fewer than heads grouped-query attention (default: "
        f"{default})"
    )


@dataclass
class AttentionConfig(FairseqDataclass):
    """Options of all elseq models that fairseq's models do not have."""

    decode_attention: str = option(methods.describe(), AUTO)
    num_kv_heads: Optional[int] = kv_heads_option("of every attention layer", "as many as heads")
    decoder_kv_heads_by_layer: Optional[str] = kv_heads_by_layer_option("in the self-attention of the decoder")
    head_dim: Optional[int] = option("width of a head (default: width of the layer / heads)")
    local_attention_radius: Optional[int] = option(
        "a target position sees itself and those before it, so many in all (default: every one)"
    )
    output_bias: bool = option("the output layer has a bias, as in Marian: one number for each word", False)
    norm_before_positions: bool = option(
        "with --layernorm-embedding: the decoder normalizes the embeddings of words, unscaled, before it adds those of "
        "positions, as in Blenderbot-small",
        False,
    )


@dataclass
class TopKConfig(FairseqDataclass):
    """Options of top-k attention and feed-forward layers (2106.06899)."""

    attention_top_k: Optional[int] = option("each query attends to its k largest scores only (default or 0: to all)")
    ffn_top_k: Optional[int] = option(
        "each token uses the k most activated units of a feed-forward layer (default or 0: all)"
    )
    query_chunk_size: Optional[int] = option(
        "queries that top-k attention evaluates together (default: 256 on a CPU, 1024 on a GPU)"
    )
    ffn_chunk_size: Optional[int] = option(
        "tokens that a top-k feed-forward layer evaluates together (default: as for queries)"
    )


@dataclass
class ElseqTransformerConfig(_FlatTransformerConfig, AttentionConfig, TopKConfig):
    encoder_num_kv_heads: Optional[int] = kv_heads_option("in the encoder", "--num-kv-heads")
    decoder_num_kv_heads: Optional[int] = kv_heads_option("in the self-attention of the decoder", "--num-kv-heads")
    cross_num_kv_heads: Optional[int] = kv_heads_option(
        "in the attention of the decoder to the encoder", "--num-kv-heads"
    )
    encoder_kv_heads_by_layer: Optional[str] = kv_heads_by_layer_option("in the encoder")
    cross_kv_heads_by_layer: Optional[str] = kv_heads_by_layer_option("in the attention of the decoder to the encoder")


@dataclass
class ElseqBARTConfig(ElseqTransformerConfig):
    pooler_dropout: float = option("dropout in classification heads", 0.0)
    pooler_activation_fn: str = option("activation in classification heads", "tanh")
    spectral_norm_classification_head: bool = option("spectral normalization on classification heads", False)


@dataclass
class ElseqLanguageModelConfig(TransformerLanguageModelConfig, AttentionConfig, TopKConfig):
    activation_fn: _ACTIVATIONS = option("activation function to use", "relu")
    decoder_input_dim: int = option("width of the token embeddings", II("model.decoder_embed_dim"))
    decoder_output_dim: int = option("width of the input of the output layer", II("model.decoder_embed_dim"))


def to_namespace(cfg) -> Namespace:
    """A configuration as a flat namespace. From anything else fairseq's TransformerConfig drops unknown options."""
    if isinstance(cfg, DictConfig):
        return Namespace(**OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))
    return cfg


# Options that our layers do not implement, and their meaning. All are off by default.
_UNSUPPORTED = {
    "cross_self_attention": "joint cross- and self-attention",
    "base_layers": "BASE layers",
    "character_embeddings": "character embeddings",
    "quant_noise_scalar": "scalar quantization noise",
    "encoder_xformers_att_config": "xFormers attention",
    "decoder_xformers_att_config": "xFormers attention",
}


def check_supported(cfg: Namespace) -> None:
    """
    Raises:
        UserError: an option is set that our layers do not implement.
    """
    reason = why_unsupported(cfg)
    if reason is not None:
        raise UserError(
            f"elseq models do not support {reason}: leave it out, or decode such a checkpoint with --decode-attention "
            "stock",
            others=["--decode-attention"],
        )


def why_unsupported(cfg: Namespace) -> str | None:
    """A description of the first option that our layers do not implement as it is set, or None."""
    for option, meaning in _UNSUPPORTED.items():
        value = getattr(cfg, option, None)
        if value and value not in (0, "0", "{}"):
            return f"{meaning} ({as_option(option)})"
    for option in ("encoder_ffn_embed_dim", "decoder_ffn_embed_dim"):
        if getattr(cfg, option, None) == 0:
            return f"feed-forward parts of width 0 ({as_option(option)})"
    return None


def num_kv_heads(cfg, where: str) -> int | None:
    """Number of key/value heads in the encoder, the decoder or cross-attention; None: the number of heads."""
    own = getattr(cfg, f"{where}_num_kv_heads", None)
    return getattr(cfg, "num_kv_heads", None) if own is None else own


def kv_heads_by_layer(cfg, where: str) -> list[int] | None:
    """The numbers of key/value heads of the layers, if each layer has its own.

    Raises:
        UserError: the option is not a list of numbers.
    """
    text = getattr(cfg, f"{where}_kv_heads_by_layer", None)
    if text is None:
        return None
    try:
        return [int(part) for part in str(text).split(",")]
    except ValueError as error:
        raise UserError(
            f"{text!r} is no list of numbers: give one for each layer, such as 4,2,1", f"--{where}-kv-heads-by-layer"
        ) from error


def of_layer(cfg, number: int):
    """The configuration with the numbers of key/value heads that a layer has, counted from 0."""
    own = {where: kv_heads_by_layer(cfg, where) for where in PLACES}
    if not any(own.values()):
        return cfg
    cfg = copy.copy(cfg)
    for where, numbers in own.items():
        if numbers is not None and number < len(numbers):  # the encoder may have more layers than the decoder
            setattr(cfg, f"{where}_num_kv_heads", numbers[number])
    return cfg


def divisors(heads: int) -> str:
    """The possible numbers of key/value heads, as text."""
    return ", ".join(str(number) for number in range(1, min(heads, 1024) + 1) if heads % number == 0)


def check_configuration(cfg: Namespace) -> None:
    """The checks before a model is built.

    Raises:
        UserError: an unknown decoding method, an adaptive softmax with a bias, or a place for a missing norm; and see
            `check_supported`, `check_heads` and `check_top_k`.
    """
    check_supported(cfg)
    check_choice("--decode-attention", getattr(cfg, "decode_attention", AUTO), methods.names())
    if getattr(cfg, "output_bias", False) and getattr(cfg, "adaptive_softmax_cutoff", None):
        raise UserError("--output-bias does not go with --adaptive-softmax-cutoff: leave out one of them")
    if getattr(cfg, "norm_before_positions", False) and not getattr(cfg, "layernorm_embedding", False):
        raise UserError("--norm-before-positions needs a norm of the embeddings: give --layernorm-embedding")
    check_heads(cfg)
    check_top_k(cfg)


def check_heads(cfg: Namespace) -> None:
    """
    Raises:
        UserError: a number of key/value heads that does not divide the heads, a width or a radius below 1.
    """
    for where in PLACES:
        side = "encoder" if where == "encoder" else "decoder"
        heads, kv_heads = getattr(cfg, f"{side}_attention_heads", None), num_kv_heads(cfg, where)
        _check_by_layer(cfg, where, side, heads)
        if heads is not None and kv_heads is not None and (kv_heads < 1 or heads % kv_heads):
            own = getattr(cfg, f"{where}_num_kv_heads", None) is not None
            option = f"--{where}-num-kv-heads" if own else "--num-kv-heads"
            raise UserError(
                f"{option} {kv_heads} does not divide --{side}-attention-heads {heads}: give one of {divisors(heads)}"
            )
    _check_least(cfg, head_dim=1, local_attention_radius=1)
    if getattr(cfg, "scale_heads", False) and getattr(cfg, "head_dim", None) is not None:
        raise UserError("--scale-heads needs heads that together are as wide as the layer: leave out --head-dim")


def _check_by_layer(cfg: Namespace, where: str, side: str, heads: int | None) -> None:
    numbers = kv_heads_by_layer(cfg, where)
    if numbers is None:
        return
    option, text = f"--{where}-kv-heads-by-layer", ",".join(map(str, numbers))
    kept = getattr(cfg, f"{side}_layers_to_keep", None)
    layers = len(kept.split(",")) if kept else getattr(cfg, f"{side}_layers", len(numbers))
    if len(numbers) != layers:
        raise UserError(f"{text} has {len(numbers)} numbers for {layers} layers: give one for each", option)
    for number in numbers:
        if heads is not None and (number < 1 or heads % number):
            raise UserError(
                f"{text}: {number} does not divide --{side}-attention-heads {heads}; give of {divisors(heads)}", option
            )


def check_top_k(cfg: Namespace) -> None:
    """
    Raises:
        UserError: a number that is negative, a chunk of nothing, or a feed-forward layer that cannot take top-k.
    """
    _check_least(cfg, attention_top_k=0, ffn_top_k=0, query_chunk_size=1, ffn_chunk_size=1)
    if not getattr(cfg, "ffn_top_k", None):
        return
    activation = getattr(cfg, "activation_fn", "relu")
    if activation not in ACTIVATIONS:
        raise UserError(f"--ffn-top-k needs --activation-fn {' or '.join(ACTIVATIONS)}, and this is {activation}")
    for name in ("activation_dropout", "relu_dropout", "quant_noise_pq", "scale_fc"):
        if getattr(cfg, name, None):
            raise UserError(f"--ffn-top-k does not go with {as_option(name)}: leave out one of them")


def _check_least(cfg: Namespace, **least: int) -> None:
    for name, bound in least.items():
        value = getattr(cfg, name, None)
        if value is not None and value < bound:
            raise UserError(f"{as_option(name)} {value} is not possible: give {bound} or more")
