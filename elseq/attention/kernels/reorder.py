"""Reordering the hypotheses of each sentence within the memory that holds them."""

from functools import cache
from importlib.util import find_spec

from torch import Tensor


def reorder_in_place(buffer: Tensor, order: Tensor, beam: int, taken: Tensor) -> None:
    """Hypothesis n continues hypothesis order[n] of the same sentence.

    Args:
        buffer: [N, G, C, W] or [N, C, W], contiguous: N hypotheses, those of a sentence together, C positions of room.
        order: int64 [N].
        beam: hypotheses of each sentence; divides N.
        taken: int64 [1]: how many positions are in use. What the others hold afterwards is not said.
    """
    if buffer.is_cuda and has_triton():
        from elseq.attention.kernels.reorder_triton import launch  # cannot be imported without Triton

        launch(buffer, order, beam, taken)
    else:
        buffer.copy_(buffer.index_select(0, order))


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None
