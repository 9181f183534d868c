"""Encoder and decoder layers: fairseq's parameters and order of operations around `elseq.attention.Attention`."""

import torch
import torch.nn.functional as F
from fairseq import utils
from fairseq.modules import transformer_layer
from fairseq.modules.fairseq_dropout import FairseqDropout
from fairseq.modules.quant_noise import quant_noise
from torch import Tensor, nn

from elseq.attention import Attention, LayerState
from elseq.attention.top_k import top_k_feed_forward
from elseq.models import layer_step
from elseq.models.config import SWISH, num_kv_heads
from elseq.models.layer_step import MOST_INNER_NUMBERS
from elseq.precision import activated


def build_attention(cfg, where: str, embed_dim: int, num_heads: int, **options) -> Attention:
    """An `Attention` for encoder, decoder or cross-attention, with fairseq's quantization noise and dropout at
    inference."""
    attention = Attention(
        embed_dim,
        num_heads,
        num_kv_heads(cfg, where),
        head_dim=getattr(cfg, "head_dim", None),
        window=getattr(cfg, "local_attention_radius", None) if where == "decoder" else None,
        top_k=getattr(cfg, "attention_top_k", None) or None,
        query_chunk_size=getattr(cfg, "query_chunk_size", None),
        **options,
    )
    # The name for --retain-dropout-modules.
    attention.dropout_module = FairseqDropout(cfg.attention_dropout, module_name="MultiheadAttention")
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        projection = getattr(attention, name)
        setattr(attention, name, quant_noise(projection, cfg.quant_noise.pq, cfg.quant_noise.pq_block_size))
    return attention


# The widest activations of a layer. Without gradients they are overwritten to save memory.
IN_PLACE = {"relu": torch.relu_, "gelu": torch.ops.aten.gelu_}


class Activation:
    """fairseq's activation function of some name, or swish. Without gradients it may overwrite its input."""

    def __init__(self, name: str):
        self.name = name
        # fairseq has the class of a module for swish.
        self._function = F.silu if name == SWISH else utils.get_activation_fn(name)
        self._in_place = IN_PLACE.get(name, self._function)

    def __call__(self, x: Tensor) -> Tensor:
        return self._function(x) if torch.is_grad_enabled() else self._in_place(x)

    def __reduce__(self):
        """By the name: fairseq's function may have none."""
        return type(self), (self.name,)


def name_dropout(module: nn.Module, stock_class: str) -> None:
    """Name a module's dropout after the stock class, so that --retain-dropout-modules finds it."""
    for child in module.children():
        if isinstance(child, FairseqDropout):
            child.module_name = stock_class


class FeedForwardLayer:
    """The feed-forward part of a layer: a base class to list before fairseq's layer."""

    def configure_feed_forward(self, cfg) -> None:
        self.activation_fn = Activation(cfg.activation_fn)
        self.ffn_top_k = getattr(cfg, "ffn_top_k", None) or None
        self.ffn_chunk_size = getattr(cfg, "ffn_chunk_size", None)

    @property
    def activation(self) -> str | None:
        """fairseq's name of the activation function; None: another was put in its place."""
        return self.activation_fn.name if isinstance(self.activation_fn, Activation) else None

    def feed_forward(self, x: Tensor) -> Tensor:
        """[T, N, C] to [T, N, C]."""
        if self.ffn_top_k is not None and self.ffn_top_k < self.fc1.out_features:
            weights = self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias
            return top_k_feed_forward(x, *weights, self.ffn_top_k, self.activation, chunk_size=self.ffn_chunk_size)
        rows = max(1, MOST_INNER_NUMBERS // self.fc1.out_features)
        if not x.is_cpu or torch.is_grad_enabled() or x.size(0) * x.size(1) <= rows:
            return self._feed_forward(x)
        output = torch.empty_like(x, memory_format=torch.contiguous_format)
        for block, into in zip(
            x.reshape(-1, x.size(2)).split(rows), output.view(-1, x.size(2)).split(rows), strict=True
        ):
            into.copy_(self._feed_forward(block))
        return output

    def _feed_forward(self, x: Tensor) -> Tensor:
        x = self.activation_dropout_module(activated(self.fc1, x, self.activation, self.activation_fn))
        if getattr(self, "ffn_layernorm", None) is not None:  # decoder layers only
            x = self.ffn_layernorm(x)
        return self.fc2(x)


class EncoderLayer(FeedForwardLayer, transformer_layer.TransformerEncoderLayerBase):
    """fairseq's encoder layer with our attention."""

    def __init__(self, cfg, return_fc=False):
        super().__init__(cfg, return_fc)
        self.configure_feed_forward(cfg)
        name_dropout(self, "TransformerEncoderLayerBase")

    def build_self_attention(self, embed_dim, cfg):
        return build_attention(cfg, "encoder", embed_dim, cfg.encoder.attention_heads, self_attention=True)

    def forward(self, x: Tensor, encoder_padding_mask: Tensor | None, attn_mask: Tensor | None = None):
        """
        Args:
            x: [S, N, C]: S source positions, N sentences, C the encoder's width.
            encoder_padding_mask: bool [N, S], True at padding, or None.
            attn_mask: bool [S, S], True where a position does not attend to another, or None.

        Returns:
            [S, N, C]; with `return_fc` also the output of the feed-forward part.
        """
        residual = x
        if self.normalize_before:
            x = self.self_attn_layer_norm(x)
        attn_mask = None if attn_mask is None else attn_mask.bool()
        x, _ = self.self_attn(x, key_padding_mask=encoder_padding_mask, need_weights=False, attn_mask=attn_mask)
        x = self.residual_connection(self.dropout_module(x), residual)
        if not self.normalize_before:
            x = self.self_attn_layer_norm(x)

        residual = x
        if self.normalize_before:
            x = self.final_layer_norm(x)
        fed_forward = self.feed_forward(x)
        x = self.residual_connection(self.dropout_module(fed_forward), residual)
        if not self.normalize_before:
            x = self.final_layer_norm(x)
        return (x, fed_forward) if self.return_fc else x


class DecoderLayer(FeedForwardLayer, transformer_layer.TransformerDecoderLayerBase):
    """fairseq's decoder layer with our attention. Its memory is an explicit argument, not a dictionary."""

    def __init__(self, cfg, no_encoder_attn=False):
        super().__init__(cfg, no_encoder_attn)
        self.configure_feed_forward(cfg)
        name_dropout(self, "TransformerDecoderLayerBase")

    def build_self_attention(self, embed_dim, cfg, add_bias_kv=False, add_zero_attn=False):
        return build_attention(cfg, "decoder", embed_dim, cfg.decoder.attention_heads, self_attention=True)

    def build_encoder_attention(self, embed_dim, cfg):
        return build_attention(
            cfg,
            "cross",
            embed_dim,
            cfg.decoder.attention_heads,
            kdim=cfg.encoder.embed_dim,
            vdim=cfg.encoder.embed_dim,
            encoder_decoder_attention=True,
        )

    def forward(
        self,
        x: Tensor,
        encoder_out: Tensor | None = None,
        encoder_padding_mask: Tensor | None = None,
        self_attn_padding_mask: Tensor | None = None,
        causal: bool = True,
        need_weights: bool = False,
        state: LayerState | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """One layer, over whole texts (teacher forcing) or, given a state, over the tokens that follow it.

        Args:
            x: [T, N, C]: T tokens, N sequences, C the decoder's width.
            encoder_out: [S, N, D]: S source positions, D the encoder's width; unused with a state.
            encoder_padding_mask: [N, S], true at padding; unused with a state.
            self_attn_padding_mask: [N, T], true at padding; unused with a state.
            causal: whether a token sees only itself and those before it; with a state it always does.
            need_weights: return the weights of the attention to the encoder, of each head.
            state: the state of this layer, which grows by T positions.

        Returns:
            [T, N, C], and [H, N, T, S] or None.
        """
        if state is not None and not need_weights and type(self) is DecoderLayer:  # a subclass may do otherwise
            output = layer_step.compute(self, x, state)
            if output is not None:
                return output, None
        residual = x
        if self.normalize_before:
            x = self.self_attn_layer_norm(x)
        x, _ = self.self_attn(
            x,
            key_padding_mask=self_attn_padding_mask,
            need_weights=False,
            causal=causal,
            memory=None if state is None else state.self_attention,
        )
        if self.c_attn is not None:
            x = (x.view(*x.shape[:2], self.nh, self.head_dim) * self.c_attn.unsqueeze(-1)).view_as(x)
        if self.attn_ln is not None:
            x = self.attn_ln(x)
        x = self.residual_connection(self.dropout_module(x), residual)
        if not self.normalize_before:
            x = self.self_attn_layer_norm(x)

        weights = None
        cross_attention = None if state is None else state.cross_attention
        if self.encoder_attn is not None and (encoder_out is not None or cross_attention is not None):
            residual = x
            if self.normalize_before:
                x = self.encoder_attn_layer_norm(x)
            x, weights = self.encoder_attn(
                x,
                key=encoder_out,
                key_padding_mask=encoder_padding_mask,
                need_weights=False,
                need_head_weights=need_weights,
                memory=cross_attention,
            )
            x = self.residual_connection(self.dropout_module(x), residual)
            if not self.normalize_before:
                x = self.encoder_attn_layer_norm(x)

        residual = x
        if self.normalize_before:
            x = self.final_layer_norm(x)
        x = self.dropout_module(self.feed_forward(x))
        if self.w_resid is not None:
            residual = torch.mul(self.w_resid, residual)
        x = self.residual_connection(x, residual)
        if not self.normalize_before:
            x = self.final_layer_norm(x)
        return x, weights
