"""What passes between the host and the device while a search runs.

To read a tensor of a GPU, the host waits until the GPU has done all that it was told. Meanwhile it tells the GPU
nothing, which is then idle until the next step begins.
"""

import torch
from torch import Tensor


def is_free(device: torch.device) -> bool:
    """Whether the host reads tensors on the device without waiting."""
    return device.type == "cpu"


def to_device(numbers: list, device: torch.device) -> Tensor:
    """int64, on the device, for which the host does not wait."""
    return torch.tensor(numbers, dtype=torch.long).to(device, non_blocking=True)


class Places:
    """Where a tensor is true. The host is told when it asks, and waits only for what was to be done before."""

    def __init__(self, marks: Tensor):
        """
        Args:
            marks: bool. They are copied to the host, while the device goes on.
        """
        self._marks = marks.to("cpu", non_blocking=marks.is_cuda)  # of other devices nothing tells when
        self._copied: torch.cuda.Event | None = None
        if marks.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(marks.device))

    def tolist(self) -> list[list[int]]:
        """The indices of each."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._marks.nonzero().tolist()
