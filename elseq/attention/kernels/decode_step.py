"""Attention of a decoding step on a CPU with AVX2 or AVX-512 VNNI: scores, softmax, weighted sum (decode_step.cpp).

Shapes: N hypotheses (those of a sentence are adjacent) of M sentences, H heads, G key/value heads, K width of a head.
"""

import ctypes
import sys

import torch
from torch import Tensor

import elseq.native as native

TYPES = (torch.float32, torch.bfloat16)  # of the inputs; everything is computed in float32


class Shared(ctypes.Structure):
    """Positions of sentences as the kernels read them. Their tensors must live as long."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("keys", "values", "mask")),
        *((name, ctypes.c_int64 * 3) for name in ("key", "value")),
        *((name, ctypes.c_int64) for name in ("mask_row", "sequences", "positions", "bfloat16")),
    ]


class Own(ctypes.Structure):
    """Positions of hypotheses, likewise."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("keys", "values", "rows")),
        *((name, ctypes.c_int64 * 3) for name in ("key", "value")),
        *((name, ctypes.c_int64) for name in ("rows_row", "listed", "positions", "bfloat16")),
    ]


def computes(*tensors: Tensor) -> bool:
    """Whether kernels compute with these: float32 or bfloat16 on a CPU, without gradients, and no mode of torch records
    or counts operations."""
    return (
        all(each.is_cpu and each.dtype in TYPES for each in tensors)
        and not (torch.is_grad_enabled() and any(each.requires_grad for each in tensors))
        and not native.is_recorded()
        and native.library() is not None
    )


def computes_step(query: Tensor) -> bool:
    """Whether `decode_step` computes this query, [N, H, T, K]: it is one position; and see `computes`."""
    return query.size(2) == 1 and computes(query)


def counted(top_k: int | None) -> int:
    """How many scores of a query count, as the kernels are told.

    Raises:
        ValueError: top_k is below 1.
    """
    if top_k is None:
        return sys.maxsize
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}: it has to be 1 or more")
    return min(top_k, sys.maxsize)


def decode_step(
    query: Tensor,
    shared: tuple[Tensor, Tensor, Tensor | None] | None,
    own: tuple[Tensor, Tensor, Tensor] | None = None,
    top_k: int | None = None,
) -> Tensor:
    """Attend to the positions of a sentence and to those of a hypothesis under one softmax.

    All tensors of numbers are float32 or bfloat16; everything is computed in float32.

    Args:
        query: [N, H, 1, K], already scaled. Head h uses key/value head h // (H / G).
        shared: keys and values [M, G, S, K] of one type; the keys' positions, and the values' K numbers, are adjacent
            in memory. Hypothesis n attends to sentence n // (N / M). The mask is None or bool [M or 1, 1, S], True at
            positions that are not attended to.
        own: keys and values [R, G, S, K] of one type, their K numbers adjacent, and rows, int64 [N, P]: position s of
            hypothesis n is in row rows[n, s], or n from P on. R rows; P is at most S.
        top_k: each query attends only to the positions of its k largest scores (2106.06899); of equal ones the first
            are taken, those of the sentence before those of the hypothesis. Default: to all.

    Returns:
        [N, H, 1, K] in the type of the query, NaN where `torch.softmax` gives NaN.

    Raises:
        ValueError: another type, shape or layout.
        RuntimeError: elseq's kernels are not available.
    """
    hypotheses, heads, _, width = query.shape
    check("the query", query, type_of(query), (hypotheses, heads, 1, width), 3)
    second = Own() if own is None else own_argument(*own, hypotheses, width)
    kv_heads = own[0].size(1) if own is not None else shared[0].size(1) if shared is not None else heads
    first = Shared(sequences=hypotheses) if shared is None else shared_argument(*shared, kv_heads, width)
    check_counts(hypotheses, heads, first.sequences, kv_heads)
    numbers = query.float()
    out = torch.empty_like(numbers, memory_format=torch.contiguous_format)
    native.loaded().elseq_decode_step(
        numbers.data_ptr(),
        out.data_ptr(),
        numbers.stride(0),
        numbers.stride(1),
        hypotheses,
        heads,
        kv_heads,
        width,
        counted(top_k),
        ctypes.byref(first),
        ctypes.byref(second),
        torch.get_num_threads(),
    )
    return out.to(query.dtype)


def check_counts(hypotheses: int, heads: int, sequences: int, kv_heads: int) -> None:
    """
    Raises:
        ValueError: hypotheses that do not belong to so many sentences, or heads that do not share so many.
    """
    if hypotheses and (not sequences or hypotheses % sequences) or heads and (not kv_heads or heads % kv_heads):
        raise ValueError(f"{hypotheses} hypotheses, {heads} heads: not multiples of {sequences} and {kv_heads}")


def own_argument(keys: Tensor, values: Tensor, rows: Tensor, hypotheses: int, width: int) -> Own:
    """keys, values, rows: as `own` of `decode_step`, of N hypotheses and heads of this width, K.

    Raises:
        ValueError: another type, shape or layout.
    """
    for name, tensor in (("own keys", keys), ("own values", values)):
        check(name, tensor, type_of(keys), (*keys.shape[:3], width), 3)
    listed = rows.size(1)
    check("rows", rows, torch.int64, (hypotheses, listed), 1)
    if listed > keys.size(2) or listed < keys.size(2) and hypotheses > len(keys):
        raise ValueError(f"{listed} rows of {hypotheses} hypotheses for keys {list(keys.shape)}")
    return Own(
        keys.data_ptr(),
        values.data_ptr(),
        rows.data_ptr(),
        keys.stride()[:3],
        values.stride()[:3],
        rows.stride(0),
        listed,
        keys.size(2),
        keys.dtype == torch.bfloat16,
    )


def shared_argument(keys: Tensor, values: Tensor, mask: Tensor | None, kv_heads: int, width: int) -> Shared:
    """keys, values, mask: as `shared` of `decode_step`, of G key/value heads of this width, K.

    Raises:
        ValueError: another type, shape or layout.
    """
    sequences, length = keys.size(0), keys.size(2)
    for name, tensor, adjacent in (("shared keys", keys, 2), ("shared values", values, 3)):
        check(name, tensor, type_of(keys), (sequences, kv_heads, length, width), adjacent)
    address, row = mask_argument(mask, sequences, length)
    return Shared(
        keys.data_ptr(),
        values.data_ptr(),
        address,
        (keys.stride(0), keys.stride(1), keys.stride(3)),
        values.stride()[:3],
        row,
        sequences,
        length,
        keys.dtype == torch.bfloat16,
    )


def mask_argument(mask: Tensor | None, sequences: int, length: int) -> tuple[int | None, int]:
    """The address of a mask, as `shared` of `decode_step`, of so many sentences and positions, and its row's stride.

    Raises:
        ValueError: another type, shape or layout.
    """
    if mask is None:
        return None, 0
    mask = mask.expand(sequences, 1, -1)
    check("the mask", mask, torch.bool, (sequences, 1, length), 2)
    return mask.data_ptr(), mask.stride(0)


def computes_texts(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> bool:
    """Whether `attend_to_texts` computes this attention: float32 on a CPU, the numbers of a value adjacent, values as
    wide as keys, no mask for each position, and see `computes`."""
    return (
        query.dtype == torch.float32
        and query.size(-1) == value.size(-1)
        and (value.size(-1) == 1 or value.stride(-1) == 1)
        and (mask is None or mask.size(1) == 1)
        and computes(query, key, value)
    )


def attend_to_texts(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of all positions of a text to one another, as in an encoder.

    It is about as fast as PyTorch's fused attention, with AVX2 a fifth slower. It adds up the positions one after the
    other. Masked positions behind them make no difference, so a text has the same result in any batch.

    Args:
        query: [N, H, T, K], already scaled.
        key, value: [N, G, S, K].
        mask: bool [N or 1, 1, S], True at positions that are not attended to, or None.

    Returns:
        [N, H, T, K].
    """
    texts, heads, length, width = query.shape
    rows = query.transpose(1, 2).reshape(texts * length, heads, 1, width)
    keys = key.transpose(2, 3).contiguous().transpose(2, 3)
    mask = None if mask is None else mask.contiguous()
    return decode_step(rows, (keys, value, mask)).view(texts, length, heads, width).transpose(1, 2)


def type_of(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype in TYPES else torch.float32


def check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], adjacent: int) -> None:
    if (
        tensor.shape != shape
        or tensor.dtype != dtype
        or not tensor.is_cpu
        or tensor.numel() > 0
        and tensor.size(adjacent) > 1
        and tensor.stride(adjacent) != 1
    ):
        raise ValueError(f"{name}: {dtype} {list(shape)} on the CPU, adjacent in dimension {adjacent}")
