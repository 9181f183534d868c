"""float32 and bfloat16 on a CPU: weights in the layout of oneDNN's products."""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elseq.precision.kernels import rows_of_tiles
from elseq.precision.linear import Product, scratchpad_bytes

# Weights are laid out for this number of rows. The layout is good for other numbers of rows except one.
ROWS = 32
PANEL = 64  # rows of a weight between which oneDNN puts the numbers of one input together: [N / 64, K, 64]


class OneDNNProduct(Product):
    """Evaluates a layer by operations that torch's compiler calls, too."""

    activations = ("gelu",)  # oneDNN's relu maps NaN to 0

    def __init__(self, linear: nn.Linear):
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        self._bias = linear.bias
        self._outputs = linear.out_features

    def multiply(self, x: Tensor, activation: str | None = None) -> Tensor:
        rows = x.reshape(-1, x.size(-1))
        count = len(rows)
        if rounded(count) > count:
            rows = F.pad(rows, (0, 0, 0, rounded(count) - count))
        operation = torch.ops.mkldnn._linear_pointwise
        output = operation(rows, self._weight, self._bias, activation or "none", [], "none")
        return output[:count].view(*x.shape[:-1], output.size(-1))

    def weight(self) -> Tensor:
        return self._weight.to_dense()

    def embeds(self, weight: Tensor) -> bool:
        """Tried on every number: the layout is oneDNN's affair."""
        count, width = weight.shape
        panels = -(-count // PANEL)
        try:
            if torch.ops.mkldnn._nbytes(self._weight) != panels * PANEL * width * weight.element_size():
                return False
            address = torch.ops.mkldnn.data_ptr(self._weight)
        except (AttributeError, RuntimeError):  # another torch
            return False
        numbers = (ctypes.c_char * (panels * PANEL * width * weight.element_size())).from_address(address)
        self._panels = torch.frombuffer(numbers, dtype=weight.dtype).view(panels, width, PANEL)
        pairs = zip(self._panels.split(PANEL), weight.split(PANEL * PANEL), strict=True)
        return all(part.transpose(1, 2).flatten(0, 1)[: len(rows)].equal(rows) for part, rows in pairs)

    def embedding(self, indices: Tensor) -> Tensor:
        return rows_of_tiles(self._panels, self._outputs, indices)

    @staticmethod
    def output_bytes(rows: int, outputs: int, itemsize: int) -> int:
        return rounded(rows) * outputs * itemsize

    @classmethod
    def multiplying_bytes(cls, rows: int, inputs: int, outputs: int, itemsize: int, is_scattered: bool = False) -> int:
        copy = is_scattered * rows * inputs * itemsize
        padded = rounded(rows) * inputs * itemsize if rounded(rows) > rows else 0
        output = cls.output_bytes(rows, outputs, itemsize) + scratchpad_bytes(rounded(rows), outputs, itemsize)
        return max(copy + padded, (padded or copy) + output)


def rounded(rows: int) -> int:
    """The number of rows that are multiplied for this number of rows.

    There are few such numbers, because oneDNN compiles a product for each, which takes longer than the product, and
    keeps half a megabyte of it.
    """
    bits = max(0, rows - 1).bit_length()
    step = 1 << max(min(bits, 4), bits - 4)
    return -(-rows // step) * step
