"""The kernels of `flash_decoding`: one attends to a part of the positions, the other joins the parts.

The rows of a program are queries that attend to the same keys. Programs with other rows of these queries follow one
another, so that they find the keys in the cache of the GPU.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 2  # for each processor: with fewer, positions are split into parts
TILE = 256  # numbers of a width that are one operand of a matrix product
MASK_BLOCK = tl.constexpr(1024)


class GPU(NamedTuple):
    processors: int
    shared_memory: int  # bytes that a program can have


class Blocks(NamedTuple):
    """The sizes of a program: queries and blocks of keys in shared memory, the context of the queries in registers."""

    rows: int  # queries at most, for numbers of 2 bytes; half for 4 bytes, but at least 16, as matrix products need
    positions: int  # likewise
    num_warps: int


# By the width up to which they serve. They keep registers from overflowing on GPUs of compute capability 8.0 and 9.0.
# They are not tuned: no time has been measured yet.
BLOCKS = {
    64: Blocks(64, 64, 4),
    128: Blocks(64, 64, 8),
    256: Blocks(32, 32, 4),
    512: Blocks(16, 32, 4),
    1024: Blocks(16, 32, 8),
}


def options(width: int, rows: int, size: int, tensors: int, shared_memory: int) -> dict[str, int]:
    """The constants of `attend`.

    Args:
        width: of keys and values.
        rows: queries that attend to the same keys.
        size: bytes of a number.
        tensors: 1 where the values are the keys, otherwise 2.
        shared_memory: see `GPU`.
    """
    blocks = next(each for most, each in BLOCKS.items() if width <= most)
    tile = min(TILE, max(16, triton.next_power_of_2(width)))
    tiles = triton.cdiv(width, tile)
    block_rows = max(16, min(2 * blocks.rows // size, triton.next_power_of_2(rows)))
    block_positions = max(16, 2 * blocks.positions // size)
    # One block is loaded while another is computed with, if there is room for both, the queries and the weights.
    both = 2 * tensors * block_positions * tiles * tile * size
    room = shared_memory - block_rows * (tiles * tile + block_positions + 1) * size
    return {
        "width": width,
        "tile": tile,
        "tiles": tiles,
        "block_rows": block_rows,
        "block_positions": block_positions,
        "num_warps": blocks.num_warps,
        "num_stages": 3 if both <= room else 2,
    }


def launch(query: Tensor, segments: Sequence, gpu: GPU) -> Tensor:
    """See `flash_decoding`."""
    hypotheses, heads, _, width = query.shape
    constants, parts = [], []
    for key, value, *_ in segments:
        rows = _rows(query, key)
        constants.append(options(width, rows, query.element_size(), 1 if value is key else 2, gpu.shared_memory))
        programs = key.size(0) * key.size(1) * triton.cdiv(rows, constants[-1]["block_rows"])
        blocks = triton.cdiv(key.size(2), constants[-1]["block_positions"])
        parts.append(min(triton.cdiv(PROGRAMS * gpu.processors, programs), blocks))
    # They are rounded to the type of the query, as the results for several segments are without the kernel.
    contexts = query.new_empty(sum(parts), hypotheses, heads, 1, width)
    maxima, totals = query.new_empty(2, sum(parts), hypotheses, heads, dtype=torch.float32)
    results = (tensor.split(parts) for tensor in (contexts, maxima, totals))
    for segment, constant, *own in zip(segments, constants, *results, strict=True):
        _attend(query, *segment, *own, constant)
    if sum(parts) == 1:
        return contexts[0]
    context = torch.empty_like(contexts[0])
    block = triton.next_power_of_2(width)
    join[(hypotheses * heads,)](contexts, maxima, totals, context, sum(parts), hypotheses * heads, width, block)
    return context


def _rows(query: Tensor, key: Tensor) -> int:
    return query.size(0) // key.size(0) * (query.size(1) // key.size(1))


def _attend(query, key, value, mask, bias, contexts, maxima, totals, constants: dict[str, int]) -> None:
    parts, hypotheses, heads, *_ = contexts.shape
    sequences, kv_heads, positions, _ = key.shape
    rows = _rows(query, key)
    row_blocks = triton.cdiv(rows, constants["block_rows"])
    blocks = triton.cdiv(positions, constants["block_positions"])
    mask_strides = bias_strides = (0, 0, 0, 0)
    if mask is not None:
        mask = mask.expand(sequences, 1, positions).view(torch.uint8)
        mask_strides = mask.stride()
    if bias is not None:
        bias = bias.expand(hypotheses, heads, 1, positions)
        bias_strides = bias.stride()
    attend[(row_blocks * parts * kv_heads * sequences,)](
        query,
        key,
        value,
        mask,
        bias,
        contexts,
        maxima,
        totals,
        positions,
        triton.cdiv(blocks, parts) * constants["block_positions"],
        parts,
        rows,
        heads,
        kv_heads,
        hypotheses * heads,
        query.stride(0),
        query.stride(1),
        query.stride(3),
        *key.stride(),
        *value.stride(),
        mask_strides[0],
        mask_strides[2],
        bias_strides[0],
        bias_strides[1],
        bias_strides[3],
        shares=value is key,
        **constants,
    )


@triton.jit(do_not_specialize=["positions", "span", "parts", "rows", "queries"])
def attend(
    query,
    key,
    value,
    mask,
    bias,
    contexts,
    maxima,
    totals,
    positions,
    span,
    parts,
    rows,
    heads,
    kv_heads,
    queries,
    query_hypothesis,
    query_head,
    query_number,
    key_sequence,
    key_head,
    key_position,
    key_number,
    value_sequence,
    value_head,
    value_position,
    value_number,
    mask_sequence,
    mask_position,
    bias_hypothesis,
    bias_head,
    bias_position,
    shares: tl.constexpr,
    width: tl.constexpr,
    tile: tl.constexpr,
    tiles: tl.constexpr,
    block_rows: tl.constexpr,
    block_positions: tl.constexpr,
):
    """Each program attends with some rows to one part. It returns their largest scores, the sums of the exponentials of
    what they are below these, and the context. Where nothing is attended to these are -inf, 0 and zeros."""
    row_blocks = tl.cdiv(rows, block_rows)
    row_block = tl.program_id(0) % row_blocks
    part = tl.program_id(0) // row_blocks % parts
    kv_head = tl.program_id(0) // (row_blocks * parts) % kv_heads
    sequence = (tl.program_id(0) // (row_blocks * parts * kv_heads)).to(tl.int64)

    row = row_block * block_rows + tl.arange(0, block_rows)
    is_row = row < rows
    group = heads // kv_heads
    hypothesis = sequence * (rows // group) + row // group
    head = kv_head * group + row % group
    number = tl.arange(0, tile)

    query_row = query + hypothesis * query_hypothesis + head * query_head
    queried = ()
    context = ()
    for index in tl.static_range(tiles):
        is_number = is_row[:, None] & (index * tile + number < width)[None, :]
        place = query_row[:, None] + (index * tile + number)[None, :] * query_number
        queried = queried + (tl.load(place, mask=is_number, other=0.0),)
        context = context + (tl.zeros((block_rows, tile), dtype=tl.float32),)
    largest = tl.full((block_rows,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((block_rows,), dtype=tl.float32)

    keys = key + sequence * key_sequence + kv_head * key_head
    values = value + sequence * value_sequence + kv_head * value_head
    first = part * span
    end = tl.minimum(positions, first + span)
    masks = mask
    if mask is not None:
        # What is masked at both ends is not read. In between it is: loads that depend on others are not overlapped.
        masks = mask + sequence * mask_sequence
        seen_first, seen_end = end, first
        for start in range(first, end, MASK_BLOCK):
            several = start + tl.arange(0, MASK_BLOCK)
            is_seen = tl.load(masks + several * mask_position, mask=several < end, other=1) == 0
            seen_first = tl.minimum(seen_first, tl.min(tl.where(is_seen, several, end)))
            seen_end = tl.maximum(seen_end, tl.max(tl.where(is_seen, several + 1, first)))
        first, end = seen_first, seen_end
    for start in range(first, end, block_positions):
        position = start + tl.arange(0, block_positions)
        is_inside = position < end
        seen = is_inside
        if mask is not None:
            seen = seen & (tl.load(masks + position * mask_position, mask=is_inside, other=1) == 0)
        scores = tl.zeros((block_rows, block_positions), dtype=tl.float32)
        read = ()
        for index in tl.static_range(tiles):
            is_key = is_inside[:, None] & (index * tile + number < width)[None, :]
            key_place = keys + position[:, None] * key_position + (index * tile + number)[None, :] * key_number
            block = tl.load(key_place, mask=is_key, other=0.0)
            scores = tl.dot(queried[index], tl.trans(block), scores, input_precision="ieee")
            read = read + (block,)
        if bias is not None:
            bias_row = bias + hypothesis * bias_hypothesis + head * bias_head
            bias_place = bias_row[:, None] + position[None, :] * bias_position
            scores += tl.load(bias_place, mask=is_row[:, None] & seen[None, :], other=0.0).to(tl.float32)
        scores = tl.where(seen[None, :], scores, float("-inf"))

        larger = tl.maximum(largest, tl.max(scores, 1))
        bound = tl.where(larger == float("-inf"), 0.0, larger)
        weights = tl.exp(scores - bound[:, None])
        shrink = tl.exp(largest - bound)
        largest = larger
        total = total * shrink + tl.sum(weights, 1)
        weights = weights.to(value.dtype.element_ty)
        mixed = ()
        for index in tl.static_range(tiles):
            if shares:
                values_read = read[index]
            else:
                is_value = is_inside[:, None] & (index * tile + number < width)[None, :]
                value_place = (
                    values + position[:, None] * value_position + (index * tile + number)[None, :] * value_number
                )
                values_read = tl.load(value_place, mask=is_value, other=0.0)
            before = context[index] * shrink[:, None]
            mixed = mixed + (tl.dot(weights, values_read, before, input_precision="ieee"),)
        context = mixed

    out = part * queries + hypothesis * heads + head
    tl.store(maxima + out, largest, mask=is_row)
    tl.store(totals + out, total, mask=is_row)
    divisor = tl.where(total == 0.0, 1.0, total)[:, None]
    for index in tl.static_range(tiles):
        is_number = is_row[:, None] & (index * tile + number < width)[None, :]
        place = contexts + out[:, None] * width + (index * tile + number)[None, :]
        tl.store(place, (context[index] / divisor).to(contexts.dtype.element_ty), mask=is_number)


@triton.jit(do_not_specialize=["parts", "queries"])
def join(contexts, maxima, totals, context, parts, queries, width: tl.constexpr, block: tl.constexpr):
    """Each program makes the mean of the parts of one query, weighted by their sums of exponentials."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    is_column = column < width
    largest = tl.load(maxima + row)
    for part in range(1, parts):
        largest = tl.maximum(largest, tl.load(maxima + part * queries + row))
    bound = tl.where(largest == float("-inf"), 0.0, largest)
    total = bound * 0.0
    mean = tl.zeros((block,), dtype=tl.float32)
    for part in range(parts):
        own = part * queries + row
        weight = tl.load(totals + own) * tl.exp(tl.load(maxima + own) - bound)
        mean += weight * tl.load(contexts + own * width + column, mask=is_column, other=0.0).to(tl.float32)
        total += weight
    mean = mean / tl.where(total == 0.0, 1.0, total)
    tl.store(context + row * width + column, mean.to(context.dtype.element_ty), mask=is_column)
