"""Top-k attention and feed-forward layers (2106.06899) in a model trained without them, or with another k."""

from torch import nn

from elseq.attention import Attention
from elseq.attention.top_k import ACTIVATIONS
from elseq.errors import UserError
from elseq.models.config import CROSS, PLACES
from elseq.models.layers import FeedForwardLayer


def apply_attention_top_k(model: nn.Module, top_k: int | None, places: tuple[str, ...] = PLACES) -> None:
    """
    Args:
        model: an elseq model.
        top_k: number of scores that each query keeps, or None for all.
        places: encoder and decoder (their self-attention), cross (attention of the decoder to the encoder).

    Raises:
        UserError: the model has no attention in these places.
    """
    attentions = [
        (_place(name, module), module) for name, module in model.named_modules() if isinstance(module, Attention)
    ]
    present = {place for place, _ in attentions}
    if not present.intersection(places):
        raise UserError(f"{','.join(places)}: the model has attention in {', '.join(present)} only", "--apply-top-k-in")
    for place, module in attentions:
        if place in places:
            module.top_k = top_k


def apply_ffn_top_k(model: nn.Module, top_k: int | None) -> None:
    """
    Args:
        model: an elseq model.
        top_k: number of units that each token uses, or None for all.

    Raises:
        UserError: the layers have an unsupported activation, or a norm between their two matrices.
    """
    for module in model.modules():
        if isinstance(module, FeedForwardLayer):
            has_norm = getattr(module, "ffn_layernorm", None) is not None
            if top_k is not None and (has_norm or module.activation not in ACTIVATIONS):
                raise UserError(
                    f"needs the activation {' or '.join(ACTIVATIONS)} and no --scale-fc, and this model has "
                    f"{'--scale-fc' if has_norm else module.activation}: leave it out",
                    "--apply-ffn-top-k",
                )
            module.ffn_top_k = top_k


def set_chunk_sizes(model: nn.Module, queries: int | None, tokens: int | None) -> None:
    """Set the chunk sizes of top-k attention and top-k feed-forward layers; None: leave them unchanged."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.query_chunk_size = queries or module.query_chunk_size
        elif isinstance(module, FeedForwardLayer):
            module.ffn_chunk_size = tokens or module.ffn_chunk_size


def _place(name: str, attention: Attention) -> str:
    if attention.encoder_decoder_attention:
        return CROSS
    return "encoder" if name.startswith("encoder.") else "decoder"
