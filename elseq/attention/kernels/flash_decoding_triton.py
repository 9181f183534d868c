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

WARPS = 8  # that a processor runs at once: their threads have more than 128 of its 65,536 registers
MASK_BLOCK = tl.constexpr(1024)


class GPU(NamedTuple):
    processors: int
    shared_memory: int  # bytes that a program can have
    has_wgmma: bool  # matrix products of numbers of 2 bytes read both operands in shared memory


class Blocks(NamedTuple):
    """The sizes of a program: queries and blocks of keys in shared memory, the context of the queries in registers."""

    rows: int  # queries at most, for numbers of 2 bytes; half for 4 bytes, but at least 16, as matrix products need
    positions: int  # likewise
    num_warps: int


# By the width up to which they serve: of those that ptxas compiles for numbers of 2 bytes without spilled registers,
# and that fit the shared memory, the ones whose programs read the fewest bytes of the caches and of shared memory, by
# count. With `wgmma` the context is transposed: its rows are then a multiple of 64 whatever the number of queries, and
# no two warps compute the same scores. They are not tuned: no time has been measured yet.
WITH_WGMMA = {  # compiled for compute capability 9.0
    64: Blocks(64, 64, 4),
    128: Blocks(64, 32, 4),
    256: Blocks(64, 32, 8),
    1024: Blocks(32, 32, 8),
}
WITHOUT_WGMMA = {  # for 8.0
    64: Blocks(64, 64, 4),
    128: Blocks(64, 64, 8),
    256: Blocks(32, 32, 8),
    512: Blocks(16, 32, 4),
    1024: Blocks(16, 32, 8),
}


def options(width: int, rows: int, size: int, tensors: int, gpu: GPU) -> dict[str, int]:
    """The constants of `attend`.

    Args:
        width: of keys and values.
        rows: queries that attend to the same keys.
        size: bytes of a number.
        tensors: 1 where the values are the keys, otherwise 2.
        gpu: on which it runs.
    """
    has_wgmma = gpu.has_wgmma and size == 2
    blocks = next(each for most, each in (WITH_WGMMA if has_wgmma else WITHOUT_WGMMA).items() if width <= most)
    block_width = max(16, triton.next_power_of_2(width))
    block_rows = max(16, min(2 * blocks.rows // size, triton.next_power_of_2(rows)))
    block_positions = max(16, 2 * blocks.positions // size)
    # One block is loaded while another is computed with, if there is room for both, the queries and the weights.
    both = 2 * tensors * block_positions * block_width * size
    room = gpu.shared_memory - block_rows * (block_width + block_positions + 4) * size
    return {
        "width": width,
        "transposes": has_wgmma,
        "block_width": block_width,
        "block_rows": block_rows,
        "block_positions": block_positions,
        "num_warps": blocks.num_warps,
        "num_stages": 3 if both <= room else 2,
    }


def launch(query: Tensor, segments: Sequence, gpu: GPU) -> Tensor:
    """See `flash_decoding`."""
    hypotheses, heads, _, width = query.shape
    constants, parts = [], []
    for segment in segments:
        key, value, *_ = segment
        rows = _rows(query, segment)
        constants.append(options(width, rows, query.element_size(), 1 if value is key else 2, gpu))
        programs = segment.sequences * key.size(1) * triton.cdiv(rows, constants[-1]["block_rows"])
        blocks = triton.cdiv(key.size(2), constants[-1]["block_positions"])
        at_once = gpu.processors * WARPS // constants[-1]["num_warps"]
        of_part = triton.cdiv(blocks, min(max(1, at_once // programs), blocks))
        parts.append(triton.cdiv(blocks, of_part))  # none of which is empty
    # They are rounded to the type of the query, as the results for several segments are without the kernel.
    contexts = query.new_empty(sum(parts), hypotheses, heads, 1, width)
    maxima, totals = query.new_empty(2, sum(parts), hypotheses, heads, dtype=torch.float32)
    results = (tensor.split(parts) for tensor in (contexts, maxima, totals))
    for segment, constant, *own in zip(segments, constants, *results, strict=True):
        _attend(query, segment, *own, constant)
    if sum(parts) == 1:
        return contexts[0]
    context = torch.empty_like(contexts[0])
    block = triton.next_power_of_2(width)
    join[(hypotheses * heads,)](contexts, maxima, totals, context, sum(parts), hypotheses * heads, width, block)
    return context


def _rows(query: Tensor, segment) -> int:
    """Queries that attend to the same keys."""
    return query.size(0) // segment.sequences * (query.size(1) // segment.key.size(1))


def _attend(query, segment, contexts, maxima, totals, constants: dict[str, int]) -> None:
    key, value, mask, ancestry = segment
    parts, hypotheses, heads, *_ = contexts.shape
    _, kv_heads, positions, _ = key.shape
    sequences, rows = segment.sequences, _rows(query, segment)
    row_blocks = triton.cdiv(rows, constants["block_rows"])
    blocks = triton.cdiv(positions, constants["block_positions"])
    beam = key.size(0) // sequences
    mask_strides = (0, 0, 0)
    if mask is not None:
        mask = mask.expand(sequences, 1, positions).view(torch.uint8)
        mask_strides = mask.stride()
    attend[(row_blocks * parts * kv_heads * sequences,)](
        query,
        key,
        value,
        mask,
        None if ancestry is None else ancestry.rows,
        None if ancestry is None else ancestry.shared,
        contexts,
        maxima,
        totals,
        positions,
        triton.cdiv(blocks, parts),
        parts,
        rows,
        beam,
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
        has_one_tensor=value is key,
        block_beam=triton.next_power_of_2(beam),
        **constants,
    )


@triton.jit(do_not_specialize=["blocks_of_part", "parts", "rows", "beam", "queries"])
def attend(
    query,
    key,
    value,
    mask,
    rows_of,
    shared,
    contexts,
    maxima,
    totals,
    positions,
    blocks_of_part,
    parts,
    rows,
    beam,
    heads,
    kv_heads,
    queries,
    query_hypothesis,
    query_head,
    query_number,
    key_row,
    key_head,
    key_position,
    key_number,
    value_row,
    value_head,
    value_position,
    value_number,
    mask_sequence,
    mask_position,
    has_one_tensor: tl.constexpr,
    block_beam: tl.constexpr,
    transposes: tl.constexpr,
    width: tl.constexpr,
    block_width: tl.constexpr,
    block_rows: tl.constexpr,
    block_positions: tl.constexpr,
):
    """Each program attends with some rows to one part. It returns their largest scores, the sums of the exponentials of
    what they are below these, and the context. Where nothing is attended to these are -inf, 0 and zeros.

    With an ancestry, `rows_of` and `shared` are its tables. The members of a sequence are then its hypotheses, and each
    query attends to the positions that its hypothesis has in common with one after the other."""
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
    number = tl.arange(0, block_width)
    is_number = number < width

    query_row = query + hypothesis * query_hypothesis + head * query_head
    query_place = query_row[:, None] + number[None, :] * query_number
    queried = tl.load(query_place, mask=is_row[:, None] & is_number[None, :], other=0.0)
    if transposes:
        context = tl.zeros((block_width, block_rows), dtype=tl.float32)
    else:
        context = tl.zeros((block_rows, block_width), dtype=tl.float32)
    largest = tl.full((block_rows,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((block_rows,), dtype=tl.float32)

    keys = key + sequence * beam * key_row + kv_head * key_head
    values = value + sequence * beam * value_row + kv_head * value_head
    first = part * blocks_of_part * block_positions
    end = tl.minimum(positions, first + blocks_of_part * block_positions)
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
        first, end = seen_first, tl.minimum(end, seen_end)
    members = 1 if rows_of is None else beam
    for member in range(members):
        # A member has its first positions in common with those before it, and is read from where it parts from them
        # all, to where it has parted from all hypotheses of these queries. No position of a row is read twice.
        member_row = sequence * beam + member
        member_first, member_end, shared_end = first, end, end
        if rows_of is not None:
            earlier = tl.arange(0, block_beam)
            parted = tl.load(shared + member_row * beam + earlier, mask=earlier < member, other=0)
            member_first = tl.maximum(first, tl.max(parted, 0))
            shared_end = tl.load(shared + hypothesis * beam + member, mask=is_row, other=0)
            member_end = tl.minimum(end, tl.max(shared_end, 0))
        # Blocks start at multiples of their size: then several adjacent positions are loaded at once.
        for start in range(member_first // block_positions * block_positions, member_end, block_positions):
            position = start + tl.arange(0, block_positions)
            is_inside = (position >= member_first) & (position < member_end)
            seen = is_inside
            if mask is not None:
                seen = seen & (tl.load(masks + position * mask_position, mask=is_inside, other=1) == 0)
            # Whatever keys are read of other positions, their scores are replaced.
            is_key = is_inside if has_one_tensor or rows_of is not None else position < positions
            key_start, value_start = position * key_position, position * value_position
            if rows_of is not None:
                buffer_row = tl.load(rows_of + member_row * positions + position, mask=is_inside, other=0)
                buffer_row -= (sequence * beam).to(tl.int32)  # among those of the sequence
                key_start += buffer_row * key_row
                value_start += buffer_row * value_row
            key_place = keys + key_start[:, None] + number[None, :] * key_number
            block = tl.load(key_place, mask=is_key[:, None] & is_number[None, :], other=0.0)
            scores = tl.dot(queried, tl.trans(block), input_precision="ieee")
            scores = tl.where(seen[None, :], scores, float("-inf"))
            if rows_of is not None:
                scores = tl.where(position[None, :] < shared_end[:, None], scores, float("-inf"))

            larger = tl.maximum(largest, tl.max(scores, 1))
            bound = tl.where(larger == float("-inf"), 0.0, larger)
            weights = tl.exp(scores - bound[:, None])
            shrink = tl.exp(largest - bound)
            largest = larger
            total = total * shrink + tl.sum(weights, 1)
            if not has_one_tensor:
                value_place = values + value_start[:, None] + number[None, :] * value_number
                block = tl.load(value_place, mask=is_inside[:, None] & is_number[None, :], other=0.0)
            weights = weights.to(block.dtype)
            if transposes:
                before = context * shrink[None, :]
                context = tl.dot(tl.trans(block), tl.trans(weights), before, input_precision="ieee")
            else:
                context = tl.dot(weights, block, context * shrink[:, None], input_precision="ieee")

    out = part * queries + hypothesis * heads + head
    tl.store(maxima + out, largest, mask=is_row)
    tl.store(totals + out, total, mask=is_row)
    if transposes:
        context = tl.trans(context)
    context /= tl.where(total == 0.0, 1.0, total)[:, None]
    context_place = contexts + out[:, None] * width + number[None, :]
    tl.store(context_place, context.to(contexts.dtype.element_ty), mask=is_row[:, None] & is_number[None, :])


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
