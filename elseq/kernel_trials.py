"""Trials of kernels for GPUs: a process uses one only if its trial found it right, and faster than what it replaces."""

import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

import elseq.gpu as gpu
from elseq.errors import UserError
from elseq.measurements import measured, plain_calls

logger = logging.getLogger(__name__)

# Largest error, in parts of the largest expected number. Other types are compared exactly.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
RUNS = 10  # timed together, so that the resolution of CUDA's events does not matter
ROUNDS = 3  # of which the fastest counts
OLDEST = 8, 0  # compute capability. On an older GPU Triton's compiler may end the process, as for bfloat16
SWITCH = "ELSEQ_GPU_KERNELS"  # environment variable: off, and no kernel is tried or used, and no graph kept

_allocated: dict[torch.device, int] = {}  # bytes by trials
_postponed: dict[tuple, int] = {}  # free bytes with which a trial ran out of memory


class Verdict(NamedTuple):
    """The result of the trial of a kernel, for one device and one set of sizes."""

    name: str
    sizes: tuple
    device: torch.device
    is_used: bool
    reason: str | None  # why it is not used
    kernel_ms: float | None  # milliseconds of one run; None: not timed
    plain_ms: float | None  # of what the kernel replaces


_verdicts: dict[tuple[str, torch.device, tuple], Verdict] = {}


Pair = tuple[Callable[[], Tensor], Callable[[], Tensor]]  # a kernel, and what it replaces


class Trial(NamedTuple):
    """A small case, in which the first result of the kernel is compared, and the case that is timed."""

    kernel: Callable[[], Tensor]
    plain: Callable[[], Tensor]  # the same by PyTorch, and unless `timed` has another, what the kernel replaces
    expected: Tensor  # what both should return, computed in float64
    timed: Callable[[], Pair] | None = None  # makes the pair that is timed. Default: kernel and plain
    timed_sizes: tuple = ()  # of that pair, if they differ from those of the verdict


def usable(name: str, device: torch.device, case: Callable[[], Trial], sizes: tuple = ()) -> bool:
    """Whether a kernel has proved itself on a device. The first call tries it; the others return the same verdict.

    A kernel that cannot run there, computes other numbers than expected or is not faster is not used, and the log says
    why: in a warning for the first sizes, and for others at the level debug. `verdicts` returns all. Every process
    compares the numbers, and the times are measured once on a machine: all processes use the same kernels. While a CUDA
    graph is captured, or when memory runs out, nothing can be tried: a kernel without a verdict is then not used, and a
    later call tries it; in the second case not before twice as much memory is free.

    Args:
        name: of the kernel.
        device: a GPU, with its index.
        case: makes the trial. It leaves PyTorch's generators of random numbers as they are, and may raise anything.
        sizes: for which the verdict holds, and the type of the numbers.

    Raises:
        UserError: the environment variable `SWITCH` has another value than on and off.
    """
    key = name, device, sizes
    if key not in _verdicts:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return False
        if key in _postponed and _free_bytes(device) < 2 * _postponed[key]:
            return False
        before, free = allocated(device), _free_bytes(device)
        try:
            verdict = _try(name, device, sizes, case)
        except torch.OutOfMemoryError:
            _postponed[key] = free
            return False
        finally:
            _allocated[device] = _allocated.get(device, 0) + allocated(device) - before
        _log(verdict)
        _verdicts[key] = verdict
    return _verdicts[key].is_used


def _free_bytes(device: torch.device) -> int:
    return gpu.free_bytes(device) if device.type == "cuda" else 0


def verdicts() -> list[Verdict]:
    """All trials of this process so far, in their order."""
    return list(_verdicts.values())


def allocated(device: torch.device) -> int:
    """Bytes that the process has allocated on a GPU so far, including freed ones, without those of trials."""
    if device.type != "cuda":
        return 0
    return torch.cuda.memory_stats(device)["allocated_bytes.all.allocated"] - _allocated.get(device, 0)


def draw(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normally distributed numbers of this shape, the same in each call."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def _try(name: str, device: torch.device, sizes: tuple, case: Callable[[], Trial]) -> Verdict:
    reason, kernel, plain = _obstacle(device), None, None
    try:
        if reason is None:
            with plain_calls(device), torch.no_grad(), gpu.on_device(device):
                trial = case()
                reason = error_of("the kernel", trial.kernel(), trial.expected)
                if reason is None:
                    kernel, plain = _milliseconds(name, device, sizes, trial)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # errors of Triton, its C compiler or the driver
        reason = f"the kernel cannot run there: {type(error).__name__}: {str(error).split(chr(10))[0]}"
    if reason is None and not kernel < plain:
        reason = f"the kernel takes {kernel:.3f} ms, and what it replaces {plain:.3f} ms"
    return Verdict(name, sizes, device, reason is None, reason, kernel, plain)


def is_switched_on() -> bool:
    """Whether what has not run on every GPU may be tried.

    Raises:
        UserError: the environment variable `SWITCH` has another value than on and off.
    """
    switch = os.environ.get(SWITCH, "on")
    if switch not in ("on", "off"):
        raise UserError(f"the environment variable {SWITCH} is {switch!r}; set it to on or off")
    return switch == "on"


def _obstacle(device: torch.device) -> str | None:
    """Why no kernel can be tried."""
    if not is_switched_on():
        return f"{SWITCH} is off"
    if find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cuda" and (capability := torch.cuda.get_device_capability(device)) < OLDEST:
        return "its compute capability is {}.{}, and kernels are for {}.{} and later".format(*capability, *OLDEST)
    return None


def _log(verdict: Verdict) -> None:
    """After the trial, before the verdict is kept."""
    name, sizes, device, is_used, reason, kernel, plain = verdict
    if is_used:
        found = "%s%s: the kernel is used on %s. It takes %.3f ms, and what it replaces %.3f ms"
        logger.debug(found, name, sizes or "", device, kernel, plain)
        return
    is_known = any(not each.is_used and (each.name, each.device) == (name, device) for each in _verdicts.values())
    level = logging.DEBUG if is_known else logging.WARNING
    logger.log(level, "%s%s: the kernel is not used on %s, because %s", name, sizes or "", device, reason)


def error_of(name: str, found: Tensor, expected: Tensor, slack: float = 1.0) -> str | None:
    """In which way something, such as a kernel, does not return what is expected; None: in no way.

    Args:
        name: what to call it.
        found: what it returned.
        expected: what it should return.
        slack: how many times the tolerance of the type is allowed, in parts of the largest finite number expected. What
            is no finite number must be the same.
    """
    if found.shape != expected.shape:
        return f"{name} returns {list(found.shape)} instead of {list(expected.shape)}"
    is_same = (found == expected) | (found.isnan() & expected.isnan())
    largest = (found.double() - expected.double()).abs().masked_fill(is_same, 0).max().item()
    finite = expected.double().nan_to_num(posinf=0, neginf=0)
    allowed = slack * TOLERANCES.get(found.dtype, 0.0) * finite.abs().max().item()
    if largest <= allowed:  # not so for NaN
        return None
    return f"{name} errs by {largest:.2g}, and {allowed:.2g} is allowed"


def _milliseconds(name: str, device: torch.device, sizes: tuple, trial: Trial) -> list[float]:
    """Of one run of the kernel, and of PyTorch."""
    timed = f"kernel {name} {tuple(trial.timed_sizes or sizes)}"
    return [1000 * each for each in measured(timed, device, lambda: _seconds(trial))]


def _seconds(trial: Trial) -> tuple[float, float]:
    """They take turns, so that a change of the clock concerns both."""
    pair = (trial.kernel, trial.plain) if trial.timed is None else trial.timed()
    for function in pair:
        function()  # compiles for these sizes, and libraries set themselves up
    times = [[gpu.seconds(function, RUNS) for function in pair] for _ in range(ROUNDS)]
    kernel, plain = map(min, zip(*times, strict=True))
    return kernel, plain
