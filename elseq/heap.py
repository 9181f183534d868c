"""The host's memory: how much there is, and what the C library holds unused, which would stay as much as was needed."""

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_MOST_DROPPED = 2**24  # bytes after which memory is given back
_dropped = 0  # bytes since memory was given back


def give_back_memory() -> None:
    """Give the system the memory that the C library holds unused, where it can."""
    global _dropped
    _dropped = 0
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
        if trim is not None:
            trim(0)


def count_dropped(size: int) -> None:
    """Give back memory now and then, while tensors are dropped: their places may not fit what is needed next.

    Args:
        size: bytes of the tensor that was dropped.
    """
    global _dropped
    _dropped += size
    if _dropped > _MOST_DROPPED:
        give_back_memory()


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that the process can still allocate: what the machine has left, or less by the limits of its container.

    Args:
        root: the folder of proc and sys.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        machine = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return max(0, min([machine, *_left_by_limits(root)]))


def _left_by_limits(root: Path) -> Iterator[int]:
    """Bytes that each limit of Linux's control groups leaves, of both versions."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounted, limit, used, unused_files = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            mounted, limit, used = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            unused_files = "total_inactive_file"
        else:
            continue
        group = Path(path.lstrip("/"))  # inside of a container it may be the host's path, which is not there
        for folder in dict.fromkeys(root / mounted / part for part in (group, *group.parents)):
            try:
                most, use = int((folder / limit).read_text()), int((folder / used).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # there is no such group, or no limit
                continue
            yield most - use + int(stat.get(unused_files, 0))
