"""The largest log-probabilities, on a CPU with AVX2 or AVX-512 VNNI: log_softmax_top.cpp, by ctypes."""

import torch
from torch import Tensor

from elseq import native


def log_softmax_top(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest log-probabilities of each row, without the others.

    Args:
        logits: float32 [M, V], M rows of V logits.
        count: how many, from 1 to V; a hundred or so at most, as they are sorted by insertion.

    Returns:
        float32 [M, count], in descending order, NaN where `torch.log_softmax` is: each is the first one and the
        difference of the logits. int64 [M, count], their tokens, of equal ones the first first.

    Raises:
        ValueError: another type, shape, device or count.
        RuntimeError: there is no library.
    """
    rows, width = logits.shape
    if not 1 <= count <= width:
        raise ValueError(f"count is between 1 and {width}, not {count}")
    values, indices = (logits.new_empty(rows, count, dtype=dtype) for dtype in (torch.float32, torch.int64))
    logits = logits.contiguous()
    native.loaded().elseq_log_softmax_top(
        native.address("logits", logits, torch.float32, rows, width),
        values.data_ptr(),
        indices.data_ptr(),
        rows,
        width,
        count,
        torch.get_num_threads(),
    )
    return values, indices
