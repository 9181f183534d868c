"""Linear layers in int8 and float32 on a CPU with AVX2 or AVX-512 VNNI: kernels.cpp, by ctypes.

In int8 a weight is an int8 and a scale for each of its rows. An input is a uint8 with zero point 128 and a scale for
each of its rows, found when the layer runs. Sums are integers and exact. In float32 the products of an output are added
up one after the other, in parts. In both a row's result depends neither on other rows nor on the number of threads.
There are no gradients.
"""

import contextlib
import ctypes
import math
import mmap
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from elseq import native

ACTIVATIONS = ("none", "relu", "gelu")  # numbered as in kernels.cpp
GROUP = 4  # inputs that are added up together
BLOCK = 256  # rows of a weight that are quantized together: a multiple of the outputs of a tile
OWN_PAGES = 2**18  # bytes from which a weight has pages of its own, see `_pages`
MAX_INPUTS = (1 << 31) // (127 * 128)  # the sum of their products is an int32


class Linear(ctypes.Structure):
    """A linear layer as layer_step.cpp reads it. Its tensors must live as long."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("tiles", "offset", "scale", "bias")),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs")),
    ]


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds each row to multiples of its largest magnitude / 127.

    Args:
        x: float32 [M, K], M rows.

    Returns:
        uint8 [M, K rounded up to a multiple of 4], with zero point 128, and the scales, float32 [M]: 0 for a row whose
        numbers are all below 1e-36, NaN for one with a NaN or an infinity.

    Raises:
        ValueError: another type, shape or device.
        RuntimeError: there is no library.
    """
    rows, width = x.shape
    x = x.contiguous()
    quantized = x.new_empty(rows, width + -width % GROUP, dtype=torch.uint8)
    scale = x.new_empty(rows, dtype=torch.float32)
    native.loaded().elseq_quantize_rows(
        native.address("x", x, torch.float32, rows, width),
        quantized.data_ptr(),
        scale.data_ptr(),
        rows,
        width,
        torch.get_num_threads(),
    )
    return quantized, scale


@dataclass(frozen=True)
class PackedIntegers:
    """A weight [N, K] of N outputs and K inputs in int8, in the order in which the kernel reads it."""

    tiles: Tensor  # int8 [N / C, K / 4, C, 4] for tiles of C outputs, rounded up and filled with zeros
    offset: Tensor  # int32 [N]: -128 times the sum over K, for the zero point of the input; rounded up as well
    scale: Tensor  # float32 [N]
    inputs: int

    @classmethod
    def of(cls, weight: Tensor) -> "PackedIntegers":
        """Quantizes a weight as `quantize_rows` does.

        Raises:
            ValueError: not float32 [N, K] on the CPU, or K above 132,104.
            RuntimeError: there is no library.
        """
        weight = _checked(weight)
        outputs, inputs = weight.shape
        if inputs > MAX_INPUTS:
            raise ValueError(f"a weight has at most {MAX_INPUTS} inputs, not {inputs}")
        columns = native.loaded().elseq_columns(True)
        tiles = _pages(-(-outputs // columns), -(-inputs // GROUP), columns, GROUP, dtype=torch.int8)
        offset = torch.zeros(len(tiles) * columns, dtype=torch.int32)
        scale = torch.empty(outputs, dtype=torch.float32)
        for start in range(0, outputs, BLOCK):  # of a whole table, what is quantized would be large beside the tiles
            block = slice(start, start + BLOCK)
            rows, scale[block] = quantize_rows(weight[block])
            _lay_out(rows, tiles[start // columns :], offset[block])
        return cls(tiles, offset, scale, inputs)

    @property
    def outputs(self) -> int:
        return len(self.scale)

    def for_kernel(self, bias: Tensor | None) -> Linear:
        """The layer that has this weight; bias: float32 [N]."""
        addresses = (each.data_ptr() for each in (self.tiles, self.offset, self.scale))
        return Linear(*addresses, _address_of_bias(bias, self.outputs), self.inputs, self.outputs)

    def rows(self, indices: Tensor) -> Tensor:
        """Rows of the quantized weight, int64 [...] to float32 [..., K].

        Raises:
            IndexError: an index below 0 or not below N.
        """
        groups = self.tiles.view(torch.int32).squeeze(-1)  # [N / C, K / 4, C]
        flat = indices.flatten()
        rows = rows_of_tiles(groups, self.outputs, flat).view(torch.int8)[:, : self.inputs]
        return (rows * self.scale[flat].unsqueeze(1)).view(*indices.shape, self.inputs)


@dataclass(frozen=True)
class PackedFloats:
    """A float32 weight [N, K] of N outputs and K inputs, in the order in which the kernel reads it."""

    tiles: Tensor  # float32 [N / C, K, C] for tiles of C outputs, rounded up and filled with zeros
    outputs: int

    @classmethod
    def of(cls, weight: Tensor) -> "PackedFloats":
        """
        Raises:
            ValueError: not float32 [N, K] on the CPU.
            RuntimeError: there is no library.
        """
        weight = _checked(weight)
        outputs, inputs = weight.shape
        columns = native.loaded().elseq_columns(False)
        tiles = _pages(-(-outputs // columns), inputs, columns, dtype=torch.float32)
        _lay_out(weight.contiguous(), tiles)
        return cls(tiles, outputs)

    def for_kernel(self, bias: Tensor | None) -> Linear:
        """The layer that has this weight; bias: float32 [N]."""
        address = _address_of_bias(bias, self.outputs)
        return Linear(self.tiles.data_ptr(), None, None, address, self.tiles.size(1), self.outputs)

    def weight(self) -> Tensor:
        """The weight [N, K], exactly."""
        count, inputs, columns = self.tiles.shape
        rows = self.tiles.transpose(1, 2).reshape(count * columns, inputs)[: self.outputs]
        return rows.clone(memory_format=torch.contiguous_format)

    def rows(self, indices: Tensor) -> Tensor:
        """Rows of the weight, int64 [...] to float32 [..., K].

        Raises:
            IndexError: an index below 0 or not below N.
        """
        return rows_of_tiles(self.tiles, self.outputs, indices)


def _checked(weight: Tensor) -> Tensor:
    """The weight, with its sign in its own numbers: torch may hold it in a flag of the tensor."""
    if weight.dim() != 2 or weight.dtype != torch.float32 or not weight.is_cpu:
        raise ValueError("a weight is float32 [N, K], on the CPU")
    return weight.resolve_neg()


def _lay_out(rows: Tensor, tiles: Tensor, offset: Tensor | None = None) -> None:
    """Puts rows of a weight, each of four bytes for a step, into tiles; of quantized ones also the offset."""
    native.loaded().elseq_lay_out(
        rows.data_ptr(),
        tiles.data_ptr(),
        None if offset is None else offset.data_ptr(),
        len(rows),
        tiles.size(1),
        torch.get_num_threads(),
    )


def _address_of_bias(bias: Tensor | None, outputs: int) -> int | None:
    return None if bias is None else native.address("bias", bias, torch.float32, outputs)


def _pages(*shape: int, dtype: torch.dtype) -> Tensor:
    """Zeros in pages of their own. Weights are prepared between larger tensors that come and go. In the same memory
    they would lie in the gaps, and the next of these tensors would need more.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < OWN_PAGES:
        return torch.zeros(shape, dtype=dtype)
    pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without large pages, which are read faster
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def rows_of_tiles(tiles: Tensor, outputs: int, indices: Tensor) -> Tensor:
    """Rows of a weight [N, K] in tiles [N / C, K, C], int64 [...] to [..., K].

    Raises:
        IndexError: an index below 0 or not below N.
    """
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < outputs:
        raise IndexError(f"an index is not among the {outputs} of the table")
    columns = tiles.size(2)
    return tiles[indices // columns, :, indices % columns]


def linear_int8(
    x: tuple[Tensor, Tensor], packed: PackedIntegers, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """activation(x weight^T + bias).

    Args:
        x: what `quantize_rows` makes of [M, K].
        packed: the weight [N, K].
        bias: float32 [N].
        activation: one of `ACTIVATIONS`; gelu is the exact one, within 1e-6 of the largest output.

    Returns:
        float32 [M, N]; NaN in rows where x has a NaN or an infinity.

    Raises:
        ValueError: another type, shape, device or activation.
        RuntimeError: there is no library.
    """
    _check(activation)
    quantized, row_scale = x
    rows, columns, groups = quantized.size(0), packed.outputs, packed.tiles.size(1)
    out = quantized.new_empty(rows, columns, dtype=torch.float32)
    native.loaded().elseq_linear_int8(
        native.address("x", quantized, torch.uint8, rows, groups * GROUP),
        native.address("the scale of x", row_scale, torch.float32, rows),
        packed.tiles.data_ptr(),
        packed.offset.data_ptr(),
        packed.scale.data_ptr(),
        _address_of_bias(bias, columns),
        gelu_table().data_ptr(),
        out.data_ptr(),
        rows,
        columns,
        groups,
        ACTIVATIONS.index(activation),
        torch.get_num_threads(),
    )
    return out


def linear_float32(x: Tensor, packed: PackedFloats, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """activation(x weight^T + bias).

    Args:
        x: float32 [M, K].
        packed: the weight [N, K].
        bias: float32 [N].
        activation: one of `ACTIVATIONS`; gelu is the exact one, within 1e-6 of the largest output.

    Returns:
        float32 [M, N].

    Raises:
        ValueError: another type, shape, device or activation.
        RuntimeError: there is no library.
    """
    _check(activation)
    rows, columns, inputs = len(x), packed.outputs, packed.tiles.size(1)
    x = x.contiguous()
    out = x.new_empty(rows, columns)
    native.loaded().elseq_linear_float32(
        native.address("x", x, torch.float32, rows, inputs),
        packed.tiles.data_ptr(),
        _address_of_bias(bias, columns),
        gelu_table().data_ptr(),
        out.data_ptr(),
        rows,
        columns,
        inputs,
        ACTIVATIONS.index(activation),
        torch.get_num_threads(),
    )
    return out


def _check(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"the activation is one of {', '.join(ACTIVATIONS)}, not {activation}")


@cache
def gelu_table() -> Tensor:
    """[4, 32]: a P(X > a) near each a = n / 5.75 as a cubic in 5.75 a - n, the highest power first."""
    nodes = torch.cos(torch.pi * torch.arange(1, 8, 2, dtype=torch.float64) / 8).mul(0.5).repeat(32, 1)
    nodes[0] = torch.tensor([0, 0.15, 0.35, 0.5])  # a is not negative, and at 0 nothing is left over
    a = (nodes + torch.arange(32).unsqueeze(1)) / 5.75
    table = torch.linalg.solve(torch.linalg.vander(nodes), a * torch.special.erfc(a / 2**0.5) / 2)
    table[-1] = 0  # larger a give 0 in float32
    return table.flip(1).t().float().contiguous()
