"""EL-attention of a decoding step on a CPU with AVX2 or AVX-512 VNNI: scores, softmax, weighted sum (el_step.cpp).

All heads and hypotheses of a sentence read its hidden states together: a block of these comes from memory once, and
stays in the cache for the scores and for the weighted sum. With top-k attention the weighted sum follows once all
scores are known.

Shapes: N hypotheses (those of a sentence are adjacent) of M sentences, H heads, G key/value heads, K width of a head, D
width of a hidden state.
"""

import ctypes

import torch
from torch import Tensor

import elseq.native as native
from elseq.attention.kernels.decode_step import (
    Own,
    Shared,
    check,
    check_counts,
    counted,
    mask_argument,
    own_argument,
    type_of,
)


def el_step(
    query: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    value_bias: Tensor | None,
    shared: tuple[Tensor, Tensor | None] | None,
    own: tuple[Tensor, Tensor] | None = None,
    top_k: int | None = None,
) -> Tensor:
    """Attend to the hidden states of a sentence and to those of a hypothesis under one softmax.

    Everything is computed in float32.

    Args:
        query: [N, H, 1, K], float32 or bfloat16, projected and scaled. Head h uses key/value head h // (H / G).
        key_weight, value_weight: [G K, D] in the type of the query, as `nn.Linear` stores them.
        value_bias: [G K] in that type, or None.
        shared: hidden states [M, S, D], float32 or bfloat16, the D numbers adjacent in memory. Hypothesis n attends to
            sentence n // (N / M). The mask is None or bool [M or 1, 1, S], True at positions that are not attended to.
        own: hidden states [R, S, D], likewise, and rows, int64 [N, P], as for `decode_step`.
        top_k: as for `decode_step`.

    Returns:
        [N, H, 1, K] in the type of the query, NaN where `torch.softmax` gives NaN.

    Raises:
        ValueError: another type, shape or layout.
        RuntimeError: elseq's kernels are not available.
    """
    key_weight, value_weight = (weight.contiguous().resolve_neg() for weight in (key_weight, value_weight))
    value_bias = None if value_bias is None else value_bias.contiguous().resolve_neg()
    hypotheses, heads, _, head_width = query.shape
    outputs, width = key_weight.shape
    kv_heads = outputs // head_width
    check("the query", query, type_of(query), (hypotheses, heads, 1, head_width), 3)
    first = Shared(sequences=hypotheses) if shared is None else _shared_argument(*shared, width)
    second = Own()
    if own is not None:
        states, rows = own
        second = own_argument(states.unsqueeze(1), states.unsqueeze(1), rows, hypotheses, width)
    check_counts(hypotheses, heads, first.sequences, kv_heads)
    weights = [
        native.address("the weight", weight, query.dtype, kv_heads * head_width, width)
        for weight in (key_weight, value_weight)
    ]
    numbers = query.float()
    bias = None if value_bias is None else value_bias.float()
    expanded, context = numbers.new_empty(2, hypotheses, heads, width)
    out = torch.empty_like(numbers, memory_format=torch.contiguous_format)
    positions = first.positions + second.positions
    chosen = counted(top_k) if counted(top_k) < positions else 0
    scores = numbers.new_empty(hypotheses * heads * (positions + 3) if chosen else 0)
    places = scores.new_empty(hypotheses * heads * chosen, dtype=torch.int32)
    native.loaded().elseq_el_step(
        numbers.data_ptr(),
        numbers.stride(0),
        numbers.stride(1),
        *weights,
        None if bias is None else native.address("the bias", bias, torch.float32, outputs),
        expanded.data_ptr(),
        context.data_ptr(),
        out.data_ptr(),
        scores.data_ptr(),
        places.data_ptr(),
        hypotheses,
        heads,
        kv_heads,
        head_width,
        width,
        counted(top_k),
        ctypes.byref(first),
        ctypes.byref(second),
        query.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return out.to(query.dtype)


def working_bytes(queries: int, width: int, positions: int = 0, top_k: int | None = None) -> int:
    """What `el_step` holds besides its arguments and its result in float32.

    Args:
        queries: N H.
        width: D.
        positions: S, of a sentence and of a hypothesis.
        top_k: as for `el_step`.
    """
    numbers = 2 * width  # the expanded query, the weighted hidden states
    if counted(top_k) < positions:
        numbers += positions + 3 + counted(top_k)
    return queries * numbers * torch.float32.itemsize


def _shared_argument(states: Tensor, mask: Tensor | None, width: int) -> Shared:
    sequences, length = states.shape[:2]
    check("hidden states", states, type_of(states), (sequences, length, width), 2)
    address, row = mask_argument(mask, sequences, length)
    return Shared(
        values=states.data_ptr(),
        mask=address,
        value=(states.stride(0), 0, states.stride(1)),
        mask_row=row,
        sequences=sequences,
        positions=length,
        bfloat16=states.dtype == torch.bfloat16,
    )
