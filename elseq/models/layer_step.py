"""A decoding step of a decoder layer on a CPU, in one call: layer_step.cpp.

For a few hypotheses the small operations of a layer, and Python between them, take as long as its products. The kernel
computes what `DecoderLayer` does with `kv`, by the same kernels of products and attention, and norms of its own.

Shapes: N hypotheses, C width of the decoder, H heads, G key/value heads, K width of a head.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from fairseq.modules.fairseq_dropout import FairseqDropout
from torch import Tensor, nn

from elseq import native
from elseq.attention import Attention, GrowingMemory, LayerState, SelfAttentionMemory, SentenceMemory
from elseq.attention.kernels.decode_step import Shared, check_counts, computes, counted, own_argument, shared_argument
from elseq.attention.methods import KV
from elseq.precision import KernelProduct, is_in_search, is_unhooked, kernels

if TYPE_CHECKING:
    from elseq.models.layers import DecoderLayer


class _Norm(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("epsilon", ctypes.c_double)]


class _Attention(ctypes.Structure):
    _fields_ = [
        ("norm", _Norm),
        *((name, kernels.Linear) for name in ("query", "key", "value", "out")),
        ("scaling", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "width", "top_k")),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("self_attention", _Attention),
        ("source", _Attention),
        ("norm", _Norm),
        ("inner", kernels.Linear),
        ("outer", kernels.Linear),
        ("gelu", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("width", "activation", "normalizes_before", "inner_numbers")),
    ]


# Inner activations that a CPU computes together. So many numbers stay in its cache, and in memory that the process has
# already; the first touch of fresh memory can take longer than the products.
MOST_INNER_NUMBERS = 2**20

REPLACEABLE = {"residual_connection", "feed_forward", "_feed_forward"}  # methods of a layer

# The steps of a layer in a search, by its memory there; None: its modules compute them.
_steps: WeakKeyDictionary[SelfAttentionMemory, LayerStep | None] = WeakKeyDictionary()


def compute(layer: DecoderLayer, x: Tensor, state: LayerState) -> Tensor | None:
    """A layer's output for the newest position of each hypothesis, which is added to the state.

    Hooks, and parameters that are put in the place of others, count from the next search on.

    Args:
        layer: not of a subclass.
        x: [1, N, C].
        state: of the layer.

    Returns:
        [1, N, C]; None, and nothing is added: its modules are to compute it.
    """
    if not _computes(x, state):
        return None
    memory = state.self_attention
    if memory not in _steps:
        _steps[memory] = LayerStep.of(layer, state)
    step = _steps[memory]
    return None if step is None or not step.is_searching() else step(x, state)


def _computes(x: Tensor, state: LayerState) -> bool:
    own, source = state.self_attention, state.cross_attention
    return (
        x.size(0) == 1
        and x.size(1) > 0
        and x.dtype == torch.float32
        and computes(x)
        and not torch.is_autocast_enabled("cpu")
        and own.method is KV
        and (source is None or source.method is KV)
        and isinstance(own.generated, GrowingMemory)
        and (own.window is None or own.prompt is None)
    )


class LayerStep:
    """Steps of one layer in one search."""

    def __init__(self, layer: _Layer, kept: list, linear: nn.Linear):
        """
        Args:
            layer: as the kernel reads it.
            kept: what the addresses there are of.
            linear: one of the linear layers.
        """
        self._layer = layer
        self._kept = kept
        self._linear = linear
        self._shared: WeakKeyDictionary[SentenceMemory, tuple] = WeakKeyDictionary()

    @classmethod
    def of(cls, layer: DecoderLayer, state: LayerState) -> LayerStep | None:
        """None: the kernel does not compute this layer."""
        source = None if state.cross_attention is None else layer.encoder_attn
        attentions = [attention for attention in (layer.self_attn, source) if attention is not None]
        if not (
            all(type(each) is Attention for each in attentions)
            and layer.activation in kernels.ACTIVATIONS[1:]
            and layer.ffn_top_k is None
            and all(getattr(layer, name, None) is None for name in ("c_attn", "attn_ln", "ffn_layernorm", "w_resid"))
            and all(map(_is_plain, list(layer.modules())[1:]))  # the layer itself is called as it is
            and all(type(each) is FairseqDropout for each in (layer.dropout_module, layer.activation_dropout_module))
            and not layer.training
            and not vars(layer).keys() & REPLACEABLE
        ):
            return None
        found = _Arguments()
        arguments = _Layer(
            found.attention(layer.self_attn, layer.self_attn_layer_norm, projects=True),
            found.attention(source, getattr(layer, "encoder_attn_layer_norm", None)),
            found.norm(layer.final_layer_norm),
            found.linear(layer.fc1),
            found.linear(layer.fc2),
            kernels.gelu_table().data_ptr(),
            layer.embed_dim,
            kernels.ACTIVATIONS.index(layer.activation),
            layer.normalize_before,
            MOST_INNER_NUMBERS,
        )
        return cls(arguments, found.kept, layer.fc1) if found.are_known else None

    def is_searching(self) -> bool:
        """Whether the search still runs. After it, the layer may get other weights."""
        return is_in_search(self._linear)

    def __call__(self, x: Tensor, state: LayerState) -> Tensor:
        """As `compute`.

        Raises:
            ValueError: hypotheses that do not belong to the sentences of the state.
        """
        attention, memory = self._layer.self_attention, state.self_attention
        hypotheses = x.size(1)
        prompt = self._shared_argument(memory.prompt, attention, hypotheses) or Shared(sequences=hypotheses)
        source = self._shared_argument(state.cross_attention, self._layer.source, hypotheses) or Shared()
        shape = x.new_empty(1).expand(hypotheses, attention.kv_heads, 1, attention.width)
        memory.generated.reserve(shape, shape)
        stretch = memory.generated.read_unmoved()
        own = own_argument(*stretch.tensors, stretch.rows, hypotheses, attention.width)
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

    def _shared_argument(self, memory: SentenceMemory | None, attention: _Attention, hypotheses: int) -> Shared | None:
        """Made anew when sentences have left."""
        if memory is None:
            return None
        tensors, mask, argument = self._shared.get(memory, (None, None, None))
        if tensors is not memory.tensors or mask is not memory.mask:
            [stretch] = memory.read()
            argument = shared_argument(*stretch.tensors, stretch.mask, attention.kv_heads, attention.width)
            self._shared[memory] = memory.tensors, memory.mask, argument
        check_counts(hypotheses, attention.heads, argument.sequences, attention.kv_heads)
        return argument


def working_bytes(layer: DecoderLayer, hypotheses: int, is_int8: bool) -> int:
    """Bytes of what a step holds beside its input and the state: its output, and what is computed on the way."""
    sizes = _Layer(
        _sizes_of(layer.self_attn),
        _sizes_of(layer.encoder_attn),
        inner=kernels.Linear(offset=is_int8, outputs=layer.fc1.out_features),  # any address tells that it is int8
        width=layer.embed_dim,
        normalizes_before=layer.normalize_before,
        inner_numbers=MOST_INNER_NUMBERS,
    )
    output = hypotheses * layer.embed_dim * torch.float32.itemsize
    return output + native.loaded().elseq_layer_step_bytes(ctypes.byref(sizes), hypotheses)


def _sizes_of(attention: Attention | None) -> _Attention:
    """All that the size of what is computed on the way depends on."""
    if attention is None:
        return _Attention()
    return _Attention(heads=attention.num_heads, kv_heads=attention.num_kv_heads, width=attention.head_dim)


def _is_plain(module: nn.Module) -> bool:
    """Whether it computes what its class does, and drops nothing."""
    is_dropping = module.training or getattr(module, "apply_during_inference", False)
    return is_unhooked(module) and not is_dropping


class _Arguments:
    """The parts of a layer as the kernel reads them."""

    def __init__(self):
        self.are_known = True
        self.kept = []

    def linear(self, linear: nn.Linear) -> kernels.Linear:
        product = linear.product() if is_in_search(linear) else None
        if not isinstance(product, KernelProduct):
            self.are_known = False
            return kernels.Linear()
        self.kept.append(product)
        return product.for_kernel()

    def norm(self, norm: nn.Module) -> _Norm:
        self.are_known &= type(norm) is nn.LayerNorm and all(
            parameter is None or parameter.dtype == torch.float32 and parameter.is_contiguous()
            for parameter in (norm.weight, norm.bias)
        )
        if not self.are_known:
            return _Norm()
        parameters = [None if each is None else each.detach() for each in (norm.weight, norm.bias)]
        self.kept.append(parameters)
        return _Norm(*(None if each is None else each.data_ptr() for each in parameters), norm.eps)

    def attention(self, of: Attention | None, norm: nn.Module, projects: bool = False) -> _Attention:
        """projects: whether keys and values are of the same input as the query."""
        if of is None:
            return _Attention()
        projections = of.q_proj, of.k_proj if projects else None, of.v_proj if projects else None, of.out_proj
        linears = [kernels.Linear() if each is None else self.linear(each) for each in projections]
        sizes = of.num_heads, of.num_kv_heads, of.head_dim
        return _Attention(self.norm(norm), *linears, of.scaling, *sizes, counted(of.top_k))
