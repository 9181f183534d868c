"""The kernel of `reorder_in_place`. It needs no second buffer and moves only used positions."""

import triton
import triton.language as tl
from torch import Tensor

TILE = 8192  # numbers per program, of all hypotheses of a sentence: they must fit into registers


def launch(buffer: Tensor, order: Tensor, beam: int, taken: Tensor) -> None:
    """See `reorder_in_place`."""
    hypotheses, room, width = buffer.size(0), buffer.size(-2), buffer.size(-1)
    runs = buffer.numel() // (hypotheses * room * width)  # stretches of positions that a hypothesis has
    rows = triton.next_power_of_2(beam)
    block = max(16, min(1024, TILE // rows))
    grid = triton.cdiv(room * width, block), hypotheses // beam, runs
    reorder[grid](buffer, order, taken, runs * room * width, room * width, width, beam, rows, block)


@triton.jit
def reorder(
    buffer, order, taken, hypothesis_stride, run_stride, width, beam, rows_of_block: tl.constexpr, block: tl.constexpr
):
    """Each program reads one piece of all hypotheses of a sentence, then writes it."""
    start = tl.program_id(0) * block
    sentence = tl.program_id(1).to(tl.int64)
    run = tl.program_id(2)
    end = tl.load(taken) * width
    if start < end:
        number = tl.arange(0, rows_of_block)
        is_hypothesis = number < beam
        target = sentence * beam + number
        source = tl.load(order + target, mask=is_hypothesis, other=0)
        moves = is_hypothesis & (source != target)
        if tl.sum(moves.to(tl.int32)) > 0:
            place = start + tl.arange(0, block)
            mask = moves[:, None] & (place < end)[None, :]
            run_start = buffer + run * run_stride + place[None, :]
            values = tl.load(run_start + source[:, None] * hypothesis_stride, mask=mask)
            tl.debug_barrier()  # a thread must not write what another has yet to read
            tl.store(run_start + target[:, None] * hypothesis_stride, values, mask=mask)
