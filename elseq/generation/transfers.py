"""What passes between the host and the device while a search runs.

To read a tensor of a GPU, the host waits until the GPU has done all that it was told. Meanwhile it tells the GPU
nothing, which is then idle until the next step begins.
"""

import torch
from torch import Tensor


def is_asynchronous(device: torch.device) -> bool:
    """Whether the host has to wait for the device to read its tensors."""
    return device.type != "cpu"


def to_device(numbers: list, device: torch.device) -> Tensor:
    """int64, on the device, for which the host does not wait."""
    return torch.tensor(numbers, dtype=torch.long).to(device, non_blocking=True)


class HostCopy:
    """Copies of tensors for the host. It waits for them when it asks, and only for what was to be done before."""

    def __init__(self, **tensors: Tensor):
        """
        Args:
            tensors: of one device, by names. They are copied to the host, while the device goes on.
        """
        # Of other devices than GPUs nothing tells when.
        self._copies = {name: tensor.to("cpu", non_blocking=tensor.is_cuda) for name, tensor in tensors.items()}
        self._copied: torch.cuda.Event | None = None
        device = next(iter(tensors.values())).device
        if device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(device))

    def tensors(self) -> dict[str, Tensor]:
        """The copies, by their names."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._copies
