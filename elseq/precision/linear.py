"""A linear layer as it decodes, in place of `nn.Linear`'s forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Product(ABC):
    """The weight and the bias of a linear layer, stored as a precision multiplies by them.

    Shapes: M rows, K inputs, N outputs.
    """

    activations: tuple[str, ...] = ()  # that `multiply` evaluates in the same pass

    @abstractmethod
    def multiply(self, x: Tensor, activation: str | None = None) -> Tensor:
        """[..., K] to [..., N]."""

    def embedding(self, indices: Tensor) -> Tensor:
        """Rows of the weight, int64 [...] to [..., K], for an embedding that is tied to it."""
        raise NotImplementedError

    def weight(self) -> Tensor | None:
        """The weight [N, K] that this was made of, exactly; None: it is lost."""
        return None


class DecodingLinear:
    """Evaluates a linear layer by a `Product`, which it makes when the layer is first called.

    Layers that are never called, such as the key projection under EL-attention, are left as they are.
    """

    def __init__(self, linear: nn.Linear, make: Callable[[nn.Linear], Product], recover: Callable[[], None]):
        """
        Args:
            linear: the layer.
            make: of the layer, the product of its precision.
            recover: called where the weight is asked for and `Product.weight` has lost it; it brings it back.
        """
        self.module = linear
        self.product: Product | None = None
        self.releases = False  # whether the layer's own weight is dropped once there is a product
        self.is_released = False
        self._make = make
        self._recover = recover
        self._made_of: tuple[int, int] | None = None

    def __call__(self, x: Tensor, activation: str | None = None) -> Tensor:
        return self.current_product().multiply(x, activation)

    def current_product(self) -> Product:
        """Made anew if a training has changed the weight since."""
        if not self.is_released:
            weight = self.module.weight
            version = (weight.data_ptr(), weight._version)
            if version != self._made_of:
                self.product, self._made_of = self._make(self.module), version
            if self.releases:
                self.release()
        return self.product

    def release(self) -> None:
        """Drop the layer's own weight. In its place stands NaN, so that whoever reads it unasked cannot miss it."""
        weight = self.module.weight
        weight.data = torch.full((1,) * weight.dim(), torch.nan, dtype=weight.dtype).expand(weight.shape)
        self.is_released = True

    def restore(self) -> None:
        """Bring back the layer's own weight."""
        if not self.is_released:
            return
        weight = self.product.weight()
        if weight is None:
            self._recover()
        else:
            self.put_back(weight)

    def put_back(self, weight: Tensor) -> None:
        """Make this the layer's own weight again, [N, K]. The next search makes another product."""
        self.module.weight.data = weight
        self.is_released = False
        self._made_of = None

    def ordinary(self, x: Tensor) -> Tensor:
        """The module's own forward pass, for whoever calls it outside of a search."""
        self.restore()
        return F.linear(x, self.module.weight, self.module.bias)


class DecodingEmbedding:
    """Reads an embedding from the product of the output projection that it is tied to."""

    def __init__(self, embedding: nn.Embedding, projection: DecodingLinear):
        self.module = embedding
        self._projection = projection

    def __call__(self, indices: Tensor) -> Tensor:
        return self._projection.current_product().embedding(indices)

    def ordinary(self, indices: Tensor) -> Tensor:
        """The module's own forward pass, for whoever calls it outside of a search."""
        self._projection.restore()
        return type(self.module).forward(self.module, indices)

    @property
    def is_released(self) -> bool:
        return self._projection.is_released

    def restore(self) -> None:
        self._projection.restore()


def activated(linear: nn.Linear, x: Tensor, name: str, function: Callable[[Tensor], Tensor]) -> Tensor:
    """An activation function of the output of a linear layer, in one pass where its precision has that.

    Args:
        linear: [..., K] to [..., N].
        x: [..., K].
        name: fairseq's of the function.
        function: the function itself.
    """
    decoding = linear.__dict__.get("forward")
    if isinstance(decoding, DecodingLinear) and name in decoding.current_product().activations:
        return decoding(x, name)
    return function(linear(x))


def original_weight(linear: nn.Linear) -> Tensor:
    """The weight of a linear layer, [N, K], for whoever multiplies by it in another order."""
    decoding = linear.__dict__.get("decoding")
    if decoding is not None:
        decoding.restore()
    return linear.weight
