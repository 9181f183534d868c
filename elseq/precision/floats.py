"""float32 and bfloat16 on a CPU: elseq's products of float32, and which products are the fastest."""

from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elseq import native
from elseq.measurements import measured, plain_calls, seconds_on_cpu
from elseq.precision import kernels
from elseq.precision.linear import KernelProduct, Product
from elseq.precision.onednn import OneDNNProduct

PAYING = 0.95  # share of the time of ordinary layers up to which others pay. A smaller gain differs between runs
ROWS = (4, 32)  # that are timed: the hypotheses of a sentence, and of a batch


class Float32Product(KernelProduct):
    """A row has the same result in any batch."""

    def __init__(self, linear: nn.Linear):
        self._weight = kernels.PackedFloats.of(linear.weight.detach())
        self._bias = None if linear.bias is None else linear.bias.detach().contiguous()

    def multiply(self, x: Tensor, activation: str | None = None) -> Tensor:
        rows = x.reshape(-1, x.size(-1))
        if native.is_recorded():
            output = F.linear(rows, self.weight(), self._bias)
            output = output if activation is None else getattr(F, activation)(output)
        else:
            output = kernels.linear_float32(rows, self._weight, self._bias, activation or "none")
        return output.view(*x.shape[:-1], output.size(-1))

    def weight(self) -> Tensor:
        return self._weight.weight()


@cache
def fastest(dtype: torch.dtype) -> type[Product]:
    """The products that are the fastest on this machine, of those that are right; `Product` itself stands for ordinary
    layers. Their results differ in the last digits, so the times, of some milliseconds, are measured once for all
    processes."""
    with plain_calls(torch.device("cpu")), torch.no_grad(), torch.random.fork_rng(devices=[]):
        generator = torch.Generator().manual_seed(0)
        layer = nn.Linear(768, 3072)
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / 768**0.5)
        layer = layer.to(dtype)
        inputs = [torch.randn(rows, 768, generator=generator).to(dtype) for rows in ROWS]
        calls = {Product: partial(F.linear, weight=layer.weight, bias=layer.bias)}
        for kind in (OneDNNProduct, Float32Product):
            try:
                product = kind(layer)
                if product.weight().equal(layer.weight) and all(_is_right(product, layer, x) for x in inputs):
                    calls[kind] = product.multiply
            except (RuntimeError, AttributeError, NotImplementedError, ValueError):
                pass  # another torch, another processor, another type
        if len(calls) == 1:
            return Product
        name = f"linear layers {dtype}: {', '.join(kind.__name__ for kind in calls)}"
        times = measured(name, inputs[0].device, lambda: _times(calls.values(), inputs), len(calls))
    times = dict(zip(calls, times, strict=True))
    best = min(times, key=times.get)
    return best if times[best] <= PAYING * times[Product] else Product


def _is_right(product: Product, layer: nn.Linear, x: Tensor) -> bool:
    exact = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    allowed = 4 * (layer(x) - exact).abs().max() + torch.finfo(x.dtype).eps
    return bool((product.multiply(x) - exact).abs().max() <= allowed)


def _times(calls, inputs: list[Tensor]) -> tuple[float, ...]:
    """Seconds of each call on all inputs together, the least of ten rounds in which they take turns."""
    rounds = [[sum(seconds_on_cpu(partial(call, x)) for x in inputs) for call in calls] for _ in range(10)]
    return tuple(map(min, zip(*rounds, strict=True)))
