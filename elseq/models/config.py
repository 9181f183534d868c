"""Configuration of the models: flat dataclasses, because fairseq's command line cannot read nested ones.

Inside, the models use fairseq's nested `TransformerConfig`, which it builds from a flat namespace.
"""

from argparse import Namespace
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from typing import Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models.transformer import TransformerConfig
from fairseq.models.transformer_lm import TransformerLanguageModelConfig
from omegaconf import II, DictConfig, OmegaConf

from elseq.errors import UserError

DECODE_ATTENTION_CHOICES = ChoiceEnum(["auto", "kv", "el"])


def decode_attention_field():
    return field(
        default="auto",
        metadata={
            "help": "how attention is evaluated while decoding: keys and values are cached (kv), hidden states "
            "are (el), or whichever suits the machine and the batch (auto)"
        },
    )


# What fairseq's base architecture derives from other options, and options whose type fairseq declares wrongly.
_DERIVED = {
    "decoder_embed_dim": II("model.encoder_embed_dim"),
    "decoder_ffn_embed_dim": II("model.encoder_ffn_embed_dim"),
    "decoder_input_dim": II("model.decoder_embed_dim"),
    "decoder_output_dim": II("model.decoder_embed_dim"),
}
_TEXT = {"encoder_layers_to_keep", "decoder_layers_to_keep", "adaptive_softmax_cutoff"}


def _flat_fields(nested: type, prefix: str = ""):
    for entry in fields(nested):
        if entry.name == "_name":
            continue
        name = prefix + entry.name
        default = entry.default
        if is_dataclass(default):
            yield from _flat_fields(default, name + "_")
            continue
        kind = Optional[str] if name in _TEXT else entry.type  # noqa: UP045 (fairseq's parser knows only this way)
        metadata = dict(entry.metadata)
        if name in _DERIVED:
            # Without a help text fairseq leaves an option with a derived default off the command line.
            metadata.setdefault("help", f"{name.replace('_', ' ')} (default: as {_DERIVED[name]})")
        yield name, kind, field(default=_DERIVED.get(name, default), metadata=metadata)


_FlatTransformerConfig = make_dataclass(
    "_FlatTransformerConfig", list(_flat_fields(TransformerConfig)), bases=(FairseqDataclass,)
)


@dataclass
class ElseqTransformerConfig(_FlatTransformerConfig):
    decode_attention: DECODE_ATTENTION_CHOICES = decode_attention_field()


@dataclass
class ElseqBARTConfig(ElseqTransformerConfig):
    pooler_dropout: float = field(default=0.0, metadata={"help": "dropout in classification heads"})
    pooler_activation_fn: str = field(default="tanh", metadata={"help": "activation in classification heads"})
    spectral_norm_classification_head: bool = field(
        default=False, metadata={"help": "spectral normalization on classification heads"}
    )


@dataclass
class ElseqLanguageModelConfig(TransformerLanguageModelConfig):
    decoder_input_dim: int = field(
        default=II("model.decoder_embed_dim"), metadata={"help": "width of the token embeddings"}
    )
    decoder_output_dim: int = field(
        default=II("model.decoder_embed_dim"), metadata={"help": "width of the input of the output layer"}
    )
    decode_attention: DECODE_ATTENTION_CHOICES = decode_attention_field()


def to_namespace(cfg) -> Namespace:
    """A flat namespace. fairseq's TransformerConfig drops what it does not know unless it is given one."""
    if isinstance(cfg, DictConfig):
        return Namespace(**OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))
    return cfg


# What our layers would get wrong: option, and what it stands for. All are off by default.
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
        UserError: an option that our layers do not implement.
    """
    reason = why_unsupported(cfg)
    if reason is not None:
        raise UserError(f"elseq models do not support {reason}; decode such a model with --decode-attention stock")


def why_unsupported(cfg: Namespace) -> str | None:
    """The first option our layers do not implement, in words, or None."""
    for option, meaning in _UNSUPPORTED.items():
        value = getattr(cfg, option, None)
        if value and value not in (0, "0", "{}"):
            return f"{meaning} (--{option.replace('_', '-')})"
    return None
