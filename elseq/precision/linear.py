"""Linear layers and embeddings that a search evaluates by a `Product`, and everybody else by their own weight."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from elseq.heap import count_dropped
from elseq.precision import kernels

# Searches in several threads share a layer: one of them makes its product and drops its weight. Reentrant, as making a
# product reads the weight.
_lock = threading.RLock()


class Product(ABC):
    """The weight and the bias of a linear layer, stored as a precision multiplies by them.

    Shapes: M rows, K inputs, N outputs.
    """

    activations: tuple[str, ...] = ()  # that `multiply` evaluates in the same pass

    @abstractmethod
    def multiply(self, x: Tensor, activation: str | None = None) -> Tensor:
        """[..., K] to [..., N]."""

    def embeds(self, weight: Tensor) -> bool:
        """Whether `embedding` gives the rows of the weight [N, K] that this was made of."""
        return False

    def embedding(self, indices: Tensor) -> Tensor:
        """Rows of the weight, int64 [...] to [..., K], for an embedding that is tied to it. First ask `embeds`."""
        raise NotImplementedError

    def weight(self) -> Tensor | None:
        """The weight [N, K] that this was made of, exactly; None: it is lost."""
        return None

    def is_of(self, weight: Tensor) -> bool:
        """Whether this was made of a weight [N, K]."""
        raise NotImplementedError

    @classmethod
    def maker(cls) -> Callable[[nn.Linear], Product]:
        """Makes the products of the layers of one model."""
        return cls

    # How much memory a layer needs, for the memory budget. Those of `Product` itself are of an `nn.Linear`.

    @staticmethod
    def output_bytes(rows: int, outputs: int, itemsize: int) -> int:
        """Bytes of the output of `multiply`.

        Args:
            rows, outputs: M and N.
            itemsize: bytes of a number.
        """
        return rows * outputs * itemsize

    @staticmethod
    def input_bytes(rows: int, inputs: int, itemsize: int) -> int:
        """Bytes of the converted input, which is kept for further layers until the next input comes."""
        return 0

    @classmethod
    def multiplying_bytes(cls, rows: int, inputs: int, outputs: int, itemsize: int, is_scattered: bool = False) -> int:
        """The most that `multiply` holds at a time, its output included, its input not.

        Args:
            rows, inputs, outputs, itemsize: M, K and N; as for `output_bytes`.
            is_scattered: whether the rows of the input are not adjacent in memory, so that it is copied.
        """
        copy = is_scattered * rows * inputs * itemsize
        held = copy + cls.output_bytes(rows, outputs, itemsize)
        if itemsize >= torch.float32.itemsize:
            return held
        # oneDNN multiplies; each thread lays out a block of the weight, of at most 512 x 64 numbers.
        block = -(-min(inputs, 512) // 32) * 32 * min(outputs, 64) * itemsize
        return held + scratchpad_bytes(rows, outputs, itemsize, block)


class KernelProduct(Product):
    """By elseq's own kernels: a step of a whole decoder layer evaluates it, too."""

    activations = ("relu", "gelu")
    _weight: kernels.PackedFloats | kernels.PackedIntegers
    _bias: Tensor | None

    def for_kernel(self) -> kernels.Linear:
        """The layer as kernels read it."""
        return self._weight.for_kernel(self._bias)

    def embeds(self, weight: Tensor) -> bool:
        return True

    def embedding(self, indices: Tensor) -> Tensor:
        return self._weight.rows(indices)


@cache
def onednn_multiplies_narrow_types() -> bool:
    """Whether it does on this processor. Otherwise torch does, without a scratchpad and without copies."""
    return getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)()


def scratchpad_bytes(rows: int, outputs: int, itemsize: int, block: int = 0) -> int:
    """What a product of oneDNN holds beside its output, bytes: each thread some hundred bytes, a block of the weight
    unless it is packed, and of narrower numbers the sums in float32 of a block of at most 256 x 64. Sizes of blocks and
    the constants are measured, as an upper bound."""
    if itemsize < torch.float32.itemsize and not onednn_multiplies_narrow_types():
        return 0
    sums = min(rows, 256) * min(outputs, 64) * torch.float32.itemsize if itemsize < torch.float32.itemsize else 0
    return torch.get_num_threads() * (sums + block + 640) + 384


@dataclass
class _Decoding:
    """The attributes that a `DecodingLinear` adds to an `nn.Linear`."""

    make: Callable[[nn.Linear], Product]
    recover: Callable[[], None]
    product: Product | None = None
    made_of: tuple[int, int] | None = None  # address and version of the weight
    bias_address: int | None = None  # of the bias then
    searches: int = 0  # that are running
    is_tied: bool = False  # to an embedding
    embeds: bool = False  # whether that reads the product
    releases: bool = False  # whether the weight is dropped once there is a product
    is_released: bool = False
    is_read: bool = False  # whether a search also reads the weight itself; then it is not dropped again


class _DecodingModule:
    """Base class of modules that may have dropped their weight. It is restored when it is read."""

    kind: type[nn.Module]  # the original class, also that of copies
    extra: str  # name of the attribute that such a module does not have

    @property
    def weight(self) -> nn.Parameter:
        if "weight" not in self._parameters:  # any more
            raise AttributeError("weight")
        self.restore()
        return self._parameters["weight"]

    @weight.setter
    def weight(self, value: Tensor) -> None:
        """A tensor in place of the parameter, as pruning computes it."""
        self.leave()
        self.weight = value

    def leave(self) -> None:
        """Become an ordinary module again."""
        self.restore()
        del self.__dict__[self.extra]
        self.__class__ = self.kind

    def _save_to_state_dict(self, *arguments):
        self.restore()
        super()._save_to_state_dict(*arguments)

    def _load_from_state_dict(self, *arguments):
        self.restore()
        super()._load_from_state_dict(*arguments)

    def _apply(self, *arguments, **options):
        self.restore()
        return super()._apply(*arguments, **options)

    def __reduce_ex__(self, protocol):
        self.restore()
        state = {name: value for name, value in self.__dict__.items() if name != self.extra}
        return object.__new__, (self.kind,), state


class DecodingLinear(_DecodingModule, nn.Linear):
    """A linear layer that searches evaluate by a `Product`, which it makes when a search first calls it.

    An `nn.Linear` becomes one by `take`. Layers that a search never calls, such as the key projection under
    EL-attention, are left as they are.
    """

    kind = nn.Linear
    extra = "decoding"

    @classmethod
    def take(cls, linear: nn.Linear, make: Callable[[nn.Linear], Product], recover: Callable[[], None]) -> None:
        """
        Args:
            linear: the layer. Nothing happens if another model that shares it has taken it already.
            make: makes the product of the layer in its precision.
            recover: called when the weight is read and `Product.weight` does not have it any more; calls `put_back`.
        """
        if type(linear) is nn.Linear:
            linear.__class__ = cls
            linear.decoding = _Decoding(make, recover)

    def forward(self, x: Tensor) -> Tensor:
        return self._multiply_by(self.product(), x) if self.decoding.searches else super().forward(x)

    def _multiply_by(self, product: Product, x: Tensor, activation: str | None = None) -> Tensor:
        """By the layer's product, in its numbers also under autocast, which does not know of the product's weight."""
        if not torch.is_autocast_enabled(x.device.type):
            return product.multiply(x, activation)
        with torch.autocast(x.device.type, enabled=False):
            return product.multiply(x.to(self._parameters["weight"].dtype), activation)

    def product(self) -> Product:
        """Made anew if the weight has changed since, or another bias is there."""
        with _lock:
            decoding = self.decoding
            bias = self._parameters.get("bias")
            bias = None if bias is None else bias.data_ptr()
            if decoding.is_released and bias != decoding.bias_address:
                self.restore()
            if not decoding.is_released:
                weight = self._address_and_version()
                if weight != decoding.made_of or bias != decoding.bias_address:
                    is_read, decoding.product = decoding.is_read, None
                    decoding.product, decoding.made_of, decoding.bias_address = decoding.make(self), weight, bias
                    decoding.is_read = is_read  # by the search, not by what makes the product
                    decoding.embeds = decoding.is_tied and decoding.product.embeds(self._parameters["weight"].detach())
                if decoding.releases and not decoding.is_read and decoding.embeds == decoding.is_tied:
                    self.release()
            return decoding.product

    def _address_and_version(self) -> tuple[int, int]:
        weight = self._parameters["weight"]
        return weight.data_ptr(), 0 if weight.is_inference() else weight._version

    def release(self) -> None:
        """Drop the layer's own weight. The parameter then shows NaN."""
        weight = self._parameters["weight"]
        size = weight.nbytes
        self.decoding.is_released = True  # first: Ctrl-C between the two must leave a weight that is brought back
        weight.data = torch.full((1,) * weight.dim(), torch.nan, dtype=weight.dtype).expand(weight.shape)
        count_dropped(size)

    def restore(self) -> None:
        """Bring back the layer's own weight."""
        with _lock:
            decoding = self.decoding
            if decoding.searches:
                decoding.is_read = True
            if decoding.is_released:
                weight = decoding.product.weight()
                if weight is None:
                    decoding.recover()
                else:
                    self.put_back(weight)

    def put_back(self, weight: Tensor) -> None:
        """Make this the layer's own weight again, [N, K]. Outside of a search it may be changed, so the next search
        makes another product."""
        decoding = self.decoding
        self._parameters["weight"].data = weight
        decoding.is_released = False
        decoding.made_of = self._address_and_version() if decoding.searches else None


class DecodingEmbedding(_DecodingModule, nn.Embedding):
    """An embedding that searches read from the product of the output projection that it is tied to, if that can."""

    kind = nn.Embedding
    extra = "projection"

    @classmethod
    def take(cls, embedding: nn.Embedding, projection: DecodingLinear) -> None:
        if type(embedding) is nn.Embedding:
            embedding.__class__ = cls
            embedding.__dict__["projection"] = projection  # not a submodule: state_dict has the same names
        projection.decoding.is_tied = True

    def forward(self, indices: Tensor) -> Tensor:
        projection = self.__dict__["projection"]
        if projection.decoding.searches:
            product = projection.product()
            if projection.decoding.embeds:
                return product.embedding(indices)
        return super().forward(indices)

    def restore(self) -> None:
        self.__dict__["projection"].restore()


def is_in_search(linear: nn.Module) -> bool:
    """Whether a search runs that evaluates a layer by its product."""
    return isinstance(linear, DecodingLinear) and linear.decoding.searches > 0


def is_unhooked(module: nn.Module) -> bool:
    """Whether a call of the module is that of its class alone: nothing is hooked to it, or put in its place."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or "forward" in vars(module)
    )


def activated(linear: nn.Linear, x: Tensor, name: str | None, function: Callable[[Tensor], Tensor]) -> Tensor:
    """An activation function of the output of a linear layer, in one pass where its precision has that.

    Args:
        linear: [..., K] to [..., N].
        x: [..., K].
        name: fairseq's of the function, or None.
        function: the function itself.
    """
    if is_in_search(linear) and is_unhooked(linear) and name in (product := linear.product()).activations:
        return linear._multiply_by(product, x, name)
    return function(linear(x))
