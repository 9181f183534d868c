"""Attention of a decoding step on a CPU with AVX-512: scores, softmax and weighted sum at once (decode_step.cpp).

Shapes: N hypotheses (those of a sentence are adjacent) of M sentences, H heads, G key/value heads, K width of a head.
"""

import ctypes

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

import elseq.native as native


class _Shared(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("keys", "values", "mask")),
        *((name, ctypes.c_int64 * 3) for name in ("key", "value")),
        *((name, ctypes.c_int64) for name in ("mask_row", "sequences", "positions", "bfloat16")),
    ]


class _Own(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("keys", "values", "rows")),
        *((name, ctypes.c_int64 * 3) for name in ("key", "value")),
        *((name, ctypes.c_int64) for name in ("rows_row", "listed", "positions")),
    ]


def fits(query: Tensor) -> bool:
    """Whether `decode_step` computes this query, [N, H, T, K].

    It is one float32 position on a CPU, without gradients, and no mode of torch records or counts operations.
    """
    return (
        query.is_cpu
        and query.dtype == torch.float32
        and query.size(2) == 1
        and not (query.requires_grad and torch.is_grad_enabled())
        and _get_current_dispatch_mode() is None  # which would not see the kernel
        and native.library() is not None
    )


def decode_step(
    query: Tensor,
    shared: tuple[Tensor, Tensor, Tensor | None] | None,
    own: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """Attend to the positions of a sentence and to those of a hypothesis under one softmax.

    Args:
        query: float32 [N, H, 1, K], already scaled. Head h uses key/value head h // (H / G).
        shared: keys and values [M, G, S, K], both float32 or both bfloat16, which are computed with in float32; the
            keys' positions, and the values' K numbers, are adjacent in memory. Hypothesis n attends to sentence
            n // (N / M). The mask is None or bool [M or 1, 1, S], True at positions that are not attended to.
        own: keys and values [R, G, S, K], float32, their K numbers adjacent, and rows, int64 [N, P]: position s of
            hypothesis n is in row rows[n, s], or n from P on. R rows; P is at most S.

    Returns:
        float32 [N, H, 1, K], NaN where `torch.softmax` gives NaN.

    Raises:
        ValueError: another type, shape or layout.
        RuntimeError: elseq's kernels are not available.
    """
    hypotheses, heads, length, width = query.shape
    sequences, kv_heads, first, second = hypotheses, heads, _Shared(), _Own()
    _check("the query", query, torch.float32, (hypotheses, heads, 1, width), 3)
    if own is not None:
        keys, values, rows = own
        kv_heads = keys.size(1)
        for name, tensor in (("own keys", keys), ("own values", values)):
            _check(name, tensor, torch.float32, (len(keys), kv_heads, keys.size(2), width), 3)
        listed = rows.size(1)
        _check("rows", rows, torch.int64, (hypotheses, listed), 1)
        if listed > keys.size(2) or listed < keys.size(2) and hypotheses > len(keys):
            raise ValueError(f"{listed} rows of {hypotheses} hypotheses for keys {list(keys.shape)}")
        second = _Own(
            keys.data_ptr(),
            values.data_ptr(),
            rows.data_ptr(),
            keys.stride()[:3],
            values.stride()[:3],
            rows.stride(0),
            listed,
            keys.size(2),
        )
    if shared is not None:
        keys, values, mask = shared
        sequences, kv_heads = keys.shape[:2] if own is None else (len(keys), kv_heads)
        dtype = torch.bfloat16 if keys.dtype == torch.bfloat16 else torch.float32
        for name, tensor, adjacent in (("shared keys", keys, 2), ("shared values", values, 3)):
            _check(name, tensor, dtype, (sequences, kv_heads, keys.size(2), width), adjacent)
        if mask is not None:
            mask = mask.expand(sequences, 1, -1)
            _check("the mask", mask, torch.bool, (sequences, 1, keys.size(2)), 2)
        first = _Shared(
            keys.data_ptr(),
            values.data_ptr(),
            None if mask is None else mask.data_ptr(),
            (keys.stride(0), keys.stride(1), keys.stride(3)),
            values.stride()[:3],
            0 if mask is None else mask.stride(0),
            0,
            keys.size(2),
            dtype == torch.bfloat16,
        )
    first.sequences = sequences
    if hypotheses and (not sequences or hypotheses % sequences) or heads and (not kv_heads or heads % kv_heads):
        raise ValueError(f"{hypotheses} hypotheses, {heads} heads: not multiples of {sequences} and {kv_heads}")
    out = query.new_empty(query.shape)
    native.loaded().elseq_decode_step(
        query.data_ptr(),
        out.data_ptr(),
        query.stride(0),
        query.stride(1),
        hypotheses,
        heads,
        kv_heads,
        width,
        ctypes.byref(first),
        ctypes.byref(second),
        torch.get_num_threads(),
    )
    return out


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], adjacent: int) -> None:
    if (
        tensor.shape != shape
        or tensor.dtype != dtype
        or not tensor.is_cpu
        or tensor.size(adjacent) > 1
        and tensor.stride(adjacent) != 1
    ):
        raise ValueError(f"{name}: {dtype} {list(shape)} on the CPU, adjacent in dimension {adjacent}")
