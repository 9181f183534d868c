"""How many bytes a decoding state will take, before it exists."""

from dataclasses import dataclass

import torch

from elseq.attention import DecodePolicy
from elseq.attention.state import GROWTH


@dataclass(frozen=True)
class Workload:
    """What a batch asks of a decoder."""

    sentences: int
    beam: int
    source_length: int  # positions of the encoder's output, 0 for a language model
    target_length: int  # positions read while decoding: the longest output and the symbol it starts from
    prompt_length: int = 0


def decoding_state_bytes(decoder, workload: Workload, policy: DecodePolicy, dtype: torch.dtype) -> int:
    """What `DecodeState.size_bytes()` will be at the end of the search, if no sentence leaves the batch early.

    Args:
        decoder: an elseq decoder.
        workload: sizes of the batch.
        policy: evaluation of each kind of attention.
        dtype: of the decoder's activations.
    """
    per_sentence = workload.sentences * workload.prompt_length
    memory = workload.sentences * workload.source_length
    numbers = 0
    shared = 0
    for layer in decoder.layers:
        longest = workload.target_length
        if layer.self_attn.window is not None:
            longest = min(longest, layer.self_attn.window + 1)
        per_hypothesis = workload.sentences * workload.beam * (-(-longest // GROWTH) * GROWTH)
        numbers += (per_sentence + per_hypothesis) * _width(layer.self_attn, policy.self_attention)
        if layer.encoder_attn is None or not memory:
            continue
        width = memory * _width(layer.encoder_attn, policy.cross_attention)
        if policy.cross_attention == "el":
            shared = width  # one tensor serves all layers
        else:
            numbers += width
    return (numbers + shared) * dtype.itemsize


def _width(attention, evaluation: str) -> int:
    """Numbers kept per position."""
    if evaluation == "el":
        return attention.k_proj.in_features
    return attention.k_proj.out_features + attention.v_proj.out_features
