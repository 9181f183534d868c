"""Reordering the hypotheses of each sentence within the memory that holds them."""

import logging
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def reorder_in_place(buffer: Tensor, order: Tensor, beam: int, taken: Tensor) -> None:
    """Hypothesis n continues hypothesis order[n] of the same sentence.

    Args:
        buffer: [N, G, C, W] or [N, C, W], contiguous: N hypotheses, those of a sentence together, C positions of room.
        order: int64 [N].
        beam: hypotheses of each sentence; divides N.
        taken: int64 [1]: how many positions are in use. What the others hold afterwards is not said.
    """
    launch = _kernel(buffer.device) if buffer.is_cuda else None
    if launch is None:
        buffer.copy_(buffer.index_select(0, order))
    else:
        with torch.cuda.device(buffer.device):  # Triton launches on the current one
            launch(buffer, order, beam, taken)


@cache
def _kernel(device: torch.device):
    """What launches the kernel, once it has run on the device; None where it cannot."""
    if find_spec("triton") is None:
        return None
    from elseq.attention.kernels.reorder_triton import launch  # cannot be imported without Triton

    try:
        with torch.cuda.device(device):
            two = torch.arange(2, device=device)
            launch(torch.zeros(2, 1, 1, device=device), two, 2, two[:1])
    except Exception as error:  # of Triton, of the C compiler that it calls, of the driver
        logger.warning(
            "Triton cannot compile for this GPU, so PyTorch reorders hypotheses: %s", str(error).split("\n")[0]
        )
        return None
    return launch
