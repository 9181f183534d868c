"""A decoding step of a decoder layer on a CPU, in one call: layer_step.cpp.

For a few hypotheses the small operations of a layer, and Python between them, take as long as its products. The kernel
computes what `DecoderLayer` does with `kv`, by the same kernels of products and attention.

Shapes: N hypotheses, C width of the decoder, H heads, G key/value heads, K width of a head.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from elseq import native
from elseq.attention import Attention, GrowingMemory, LayerState, SentenceMemory
from elseq.attention.kernels.decode_step import Shared, computes, own_argument, shared_argument
from elseq.attention.methods import KV
from elseq.precision import DecodingLinear, kernels

if TYPE_CHECKING:
    from elseq.models.layers import DecoderLayer


class _Norm(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("epsilon", ctypes.c_double)]


class _Attention(ctypes.Structure):
    _fields_ = [
        ("norm", _Norm),
        *((name, kernels.Linear) for name in ("query", "key", "value", "out")),
        ("scaling", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "width")),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("self_attention", _Attention),
        ("source", _Attention),
        ("norm", _Norm),
        ("inner", kernels.Linear),
        ("outer", kernels.Linear),
        ("gelu", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("width", "activation", "normalizes_before")),
    ]


class LayerStep:
    """Steps of one layer in one search, in which neither its parameters nor its hooks change."""

    def __init__(self, layer: _Layer, kept: list):
        """kept: what the addresses in `layer` are of."""
        self._layer = layer
        self._kept = kept
        self._shared: dict[SentenceMemory, tuple] = {}

    @classmethod
    def of(cls, layer: DecoderLayer, state: LayerState) -> LayerStep | None:
        """The steps of a layer that continue a state; None: the kernel does not compute them."""
        own, source = state.self_attention, state.cross_attention
        source_attention = None if source is None else layer.encoder_attn
        attentions = [attention for attention in (layer.self_attn, source_attention) if attention is not None]
        if not (
            own.method is KV
            and (source is None or source.method is KV)
            and isinstance(own.generated, GrowingMemory)
            and (own.window is None or own.prompt is None)
            and all(type(each) is Attention and each.top_k is None for each in attentions)
            and layer.activation in kernels.ACTIVATIONS[1:]
            and layer.ffn_top_k is None
            and all(getattr(layer, name, None) is None for name in ("c_attn", "attn_ln", "ffn_layernorm", "w_resid"))
            and not _is_changed(layer)
        ):
            return None
        found = _Arguments()
        arguments = _Layer(
            found.attention(layer.self_attn, layer.self_attn_layer_norm, projects=True),
            found.attention(source_attention, getattr(layer, "encoder_attn_layer_norm", None)),
            found.norm(layer.final_layer_norm),
            found.linear(layer.fc1),
            found.linear(layer.fc2),
            kernels.gelu_table().data_ptr(),
            layer.embed_dim,
            kernels.ACTIVATIONS.index(layer.activation),
            layer.normalize_before,
        )
        return cls(arguments, found.kept) if found.are_known else None

    def __call__(self, x: Tensor, state: LayerState) -> Tensor:
        """The newest position of each hypothesis, float32 [1, N, C], which is added to the state, to [1, N, C]."""
        attention, memory = self._layer.self_attention, state.self_attention
        hypotheses = x.size(1)
        shape = x.new_empty(1).expand(hypotheses, attention.kv_heads, 1, attention.width)
        memory.generated.reserve(shape, shape)
        stretch, rows = memory.generated.read_unmoved()
        own = own_argument(*stretch.tensors, rows, hypotheses, attention.width)
        prompt = self._shared_argument(memory.prompt, attention) or Shared(sequences=hypotheses)
        source = self._shared_argument(state.cross_attention, self._layer.source) or Shared()
        library, output = native.loaded(), x.clone(memory_format=torch.contiguous_format)
        scratch = x.new_empty(library.elseq_layer_step_bytes(ctypes.byref(self._layer), hypotheses), dtype=torch.uint8)
        library.elseq_layer_step(
            ctypes.byref(self._layer),
            output.data_ptr(),
            hypotheses,
            ctypes.byref(prompt),
            ctypes.byref(own),
            ctypes.byref(source),
            scratch.data_ptr(),
            torch.get_num_threads(),
        )
        return output

    def _shared_argument(self, memory: SentenceMemory | None, attention: _Attention) -> Shared | None:
        """Made anew when sentences have left."""
        if memory is None:
            return None
        tensors, mask, argument = self._shared.get(memory, (None, None, None))
        if tensors is not memory.tensors or mask is not memory.mask:
            [stretch] = memory.read()
            argument = shared_argument(*stretch.tensors, stretch.mask, attention.kv_heads, attention.width)
            self._shared[memory] = memory.tensors, memory.mask, argument
        return argument


def fits(x: Tensor) -> bool:
    """Whether `LayerStep` computes with these inputs of a layer, [T, N, C]."""
    return (
        x.size(0) == 1
        and x.size(1) > 0
        and x.dtype == torch.float32
        and computes(x)
        and not torch.is_autocast_enabled("cpu")
    )


def _is_changed(layer: nn.Module) -> bool:
    """Whether something is computed in the layer that its modules do not say, or drops numbers."""
    modules = list(layer.modules())[1:]  # those of the layer itself are called as it is
    return (
        layer.training
        or any(getattr(module, "apply_during_inference", False) for module in modules)
        or any(module._forward_hooks or module._forward_pre_hooks for module in modules)
        or bool(hooks._global_forward_hooks or hooks._global_forward_pre_hooks)
    )


class _Arguments:
    """The parts of a layer as the kernel reads them."""

    def __init__(self):
        self.are_known = True
        self.kept = []

    def linear(self, linear: nn.Linear) -> kernels.Linear:
        product = linear.product() if isinstance(linear, DecodingLinear) and linear.decoding.searches else None
        argument = None if product is None else product.argument()
        self.are_known &= argument is not None
        self.kept.append(product)
        return argument or kernels.Linear()

    def norm(self, norm: nn.Module) -> _Norm:
        self.are_known &= type(norm) is nn.LayerNorm and all(
            parameter is None or parameter.dtype == torch.float32 and parameter.is_contiguous()
            for parameter in (norm.weight, norm.bias)
        )
        if not self.are_known:
            return _Norm()
        self.kept.append(norm)
        weight, bias = (None if each is None else each.data_ptr() for each in (norm.weight, norm.bias))
        return _Norm(weight, bias, norm.eps)

    def attention(self, of: Attention | None, norm: nn.Module, projects: bool = False) -> _Attention:
        """projects: whether keys and values are of the same input as the query."""
        if of is None:
            return _Attention()
        projections = of.q_proj, of.k_proj if projects else None, of.v_proj if projects else None, of.out_proj
        linears = [kernels.Linear() if each is None else self.linear(each) for each in projections]
        return _Attention(self.norm(norm), *linears, of.scaling, of.num_heads, of.num_kv_heads, of.head_dim)
