"""The memory that the C library holds unused. It grows to the most that was needed at a time, and would stay so."""

import ctypes
import sys

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
