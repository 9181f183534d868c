"""int8 on a CPU: weights with a scale for each output, inputs with a scale for each row.

A scale for each row, unlike one for the whole input, makes the output of a sentence independent of the sentences in
its batch. Sums are exact integers; softmax, norms and all that is not a linear layer stay float32.
"""

import weakref
from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elseq import native
from elseq.precision import kernels
from elseq.precision.linear import KernelProduct, Product

LARGEST = 127
SMALLEST = 1e-36  # a row without a larger magnitude is a row of zeros; its inverse would be infinite
# Rows that are quantized, multiplied and scaled before the next, so that they stay in the cache.
BLOCK = 128
PART = 1024  # inputs whose products have an exact sum in float32: 1024 * 127**2 < 2**24


def quantize_symmetric(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [M, K] of an input or a weight as int8 [M, K] and the scale of each, float32 [M, 1]; NaN for a row with NaN
    or infinity.

    The integers and scales are those of `kernels.quantize_rows`, which rounds the exact product with the inverse.
    """
    largest = x.abs().amax(dim=1, keepdim=True)
    is_zero, is_number = largest < SMALLEST, largest.isfinite()
    # torch evaluates number / tensor by a reciprocal, which rounds twice.
    inverse = (torch.full_like(largest, LARGEST) / largest).masked_fill_(is_zero | ~is_number, 0.0)
    quantized = (x.double() * inverse.double()).round_().nan_to_num_(nan=0.0).to(torch.int8)
    return quantized, (largest / LARGEST).masked_fill_(is_zero, 0.0).masked_fill_(~is_number, torch.nan)


class _QuantizedProduct(Product):
    def embeds(self, weight: Tensor) -> bool:
        return True  # of the quantized numbers, which are those of the projection

    def is_of(self, weight: Tensor) -> bool:
        return all(
            map(self._has_rows, torch.arange(len(weight), device=weight.device).split(BLOCK), weight.split(BLOCK))
        )

    def _has_rows(self, numbers: Tensor, weight: Tensor) -> bool:
        quantized, scale = quantize_symmetric(weight)
        return torch.allclose(self.embedding(numbers), quantized * scale, rtol=0, atol=0, equal_nan=True)


class Int8Product(_QuantizedProduct, KernelProduct):
    """By elseq's own kernels."""

    def __init__(self, linear: nn.Linear, inputs: "QuantizedInputs"):
        self._weight = kernels.PackedIntegers.of(linear.weight.detach())
        self._bias = None if linear.bias is None else linear.bias.detach().float().contiguous()
        self._inputs = inputs

    def multiply(self, x: Tensor, activation: str | None = None) -> Tensor:
        rows = self._inputs.quantize(x)
        output = kernels.linear_int8(rows, self._weight, self._bias, activation or "none")
        return output.view(*x.shape[:-1], output.size(-1))

    @classmethod
    def maker(cls) -> Callable[[nn.Linear], Product]:
        return partial(cls, inputs=QuantizedInputs())

    @classmethod
    def multiplying_bytes(cls, rows: int, inputs: int, outputs: int, itemsize: int, is_scattered: bool = False) -> int:
        copy = is_scattered * rows * inputs * itemsize
        return cls.input_bytes(rows, inputs, itemsize) + max(copy, cls.output_bytes(rows, outputs, itemsize))

    @staticmethod
    def input_bytes(rows: int, inputs: int, itemsize: int) -> int:
        return rows * (inputs + -inputs % kernels.GROUP + itemsize)


class QuantizedInputs:
    """Quantizes inputs of layers, once for layers with the same input: query, key and value projections."""

    def __init__(self):
        self._newest: tuple[weakref.ref, int, tuple[Tensor, Tensor]] | None = None

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        says_changes, newest = not x.is_inference(), self._newest  # which another thread may replace
        if says_changes and newest is not None:
            of, version, quantized = newest
            if of() is x and version == x._version:
                return quantized
        quantized = kernels.quantize_rows(x.reshape(-1, x.size(-1)))
        if says_changes:
            self._newest = weakref.ref(x, self._forget), x._version, quantized
        return quantized

    def _forget(self, reference: weakref.ref) -> None:
        newest = self._newest
        if newest is not None and newest[0] is reference:
            self._newest = None


class TorchProduct(_QuantizedProduct):
    """By torch's operations, in several passes."""

    def __init__(self, linear: nn.Linear):
        blocks = [quantize_symmetric(rows) for rows in linear.weight.detach().split(BLOCK)]
        self._weight, self._scale = map(torch.cat, zip(*blocks, strict=True))  # [N, K] and [N, 1]
        self._bias = linear.bias

    def multiply(self, x: Tensor, activation: str | None = None) -> Tensor:
        rows = x.reshape(-1, x.size(-1))
        output = x.new_empty(len(rows), len(self._weight))
        for start in range(0, len(rows), BLOCK):
            quantized, scale = quantize_symmetric(rows[start : start + BLOCK])
            block = output[start : start + BLOCK]
            block.copy_(integer_product(quantized, self._weight)).mul_(scale).mul_(self._scale.t())
            if self._bias is not None:
                block.add_(self._bias)
        return output.view(*x.shape[:-1], output.size(-1))

    def embedding(self, indices: Tensor) -> Tensor:
        return self._weight[indices] * self._scale[indices]

    @classmethod
    def multiplying_bytes(cls, rows: int, inputs: int, outputs: int, itemsize: int, is_scattered: bool = False) -> int:
        block = min(rows, BLOCK)
        quantizing = block * (inputs * (2 * torch.float64.itemsize + 1) + 32)  # with the integers of the block before
        # The integers and, where torch cannot multiply them, the numbers that stand for them.
        multiplying = block * (inputs + outputs * itemsize)
        if not _torch_multiplies_int8():
            part = min(inputs, PART)
            multiplying += (block * (outputs + part) + outputs * part) * itemsize
        return super().multiplying_bytes(rows, inputs, outputs, itemsize, is_scattered) + max(quantizing, multiplying)


def integer_product(rows: Tensor, weight: Tensor) -> Tensor:
    """int8 [M, K] times int8 [N, K] to [M, N], int32 or float32."""
    if _torch_multiplies_int8():
        return torch._int_mm(rows, weight.t())
    parts = zip(rows.split(PART, dim=1), weight.split(PART, dim=1), strict=True)
    return sum(F.linear(part.float(), columns.float()) for part, columns in parts)


@cache
def _torch_multiplies_int8() -> bool:
    """Whether torch has `_int_mm`, and it is exact for the largest numbers, which some processors saturate."""
    rows = torch.full((32, 64), -LARGEST, dtype=torch.int8)
    try:
        return bool((torch._int_mm(rows, rows.t()) == 64 * LARGEST**2).all())
    except (RuntimeError, AttributeError):
        return False


def fastest() -> type[Product]:
    """The products that are the fastest on this machine."""
    return TorchProduct if native.library() is None else Int8Product
