"""Work that is done again and again, captured as a CUDA graph."""

import gc
import logging
from collections.abc import Callable
from functools import cache
from typing import NamedTuple
from weakref import WeakSet

import torch

from elseq.gpu import free_bytes, unreserved_bytes
from elseq.heap import available_bytes
from elseq.kernel_trials import allocated

logger = logging.getLogger(__name__)


class CapturedWork:
    """Runs the same work again and again: at first as it is, from the second time on as a CUDA graph if that can be.

    The first run lets libraries set themselves up, which cannot be captured, and tells how much memory a run takes: a
    captured graph has memory of its own, and PyTorch does not always survive that it runs out meanwhile.
    """

    is_possible = True  # in this process, on a GPU: PyTorch before 2.12 does not recover from a capture that failed
    captures = 0  # in this process so far
    obstacle: str | None = None  # why work was not captured, the last time

    def __init__(self, device: torch.device):
        self._device = device
        self._bytes = 0  # that a run allocates in all: more than it needs at any time; 0: not known yet
        self._graph: torch.cuda.CUDAGraph | None = None
        self._is_tried = device.type != "cuda"

    @property
    def is_captured(self) -> bool:
        return self._graph is not None

    @property
    def has_failed(self) -> bool:
        """Whether it is never captured."""
        return self._graph is None and self._is_tried

    def __call__(self, work: Callable[[], None]) -> None:
        """
        Args:
            work: always the same. It reads and writes tensors that stay where they are. (It is not kept: it may hold on
                to what has this.)
        """
        if self._graph is not None:
            self._graph.replay()
        elif self._is_tried or not CapturedWork.is_possible:
            work()
        elif not self._bytes:
            before = allocated(self._device)
            work()
            self._bytes = allocated(self._device) - before
        else:
            self._is_tried = True
            if has_memory(self._device, self._bytes):
                self._graph = capture(work, self._device)
            else:
                _warn("the free memory is too small to capture them as CUDA graphs")
            self(work)


def capture(work: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph | None:
    """The work as a graph, which has not run yet; None, and a warning, where it cannot be captured."""
    try:
        with torch.cuda.device(device):
            shared = _shared_by(device)
            graph = _capture(work, shared.pool, shared.stream)
    except RuntimeError as error:
        reason = str(error.__context__ or error).splitlines()[0]
        _warn(f"they cannot be captured as CUDA graphs: {reason}")
        CapturedWork.is_possible = False
        return None
    CapturedWork.captures += 1
    return graph


def _warn(reason: str) -> None:
    CapturedWork.obstacle = reason
    _log(reason)


@cache
def _log(reason: str) -> None:
    """Once for each reason, not once for each capture."""
    logger.warning("decoding steps are slower, because %s", reason)


def _capture(work: Callable[[], None], pool, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            work()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph


class _Shared(NamedTuple):
    """What the graphs captured on a device have in common, so that each takes the memory of those before."""

    pool: tuple
    stream: torch.cuda.Stream  # the allocator gives memory again only to the stream that had it
    anchor: torch.cuda.CUDAGraph  # a graph that does nothing: the pool lasts as long as one that uses it


_shared: dict[torch.device, _Shared] = {}


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Always the same: cuBLAS keeps its workspace for each stream."""
    return torch.cuda.Stream(device)


def _shared_by(device: torch.device) -> _Shared:
    if device not in _shared:
        pool, stream, number = torch.cuda.graph_pool_handle(), _stream(device), torch.zeros(1, device=device)
        _shared[device] = _Shared(pool, stream, _capture(lambda: number.zero_(), pool, stream))
    return _shared[device]


# What holds graphs between batches, and what they read: each has `release` and `size_bytes`.
holders: WeakSet = WeakSet()


def held_bytes() -> int:
    """Bytes that are held between batches and that `release_memory` gives back."""
    return sum(holder.size_bytes() for holder in list(holders))


def free_memory_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on a device."""
    if device.type == "cuda":
        return free_bytes(device) + held_bytes()
    return available_bytes()


def release_memory() -> None:
    """Give back all that is held between batches, and the memory that captured graphs share, once there are none."""
    for holder in list(holders):
        holder.release()
    _shared.clear()


def release_all() -> None:
    """The same after memory ran out, and what else PyTorch holds unused."""
    gc.collect()
    release_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def has_memory(device: torch.device, size: int) -> bool:
    """Whether a GPU has so many bytes, if need be when the allocator has given back what it holds unused."""
    if device.type != "cuda":
        return True
    if unreserved_bytes(device) < size <= free_bytes(device):
        torch.cuda.empty_cache()
    return unreserved_bytes(device) >= size
