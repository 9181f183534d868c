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
        buffer: [N, G, C, W] or [N, C, W], contiguous: N hypotheses, those of a sentence adjacent; C positions.
        order: int64 [N].
        beam: hypotheses of each sentence; divides N.
        taken: int64 [1], the number of used positions. The content of the others is undefined afterwards.
    """
    launch = _kernel(buffer.device) if buffer.is_cuda else None
    if launch is None:
        buffer.copy_(buffer.index_select(0, order))
    else:
        with torch.cuda.device(buffer.device):  # Triton launches on the current one
            launch(buffer, order, beam, taken)


@cache
def _kernel(device: torch.device):
    """The function that launches the kernel, after a trial on the device; None if the kernel cannot run there."""
    if find_spec("triton") is None:
        return None
    from elseq.attention.kernels.reorder_triton import launch  # cannot be imported without Triton

    try:
        with torch.cuda.device(device):
            two = torch.arange(2, device=device)
            launch(torch.zeros(2, 1, 1, device=device), two, 2, two[:1])
    except Exception as error:  # errors of Triton, its C compiler or the driver
        logger.warning(
            "Triton cannot compile for this GPU, so PyTorch reorders hypotheses: %s", str(error).split("\n")[0]
        )
        return None
    return launch
