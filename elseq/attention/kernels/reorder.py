"""Reordering the hypotheses of each sentence within the memory that holds them."""

import torch
from torch import Tensor

from elseq.gpu import on_device
from elseq.kernel_trials import Trial, draw, usable


def reorder_in_place(buffer: Tensor, order: Tensor, beam: int, taken: Tensor) -> None:
    """Hypothesis n continues hypothesis order[n] of the same sentence.

    Args:
        buffer: [N, G, C, W] or [N, C, W], contiguous: N hypotheses, those of a sentence adjacent; C positions.
        order: int64 [N].
        beam: hypotheses of each sentence; divides N.
        taken: int64 [1], the number of used positions. The content of the others is undefined afterwards.
    """
    if has_kernel(buffer):
        from elseq.attention.kernels.reorder_triton import launch  # cannot be imported without Triton

        with on_device(buffer.device):
            launch(buffer, order, beam, taken)
    else:
        _reorder(buffer, order)


def has_kernel(buffer: Tensor) -> bool:
    """Whether a kernel reorders this buffer. It has then proved itself on the buffer's GPU."""
    device, dtype = buffer.device, buffer.dtype
    return buffer.is_cuda and usable("reordering", device, lambda: _trial(device, dtype), (dtype,))


def _reorder(buffer: Tensor, order: Tensor) -> None:
    buffer.copy_(buffer.index_select(0, order))


def _trial(device: torch.device, dtype: torch.dtype) -> Trial:
    from elseq.attention.kernels.reorder_triton import launch

    sentences, beam, room = 8, 4, 64
    taken = torch.full((1,), room // 2, device=device)
    kernels, plain = (draw(sentences * beam, 16, room, 64, device=device, dtype=dtype) for _ in range(2))
    order = (torch.arange(0, sentences * beam, beam).unsqueeze(1) + torch.tensor([1, 0, 3, 3])).flatten().to(device)

    def by_kernel():
        launch(kernels, order, beam, taken)
        return kernels[:, :, : room // 2]

    def by_torch():
        _reorder(plain, order)
        return plain[:, :, : room // 2]

    return Trial(by_kernel, by_torch, plain[order][:, :, : room // 2])
