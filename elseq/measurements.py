"""Times that are measured once on a machine and kept in a file, so that later processes make the same choices."""

import contextlib
import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch.utils._python_dispatch import _disable_current_modes

from elseq.errors import UserError
from elseq.files import cache_folder, written_whole

PACKAGE = Path(__file__).parent
# The code whose time is measured: attention, products and kernels, block sizes included, and the compiled libraries.
TIMED = (
    "attention/**/*.py",
    "precision/**/*.py",
    "generation/kernels/*.py",
    "kernel_trials.py",
    "generation/attention_cost.py",
    "generation/cuda_graphs.py",
    "_native_*",
)


def measured(name: str, device: torch.device, measure: Callable[[], tuple[float, ...]], count: int = 2) -> list[float]:
    """Times with a name, in seconds: those in the file, otherwise measured and added to it.

    Args:
        name: names the measurement, with all sizes on which the times depend.
        device: where it runs. Another device, number of threads, torch, Triton or timed code has its own times.
        measure: returns the times. It is called only if the file does not have them.
        count: how many they are.
    """
    name = f"{name}, {_machine(device)}"
    known = _read()
    if len(known.get(name, [])) != count:
        with plain_calls(device):
            found = list(measure())
        known = _read()
        if len(known.get(name, [])) != count:  # another process may have been faster
            _write(known | {name: found})
            return found
    return known[name]


@contextlib.contextmanager
def plain_calls(device: torch.device) -> Iterator[None]:
    """What is computed inside does not depend on the caller's autocast or on modes that record it: others rely on it,
    too."""
    with _disable_current_modes(), torch.autocast(device.type, enabled=False):
        yield


def power_of_two(number: int) -> int:
    """The least power of two that is not smaller. A trial or a measurement is valid for all sizes up to it."""
    return 1 << max(0, number - 1).bit_length()


def seconds_on_cpu(call: Callable[[], object]) -> float:
    """Time of a call; `gpu.seconds` is the same on a GPU."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        found = torch.cuda.get_device_name(device)
    else:
        found = f"{_processor()}, {torch.get_num_threads()} threads"
    return f"{found}, torch {torch.__version__}, {_timed_code()}"


@cache
def _timed_code() -> str:
    """Triton's version, and a digest of `TIMED`: after a kernel is tuned its old times say nothing."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = None
    digest = hashlib.sha256()
    for path in sorted({path for pattern in TIMED for path in PACKAGE.glob(pattern)}):
        digest.update(path.read_bytes())
    return f"Triton {triton}, elseq {digest.hexdigest()[:16]}"


@cache
def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:
        return next(line for line in file if line.startswith("model name")).partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cache_file() -> Path:
    """The file of the measurements. It may be removed at any time."""
    return cache_folder() / "measurements.json"


def _read() -> dict[str, list[float]]:
    """The times in the file; none if it is missing or damaged."""
    try:
        found = json.loads(cache_file().read_text())
        return {name: [float(each) for each in seconds] for name, seconds in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, UserError):
        return {}


def _write(known: dict[str, list[float]]) -> None:
    with contextlib.suppress(OSError, UserError):  # then it is measured again by the next process
        cache_file().parent.mkdir(parents=True, exist_ok=True)
        with written_whole(cache_file()) as file:
            json.dump(known, file, indent=1)
