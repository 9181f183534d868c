"""The library of elseq's kernels in C++, called by ctypes. Set-up compiles it where it can."""

import ctypes
import logging
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

logger = logging.getLogger(__name__)

_POINTER, _SIZE, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
INTERFACE = 10  # as in kernels.cpp; a library of another number was compiled from other sources
MISSING = "elseq's kernels were not compiled from these sources, or this processor has neither AVX2 nor AVX-512 VNNI"
# Sets of instructions that the library is compiled for, each in a file of its own. The fastest comes first.
INSTRUCTIONS = ("avx512", "avx_vnni", "avx2")
FUNCTIONS = {
    "elseq_quantize_rows": [_POINTER] * 3 + [_SIZE] * 2 + [_NUMBER],
    "elseq_columns": [_NUMBER],
    "elseq_lay_out": [_POINTER] * 3 + [_SIZE] * 2 + [_NUMBER],
    "elseq_linear_int8": [_POINTER] * 8 + [_SIZE] * 3 + [_NUMBER] * 2,
    "elseq_linear_float32": [_POINTER] * 5 + [_SIZE] * 3 + [_NUMBER] * 2,
    "elseq_log_softmax_top": [_POINTER] * 3 + [_SIZE] * 3 + [_NUMBER],
    "elseq_decode_step": [_POINTER] * 2 + [_SIZE] * 7 + [_POINTER] * 2 + [_NUMBER],
    "elseq_el_step": [_POINTER] + [_SIZE] * 2 + [_POINTER] * 8 + [_SIZE] * 6 + [_POINTER] * 2 + [_NUMBER] * 2,
    "elseq_layer_step": [_POINTER] * 2 + [_SIZE] + [_POINTER] * 4 + [_NUMBER],
    "elseq_layer_step_bytes": [_POINTER, _SIZE],
}


@cache
def library() -> ctypes.CDLL | None:
    """The library for the fastest instructions of the processor; None if there is none that it runs, which the log says
    once."""
    found = next(filter(None, map(library_for, INSTRUCTIONS)), None)
    if found is None:
        logger.info("%s: PyTorch's operations, which are slower, take their place", MISSING)
    return found


def library_for(instructions: str) -> ctypes.CDLL | None:
    """The library for these instructions; None if it was not compiled, or not from these sources, or if the processor
    lacks them."""
    try:
        found = ctypes.CDLL(str(Path(__file__).with_name(f"_native_{instructions}{EXTENSION_SUFFIXES[0]}")))
    except OSError:  # not compiled, or another OpenMP than torch's
        return None
    try:
        interface = found.elseq_available()
        functions = [(getattr(found, name), arguments) for name, arguments in FUNCTIONS.items()]
    except AttributeError:
        interface = None
    if interface == 0:
        return None
    if interface != INTERFACE:
        _tell_of_other_sources()
        return None
    for function, arguments in functions:
        function.argtypes, function.restype = arguments, None
    found.elseq_columns.restype = _NUMBER
    found.elseq_layer_step_bytes.restype = _SIZE
    return found


@cache
def _tell_of_other_sources() -> None:
    logger.warning("elseq's kernels were compiled from other sources and are not used: install elseq again")


def is_recorded() -> bool:
    """Whether a mode of torch records or counts operations. It does not see a kernel, and where torch has the same
    numbers it is asked instead. For products of int8 it has not."""
    return _get_current_dispatch_mode() is not None


def loaded() -> ctypes.CDLL:
    """The library.

    Raises:
        RuntimeError: there is none.
    """
    found = library()
    if found is None:
        raise RuntimeError(MISSING)
    return found


def address(name: str, tensor: Tensor, dtype: torch.dtype, *shape: int) -> int:
    """The address of a tensor's first number. The kernels rely on its shape, type and layout without checks.

    Raises:
        ValueError: the tensor is another.
    """
    is_stored_so = tensor.is_cpu and tensor.is_contiguous() and not tensor.is_neg()
    if tensor.shape != shape or tensor.dtype != dtype or not is_stored_so:
        raise ValueError(f"{name} is {dtype} {list(shape)}, contiguous, on the CPU")
    return tensor.data_ptr()
