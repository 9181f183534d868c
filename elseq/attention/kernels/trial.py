"""The trial of a kernel for GPUs: a process uses it only where it has been right, and faster than PyTorch."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Largest error, in parts of the largest expected number. Other types are compared exactly.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
RUNS = 10  # timed together, so that the resolution of CUDA's events does not matter
ROUNDS = 3  # of which the fastest counts
HEAD_START = 2_000_000  # cycles that the GPU waits, so that launching does not count: a CUDA graph does not launch

_verdicts: dict[tuple[str, torch.device], bool] = {}


class Trial(NamedTuple):
    """A small case. The first result of each function is compared, and the later calls are timed."""

    kernel: Callable[[], Tensor]
    plain: Callable[[], Tensor]  # the same by PyTorch
    expected: Tensor  # what both should return, computed in float64


def usable(name: str, device: torch.device, case: Callable[[], Trial]) -> bool:
    """Whether a kernel has proved itself on a device. The first call tries it; the others return the same verdict.

    A kernel that cannot run there, computes other numbers than expected or is not faster is not used, and one line in
    the log says why. While a CUDA graph is captured nothing can be tried: a kernel without a verdict is then not used,
    and a later call tries it.

    Args:
        name: of the kernel and of what it was compiled for, such as the type of its numbers.
        device: a GPU, with its index.
        case: makes the trial. It leaves PyTorch's generators of random numbers as they are, and may raise anything.
    """
    if (name, device) not in _verdicts:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return False
        reason = _objection(device, case)
        if reason is not None:
            logger.warning("%s: PyTorch computes it on %s, because %s", name, device, reason)
        _verdicts[name, device] = reason is None
    return _verdicts[name, device]


def current(device: torch.device) -> AbstractContextManager:
    """Makes it the current device, on which Triton launches."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def draw(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normally distributed numbers of this shape, the same in each call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def _objection(device: torch.device, case: Callable[[], Trial]) -> str | None:
    if find_spec("triton") is None:
        return "Triton is not installed"
    try:
        with torch.no_grad(), current(device):
            trial = case()
            error = _error(trial.kernel(), trial.expected)
            if error is not None:
                return error
            trial.plain()  # libraries set themselves up
            kernel, plain = _milliseconds(trial.kernel, trial.plain)
    except Exception as error:  # errors of Triton, its C compiler or the driver
        return f"the kernel cannot run there: {type(error).__name__}: {str(error).split(chr(10))[0]}"
    return None if kernel < plain else f"the kernel takes {kernel:.3f} ms, and PyTorch {plain:.3f} ms"


def _error(found: Tensor, expected: Tensor) -> str | None:
    if found.shape != expected.shape:
        return f"the kernel returns {list(found.shape)} instead of {list(expected.shape)}"
    largest = (found.double() - expected.double()).abs().max().item()
    allowed = TOLERANCES.get(found.dtype, 0.0) * expected.double().abs().max().item()
    if largest <= allowed:  # not so for NaN
        return None
    return f"the kernel errs by {largest:.2g}, and {allowed:.2g} is allowed"


def _milliseconds(*functions: Callable[[], Tensor]) -> list[float]:
    """On the GPU, of one run of each. They take turns, so that a change of the clock concerns all of them."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(ROUNDS):
        for function, own in zip(functions, times, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(HEAD_START)
            start.record()
            for _ in range(RUNS):
                function()
            end.record()
            end.synchronize()
            own.append(start.elapsed_time(end) / RUNS)
    return [min(own) for own in times]
