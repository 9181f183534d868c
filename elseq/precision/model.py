"""A model whose linear layers are evaluated in a precision while it decodes."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

from elseq.errors import UserError
from elseq.heap import give_back_memory
from elseq.precision import floats, int8
from elseq.precision.linear import DecodingEmbedding, DecodingLinear, Product

INT8 = "int8"
# The values of --dtype: of the parameters, and how linear layers are evaluated.
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    INT8: torch.float32,
}


_lock = threading.Lock()  # searches may run in several threads


class PreparedModel:
    """The linear layers of a model under a precision."""

    def __init__(self, model: nn.Module, dtype: str | None = None):
        """
        Args:
            model: the layers of its encoder and decoder are prepared, as is the output projection.
            dtype: a value of --dtype; only int8 differs from the type of the parameters.

        Raises:
            UserError: int8, and the parameters are not float32 on a CPU.
        """
        self.key = _key(model, dtype)
        # Gives the parameters by their names, once more, where a precision has not got the originals.
        self.fresh_parameters: Callable[[], dict] | None = None
        self._model = model
        self._searches = 0
        self._only_decodes = False
        self._is_int8 = dtype == INT8
        kind = kind_of_product(model, dtype)
        self._make = kind.maker()
        linears = {} if kind is Product else _linears(model)
        weights = {id(layer._parameters["weight"]): layer for layer in linears.values()}
        self._embeddings = [  # with the output projection that each is tied to
            (module, weights[id(module._parameters["weight"])])
            for module in model.modules()
            if type(module) in (nn.Embedding, DecodingEmbedding) and id(module._parameters["weight"]) in weights
        ]
        read_here = {id(embedding) for embedding, _ in self._embeddings}
        # How many modules read a weight themselves. What several read is not dropped.
        self._holders = Counter(
            id(parameter)
            for module in model.modules()
            if id(module) not in read_here
            for parameter in module._parameters.values()
        )
        self._layers = linears
        self._is_new = True
        gc.collect()  # fairseq leaves the checkpoint that it loaded in a cycle of references
        if linears:
            give_back_memory()

    def begin(self, only_decodes: bool = False) -> None:
        """Begin a search: the layers are evaluated in the precision until `end`.

        Args:
            only_decodes: the model is not trained. Prepared weights are kept for the next search, and a layer's own
                weight is dropped when it is prepared, so that no weight is held twice.
        """
        with _lock:
            self._only_decodes = only_decodes
            for name, layer in self._layers.items():
                if not _is_ordinary(layer):  # any more
                    if type(layer) is DecodingLinear:  # torch's parametrizations make another class of it
                        layer.leave()
                    continue
                DecodingLinear.take(layer, self._make, self._recover)
                may_be_read = self._is_int8 and self.fresh_parameters is None and _is_read_by_methods(name)
                is_alone = self._holders[id(layer._parameters["weight"])] == 1
                layer.decoding.releases = only_decodes and is_alone and not may_be_read
            for embedding, projection in self._embeddings:
                is_tied = embedding._parameters.get("weight") is projection._parameters.get("weight")
                if is_tied and type(projection) is DecodingLinear:
                    DecodingEmbedding.take(embedding, projection)
            self._searches += 1  # at last: a search that an error or Ctrl-C ends above has not begun
            for layer in self._taken():
                layer.decoding.searches += 1

    def make_products(self, read: Callable[[torch.Tensor], None]) -> None:
        """Prepare the layers of a model that only decodes before a search does, so that few of their own weights are
        held at a time.

        Args:
            read: brings a parameter into memory, if it is not there yet.
        """
        self.begin(only_decodes=True)
        for name, layer in self._layers.items():
            if layer.decoding.releases and not _is_read_by_methods(name):
                for parameter in layer.parameters(recurse=False):
                    read(parameter)
                layer.product()
        self.end()

    def end(self) -> None:
        """The search is over."""
        with _lock:
            self._searches -= 1
            for layer in self._taken():
                layer.decoding.searches -= 1
            if not self._searches and not self._only_decodes:
                self._leave()
        if self._is_new and self._layers:
            give_back_memory()  # of the weights from which the first search has made others
        self._is_new = False

    def _taken(self) -> list[DecodingLinear]:
        return [layer for layer in self._layers.values() if type(layer) is DecodingLinear]

    def _leave(self) -> None:
        """The layers are ordinary ones again."""
        for module in (*(embedding for embedding, _ in self._embeddings), *self._layers.values()):
            if type(module) in (DecodingLinear, DecodingEmbedding):
                module.leave()

    def __reduce__(self):
        """A copy of the model is prepared anew."""
        return type(None), ()

    def _recover(self) -> None:
        """
        Raises:
            UserError: the parameters are gone, or have changed.
        """
        if self.fresh_parameters is None:
            raise UserError("the weights were quantized to int8 and the originals dropped: load the checkpoint again")
        fresh = self.fresh_parameters()
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        for layer in self._taken():
            if layer.decoding.is_released:
                weight = layer._parameters["weight"]
                original = fresh[names[id(weight)]].detach().to(weight.dtype)
                if not layer.decoding.product.is_of(original):
                    raise UserError("the checkpoint has other weights than before: load it again")
                layer.put_back(original)


def _key(model: nn.Module, dtype: str | None) -> tuple:
    parameter = next(model.parameters())
    return dtype == INT8, parameter.dtype, parameter.device


def kind_of_product(model: nn.Module, dtype: str | None = None) -> type[Product]:
    """The class that evaluates the linear layers of a model under a value of --dtype, as for `PreparedModel`. Ordinary
    layers have `Product` itself."""
    parameter = next(model.parameters())
    if dtype == INT8:
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise UserError("int8 is for a model in float32 on a CPU: on a GPU decode in float16 or bfloat16")
        return int8.fastest()
    if parameter.device.type != "cpu" or parameter.dtype not in (torch.float32, torch.bfloat16):
        return Product
    return floats.fastest(parameter.dtype)


def _is_read_by_methods(name: str) -> bool:
    """Whether a layer is one of a decoder by whose weight some decoding methods multiply themselves, in another
    order."""
    return name.endswith(("k_proj", "v_proj")) and not name.startswith("encoder.")


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers that a `Product` can evaluate, by name."""
    return {name: module for name, module in model.named_modules() if _is_ordinary(module) and "adaptive" not in name}


def _is_ordinary(module: nn.Module) -> bool:
    """Whether it is a linear layer whose weight and bias nothing computes from others, as pruning does."""
    return type(module) in (nn.Linear, DecodingLinear) and module._parameters.keys() >= {"weight", "bias"}


def prepared(model: nn.Module, dtype: str | None = None) -> PreparedModel:
    """The model under this precision; made once."""
    with _lock:
        found = model.__dict__.get("prepared")
        if found is None or found.key != _key(model, dtype):
            if found is not None:
                found._leave()
            found = model.__dict__["prepared"] = PreparedModel(model, dtype)
    return found


def restore(model: nn.Module) -> None:
    """Bring back the parameters of a model that may be prepared."""
    found = model.__dict__.get("prepared")
    for layer in () if found is None else found._taken():
        layer.restore()
