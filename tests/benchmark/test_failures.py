"""What is told of a run that failed."""

import pytest
import torch

from elseq.benchmark.failures import describe_failure, ends_device
from elseq.errors import UserError


class AcceleratorError(RuntimeError):
    """By the name of torch's own, which is not in every torch."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UserError("--beam 9 is more than 8"), "--beam 9 is more than 8"),
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
        (SystemError("returned NULL without setting an exception"), "out of memory"),
        (ValueError("\nno such search\nin line 5"), "ValueError: no such search"),
        (ValueError(), "ValueError: "),
    ],
)
def test_one_sentence(error, told):
    assert describe_failure(error) == told


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("Triton Error [CUDA]: device-side assert triggered"), True),
        (AcceleratorError("unspecified launch failure"), True),
        (torch.OutOfMemoryError("CUDA error: out of memory"), False),
        (ValueError("no such search"), False),
    ],
)
def test_errors_after_which_a_gpu_cannot_be_used(error, ends):
    assert ends_device(error) is ends
