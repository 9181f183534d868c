"""EL-attention of a decoding step on a CPU with AVX2 or AVX-512 VNNI: scores, softmax, weighted sum (el_step.cpp).

All heads and hypotheses of a sentence read its hidden states together: a block of these comes from memory once, and
stays in the cache for the scores and for the weighted sum.

Shapes: N hypotheses (those of a sentence are adjacent) of M sentences, H heads, G key/value heads, K width of a head, D
width of a hidden state.
"""

import ctypes

import torch
from torch import Tensor

import elseq.native as native
from elseq.attention.kernels.decode_step import Own, Shared, check, check_counts, mask_argument, own_argument, type_of


def el_step(
    query: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    value_bias: Tensor | None,
    shared: tuple[Tensor, Tensor | None] | None,
    own: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attend to the hidden states of a sentence and to those of a hypothesis under one softmax.

    Everything is computed in float32.

    Args:
        query: float32 [N, H, 1, K], projected and scaled. Head h uses key/value head h // (H / G).
        key_weight, value_weight: float32 [G K, D], as `nn.Linear` stores them.
        value_bias: float32 [G K] or None.
        shared: hidden states [M, S, D], float32 or bfloat16, the D numbers adjacent in memory. Hypothesis n attends to
            sentence n // (N / M). The mask is None or bool [M or 1, 1, S], True at positions that are not attended to.
        own: hidden states [R, S, D], likewise, and rows, int64 [N, P], as for `decode_step`.

    Returns:
        [N, H, 1, K], NaN where `torch.softmax` gives NaN.

    Raises:
        ValueError: another type, shape or layout.
        RuntimeError: elseq's kernels are not available.
    """
    key_weight, value_weight = (weight.contiguous().resolve_neg() for weight in (key_weight, value_weight))
    value_bias = None if value_bias is None else value_bias.contiguous().resolve_neg()
    hypotheses, heads, _, head_width = query.shape
    outputs, width = key_weight.shape
    kv_heads = outputs // head_width
    check("the query", query, torch.float32, (hypotheses, heads, 1, head_width), 3)
    first = Shared(sequences=hypotheses) if shared is None else _shared_argument(*shared, width)
    second = Own()
    if own is not None:
        states, rows = own
        second = own_argument(states.unsqueeze(1), states.unsqueeze(1), rows, hypotheses, width)
    check_counts(hypotheses, heads, first.sequences, kv_heads)
    weights = [
        native.address("the weight", weight, torch.float32, kv_heads * head_width, width)
        for weight in (key_weight, value_weight)
    ]
    bias = None if value_bias is None else native.address("the bias", value_bias, torch.float32, outputs)
    expanded, context = query.new_empty(2, hypotheses, heads, width)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    native.loaded().elseq_el_step(
        query.data_ptr(),
        query.stride(0),
        query.stride(1),
        *weights,
        bias,
        expanded.data_ptr(),
        context.data_ptr(),
        out.data_ptr(),
        hypotheses,
        heads,
        kv_heads,
        head_width,
        width,
        ctypes.byref(first),
        ctypes.byref(second),
        torch.get_num_threads(),
    )
    return out


def working_bytes(queries: int, width: int) -> int:
    """What `el_step` holds besides its arguments and its result.

    Args:
        queries: N H.
        width: D.
    """
    return 2 * queries * width * torch.float32.itemsize  # expanded queries, weighted hidden states


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
