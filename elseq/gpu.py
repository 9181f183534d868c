"""A GPU's clock, its free memory, which one is current, and what differs from a CPU."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

# Cycles that the GPU waits while the host launches the timed work: about 1 ms at first, and at most some 60 ms.
HEAD_STARTS = [2_000_000 * 4**power for power in range(4)]


def device_kind(device: torch.device | str) -> str:
    """cpu or other: the key of numbers that differ between a CPU and other devices."""
    return "cpu" if torch.device(device).type == "cpu" else "other"


def on_device(device: torch.device) -> AbstractContextManager:
    """Makes a GPU the current device, on which Triton launches and events are recorded."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def seconds(call: Callable[[], object], runs: int = 1) -> float:
    """Time of one run on the current GPU, by the GPU's own clock, as in a CUDA graph: launching does not count.

    The GPU waits until the host has launched all runs. If it began earlier, the call is timed again after a longer
    wait. If the host waits for the call itself, its launches are part of the time.

    Args:
        call: what is timed.
        runs: timed together; their mean is returned.
    """
    for head_start in HEAD_STARTS:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(head_start)
        start.record()
        for _ in range(runs):
            call()
        end.record()
        has_begun = start.query()
        end.synchronize()
        if not has_begun:
            break
    return start.elapsed_time(end) / 1000 / runs


def free_bytes(device: torch.device) -> int:
    """Bytes that the process can still allocate on a GPU."""
    return unreserved_bytes(device) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def unreserved_bytes(device: torch.device) -> int:
    """Free bytes of a GPU that PyTorch's allocator has not reserved."""
    free, total = torch.cuda.mem_get_info(device)
    share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)  # not in every torch
    index = torch.cuda.current_device() if device.index is None else device.index
    return min(free, int(share(index) * total) - torch.cuda.memory_reserved(device))
