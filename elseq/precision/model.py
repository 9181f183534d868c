"""A model whose linear layers are evaluated in a precision while it decodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from elseq.errors import UserError
from elseq.precision import int8, packed
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


class PreparedModel:
    """The linear layers of a model under a precision."""

    def __init__(self, model: nn.Module, dtype: str | None = None):
        """
        Args:
            model: its encoder and decoder layers are prepared, as is the output projection.
            dtype: a value of --dtype; only int8 differs from the type of the parameters.
        """
        self.dtype = dtype
        # Gives the parameters by their names, once more, where a precision has not got the originals.
        self.fresh_parameters: Callable[[], dict] | None = None
        self._model = model
        self._depth = 0
        make = _maker(model, dtype)
        linears = [] if make is None else _linears(model)
        self._layers = [DecodingLinear(linear, make, self._recover) for linear in linears]
        self._embeddings = list(self._tied_embeddings()) if dtype == INT8 else []
        for part in self._parts():
            part.module.__dict__["decoding"] = part
            part.module.register_state_dict_pre_hook(lambda *called, part=part: part.restore())

    def _parts(self) -> list[DecodingLinear | DecodingEmbedding]:
        return [*self._layers, *self._embeddings]

    def _tied_embeddings(self) -> Iterator[DecodingEmbedding]:
        projections = {id(layer.module.weight): layer for layer in self._layers}
        for module in self._model.modules():
            if isinstance(module, nn.Embedding) and id(module.weight) in projections:
                yield DecodingEmbedding(module, projections[id(module.weight)])

    def begin(self) -> None:
        """A search begins: the layers are evaluated in the precision until `end`."""
        self._depth += 1
        for part in self._parts():
            part.module.__dict__["forward"] = part

    def end(self) -> None:
        """The search is over."""
        self._depth -= 1
        if self._depth:
            return
        for part in self._parts():
            if part.is_released:
                part.module.__dict__["forward"] = part.ordinary
            else:
                del part.module.__dict__["forward"]

    def release_weights(self) -> None:
        """From now on no weight is held twice: a layer's own is dropped once it is prepared.

        But one that is an embedding as well, unless the precision reads embeddings, too.
        """
        read_here = {id(embedding.module) for embedding in self._embeddings}
        read_elsewhere = {
            id(module.weight)
            for module in self._model.modules()
            if isinstance(module, nn.Embedding) and id(module) not in read_here
        }
        for layer in self._layers:
            layer.releases = id(layer.module.weight) not in read_elsewhere

    def restore(self) -> None:
        """Bring back the parameters of the model."""
        for part in self._parts():
            part.restore()
            if not self._depth:
                part.module.__dict__.pop("forward", None)

    def _recover(self) -> None:
        """
        Raises:
            UserError: nobody has the parameters.
        """
        if self.fresh_parameters is None:
            raise UserError("the weights were quantized to int8 and the originals dropped: load the checkpoint again")
        fresh = self.fresh_parameters()
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        for layer in self._layers:
            if layer.is_released:
                weight = layer.module.weight
                layer.put_back(fresh[names[id(weight)]].detach().to(weight.dtype))


def _maker(model: nn.Module, dtype: str | None) -> Callable[[nn.Linear], Product] | None:
    parameter = next(model.parameters())
    if parameter.device.type != "cpu":
        return None
    if dtype == INT8:
        return int8.product_maker()
    can_pack = parameter.dtype in (torch.float32, torch.bfloat16) and packed.pays(parameter.dtype)
    return packed.PackedProduct if can_pack else None


def _linears(model: nn.Module) -> Iterator[nn.Linear]:
    """Those that are evaluated as layers."""
    for name, module in model.named_modules():
        if type(module) is nn.Linear and "adaptive" not in name:
            yield module


def prepared(model: nn.Module, dtype: str | None = None) -> PreparedModel:
    """The model under this precision; made once."""
    found = model.__dict__.get("prepared")
    if found is None or found.dtype != dtype:
        if found is not None:
            found.restore()
        found = model.__dict__["prepared"] = PreparedModel(model, dtype)
    return found


def restore(model: nn.Module) -> None:
    """Bring back the parameters of a model that may be prepared."""
    found = model.__dict__.get("prepared")
    if found is not None:
        found.restore()
