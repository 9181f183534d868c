"""Runs the layers of a model on calibration text one after the other, while their attention is replaced.

Every text is a batch of its own, so there is no padding. The input of a layer is the output of the converted layers
before it. Its attention is to return what compensates their error: what leads to the hidden states of the original
model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from elseq.attention import Attention
from elseq.interop.head_sharing import Moments

# The attentions of the layers of each side, and the place of each.
_ATTENTIONS = {"encoder": {"self_attn": "encoder"}, "decoder": {"self_attn": "decoder", "encoder_attn": "cross"}}


class Call(NamedTuple):
    """The arguments of a module. The first one is its input."""

    arguments: tuple
    options: dict

    def of(self, module: nn.Module):
        return module(*self.arguments, **self.options)

    def then(self, layer: nn.Module) -> Call:
        """The call of the next layer."""
        output = self.of(layer)
        return self._replace(arguments=(output[0] if isinstance(output, tuple) else output, *self.arguments[1:]))


class Texts(NamedTuple):
    """The inputs of an attention layer for every text, and the outputs that it is to return."""

    calls: list[Call]
    wanted: list[Tensor]  # [T, 1, C]: with them the hidden states are those of the model before any conversion

    def moments(self, attention: Attention) -> Moments:
        """The moments of what the heads of the layer compute for all texts."""
        found = Moments.empty(attention.num_heads, attention.head_dim)
        for call in self.calls:
            (query, *_) = call.arguments
            keys, values = attention.keys_and_values(_memory(attention, call))
            rows = attention.q_proj(query[:, 0]).unflatten(1, (attention.num_heads, -1)).transpose(0, 1)
            found.add(rows * attention.scaling, keys[0], values[0], _weights(attention, call))
        return found

    def attended(self, attention: Attention, components: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each text: the result of attending to projected values, [T, H, r], and the wanted output, [T, C].

        Args:
            attention: the layer.
            components: projections to the values of each group of heads, and their bias, [G, r, D + 1].
        """
        for call, wanted in zip(self.calls, self.wanted, strict=True):
            memory = torch.nn.functional.pad(_memory(attention, call)[:, 0].double(), (0, 1), value=1.0)
            values = components @ memory.T  # [G, r, S]
            weights = _weights(attention, call).double().unflatten(0, (len(components), -1))
            yield torch.einsum("grs,gnts->tgnr", values, weights).flatten(1, 2), wanted[:, 0]


def _memory(attention: Attention, call: Call) -> Tensor:
    """The positions that are attended to, [S, 1, D]."""
    return call.arguments[0] if attention.self_attention else call.options["key"]


def _weights(attention: Attention, call: Call) -> Tensor:
    """The attention, [H, T, S]."""
    _, weights = attention(*call.arguments, **call.options | {"need_weights": True, "need_head_weights": True})
    return weights[:, 0]


def _calls_within(inner: Sequence[nn.Module], outer: nn.Module, call: Call) -> list[Call]:
    """The calls of some modules that are made in the call of another one, in their order."""
    calls = []
    handles = [
        module.register_forward_pre_hook(
            lambda _, arguments, options: calls.append(Call(arguments, options)), with_kwargs=True
        )
        for module in inner
    ]
    try:
        call.of(outer)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _attending(layer: nn.Module, name: str, call: Call) -> tuple[Call, Tensor]:
    """The call of the attention within a call of its layer, and the hidden states to which its output is added."""
    found = _calls_within((getattr(layer, name), getattr(layer, f"{name}_layer_norm")), layer, call)
    norm, attention = found if layer.normalize_before else found[::-1]
    return attention, (norm if layer.normalize_before else attention).arguments[0]


def _is_added(layer: nn.Module, name: str) -> bool:
    """Whether the output of an attention is added to the hidden states as it is."""
    return name != "self_attn" or all(getattr(layer, scale, None) is None for scale in ("c_attn", "attn_ln"))


def _first_calls(model, side: str, texts: Sequence[dict]) -> list[Call]:
    """Of the first layer of a side."""
    layers = getattr(model, side).layers
    return [call for text in texts for call in _calls_within(layers[:1], model, Call((), text))]


@torch.no_grad()
def convert_layers(
    model, texts: Sequence[dict], places: Collection[str], convert: Callable[[str, Attention, Texts], None]
) -> None:
    """Convert the attentions of a model, from the first layer to the last.

    Args:
        model: an elseq model that does not train.
        texts: what the model is given for each text, a batch of one.
        places: some of `elseq.interop.PLACES`.
        convert: changes an attention layer, given its name in the model, the layer, and its texts.
    """
    sides = {
        side: [name for name, place in attentions.items() if place in places]
        for side, attentions in _ATTENTIONS.items()
        if hasattr(model, side)
    }
    before_any = {side: _first_calls(model, side, texts) for side, names in sides.items() if names}
    for side, originals in before_any.items():
        names, layers = sides[side], getattr(model, side).layers
        calls = _first_calls(model, side, texts)
        for number, layer in enumerate(layers):
            original = copy.deepcopy(layer)
            for name in names:
                attention = getattr(layer, name)
                if attention is None:
                    continue
                seen, wanted = [], []
                for call, before in zip(calls, originals, strict=True):
                    attending, hidden = _attending(layer, name, call)
                    original_attending, original_hidden = _attending(original, name, before)
                    output, _ = original_attending.of(getattr(original, name))
                    seen.append(attending)
                    wanted.append(output + original_hidden - hidden if _is_added(layer, name) else output)
                convert(f"{side}.layers.{number}.{name}", attention, Texts(seen, wanted))
            calls = [call.then(layer) for call in calls]
            originals = [call.then(original) for call in originals]
