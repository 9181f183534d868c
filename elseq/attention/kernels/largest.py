"""Softmax and weighted sum over the k largest scores, on a CPU with AVX2 or AVX-512 VNNI (largest.cpp).

The k-th largest score is found bit by bit, by counting the scores above a bound. So the scores are read some twenty
times from the cache, and of the values only the chosen rows are read.
"""

import torch
from torch import Tensor

import elseq.native as native
from elseq.attention.kernels.decode_step import computes


def computes_largest(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `attend_to_largest` computes this attention: the numbers of a value are adjacent; and see
    `decode_step.computes`."""
    return (value.size(-1) == 1 or value.stride(-1) == 1) and computes(query, key, value)


def attend_to_largest(scores: Tensor, value: Tensor, top_k: int) -> Tensor:
    """The mean of the values, weighted by the softmax of the k largest scores.

    Shapes: M sequences, G heads, R queries of each, S positions, V width of a value.

    Args:
        scores: [M, G, R, S], float32 or bfloat16; -inf where a position is not attended to. Of equal ones the first are
            chosen.
        value: [M, G, S, V], float32 or bfloat16; the V numbers are adjacent in memory.
        top_k: below S. Everything is computed in float32.

    Returns:
        [M, G, R, V] in the type of the scores; NaN where a score is NaN, or all of them are -inf.

    Raises:
        ValueError: another number, type, shape or layout.
        RuntimeError: elseq's kernels are not available.
    """
    sequences, heads, rows, positions = scores.shape
    width = value.size(-1)
    numbers = scores.float().contiguous()
    has_shape = value.shape == (sequences, heads, positions, width)
    if not 0 < top_k < positions < 2**31 or not has_shape or not computes_largest(scores, scores, value):
        raise ValueError(f"{top_k} of the scores {list(scores.shape)} of values {list(value.shape)}, {value.dtype}")
    weights = numbers.new_empty(sequences, heads, rows, top_k)
    places = weights.new_empty(weights.shape, dtype=torch.int32)
    out = numbers.new_empty(sequences, heads, rows, width)
    native.loaded().elseq_attend_to_largest(
        numbers.data_ptr(),
        value.data_ptr(),
        weights.data_ptr(),
        places.data_ptr(),
        out.data_ptr(),
        sequences,
        heads,
        rows,
        positions,
        top_k,
        width,
        *value.stride()[:3],
        value.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return out.to(scores.dtype)
