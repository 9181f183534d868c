"""The kernels of `best_tokens`. Each program reads a part of a row, and keeps it in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # tokens of a part; not yet tuned on a GPU


def launch_log_sums(logits: Tensor) -> Tensor:
    """Logarithm of the sum of the exponentials of each part, float32 [N, P], of logits [N, V]."""
    rows, width = logits.shape
    parts = triton.cdiv(width, BLOCK)
    sums = logits.new_empty(rows, parts, dtype=torch.float32)
    log_sums[rows, parts](logits, sums, logits.stride(0), width, parts, BLOCK)
    return sums


def launch_best(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest logits of each part, float32 [N, P * count], and their tokens, int64; NaN counts as -inf."""
    rows, width = logits.shape
    parts = triton.cdiv(width, BLOCK)
    values = logits.new_empty(rows, parts * count, dtype=torch.float32)
    tokens = logits.new_empty(rows, parts * count, dtype=torch.long)
    best[rows, parts](logits, values, tokens, logits.stride(0), width, parts, count, BLOCK)
    return values, tokens


@triton.jit
def read_part(logits, row_stride, width, block: tl.constexpr):
    place = tl.program_id(1) * block + tl.arange(0, block)
    start = logits + tl.program_id(0).to(tl.int64) * row_stride
    return tl.load(start + place, mask=place < width, other=-float("inf")).to(tl.float32)


@triton.jit
def log_sums(logits, sums, row_stride, width, parts, block: tl.constexpr):
    numbers = read_part(logits, row_stride, width, block)
    largest = tl.max(numbers, axis=0)
    largest = tl.where(largest == -float("inf"), 0.0, largest)  # inf - inf is no number
    total = tl.sum(tl.exp(numbers - largest), axis=0)
    tl.store(sums + tl.program_id(0) * parts + tl.program_id(1), tl.log(total) + largest)


@triton.jit
def best(logits, values, tokens, row_stride, width, parts, count, block: tl.constexpr):
    numbers = read_part(logits, row_stride, width, block)
    numbers = tl.where(numbers == numbers, numbers, -float("inf"))
    place = tl.arange(0, block)
    first = (tl.program_id(0).to(tl.int64) * parts + tl.program_id(1)) * count
    for number in range(count):
        value, index = tl.max(numbers, axis=0, return_indices=True)
        tl.store(values + first + number, value)
        tl.store(tokens + first + number, (tl.program_id(1) * block + index).to(tl.int64))
        numbers = tl.where(place == index, -float("inf"), numbers)
