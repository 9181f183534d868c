"""The attention layer: its parameters, and the forward pass in training, scoring and decoding."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from elseq.attention.memory import SelfAttentionMemory, SentenceMemory
from elseq.attention.methods import AttentionSizes
from elseq.attention.multi_head import Segment, multi_head_attention


class Attention(nn.Module):
    """Multi-head attention with fairseq's parameters (names, shapes, initial values) and elseq's decoding methods.

    Training, teacher forcing and the encoder use it as an ordinary layer. In decoding, the method of the given memory
    decides the order of the products: `kv` projects once and keeps keys and values, `el` keeps the hidden states and
    expands the query (2105.04779). The parameters and the result are the same.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        kdim: int | None = None,
        vdim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        self_attention: bool = False,
        encoder_decoder_attention: bool = False,
        head_dim: int | None = None,
        window: int | None = None,
        top_k: int | None = None,
        query_chunk_size: int | None = None,
    ):
        """
        Args:
            embed_dim: width of the query and of the output.
            num_heads: number of query heads.
            num_kv_heads: number of key/value heads; divides num_heads. Default: num_heads.
            kdim, vdim: width of key and value. Default: embed_dim.
            bias: whether the projections have biases.
            dropout: probability with which an attention weight is dropped in training.
            self_attention: whether key and value are the query.
            encoder_decoder_attention: whether key and value are one tensor, which is not the query.
            head_dim: width of a head. Default: embed_dim / num_heads.
            window: in causal self-attention a position sees itself and the window - 1 before it (the local attention of
                1911.02150, section 4.1). Default: all before it.
            top_k: a query attends only to its k largest scores (2106.06899). Default: to all.
            query_chunk_size: queries that top-k attention evaluates together. Default: see `top_k_attention`.

        Raises:
            ValueError: a number of heads that does not divide, another number below 1, a window without
                self-attention, or a self-attention with kdim or vdim of its own.
        """
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        kdim = embed_dim if kdim is None else kdim
        vdim = embed_dim if vdim is None else vdim
        if num_heads < 1 or head_dim is None and embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        for name, number in (("head_dim", head_dim), ("top_k", top_k), ("query_chunk_size", query_chunk_size)):
            if number is not None and number < 1:
                raise ValueError(f"{name} {number} is below 1")
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError(f"num_heads {num_heads} is not a multiple of num_kv_heads {num_kv_heads}")
        if self_attention and (kdim, vdim) != (embed_dim, embed_dim):
            raise ValueError("self-attention needs kdim and vdim equal to embed_dim")
        if window is not None and (window < 1 or not self_attention):
            raise ValueError(f"window {window}: only self-attention has one, of 1 position or more")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.window = window
        self.top_k = top_k
        self.query_chunk_size = query_chunk_size
        self.scaling = self.head_dim**-0.5
        self.self_attention = self_attention
        self.encoder_decoder_attention = encoder_decoder_attention
        # The order is fairseq's, because an optimizer's state refers to parameters by number.
        self.k_proj = nn.Linear(kdim, num_kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(vdim, num_kv_heads * self.head_dim, bias=bias)
        self.q_proj = nn.Linear(embed_dim, num_heads * self.head_dim, bias=bias)
        self.out_proj = nn.Linear(num_heads * self.head_dim, embed_dim, bias=bias)
        self.dropout_module = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weights. Those of query, key and value are initialized as one matrix if the widths allow."""
        same_width = self.k_proj.in_features == self.v_proj.in_features == self.embed_dim
        gain = 1 / math.sqrt(2) if same_width else 1.0
        for projection in (self.k_proj, self.v_proj, self.q_proj):
            nn.init.xavier_uniform_(projection.weight, gain=gain)
        nn.init.xavier_uniform_(self.out_proj.weight)
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """fairseq calls this before it loads a checkpoint. `name` is the name of this layer."""
        split_joint_projections(state_dict, name)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        need_head_weights: bool = False,
        *,
        causal: bool = False,
        memory: SelfAttentionMemory | SentenceMemory | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to key and value or, in decoding, to the memory.

        Args:
            query: [T, N, C]: T positions, N sequences, C = embed_dim.
            key: [S, N, kdim]; unused in self-attention and with a memory.
            value: [S, N, vdim]; unused in self-attention, in encoder-decoder attention and with a memory.
            key_padding_mask: bool [N, S], True at padding; unused with a memory.
            need_weights: return the attention weights, averaged over the heads.
            attn_mask: [T, S], bool (True: not attended to) or added to the scores (-inf: not attended to; other
                values but 0 are refused); unused with a memory.
            need_head_weights: return the attention weights of each head.
            causal: position t does not see beyond position t of the key.
            memory: of former positions, to which self-attention appends the T new ones, or of the source.

        Returns:
            [T, N, C], and the weights: None, [N, T, S], or [H, N, T, S] with need_head_weights.

        Raises:
            ValueError: an additive attn_mask with other values than 0 and -inf.
        """
        projected = self._split(self.q_proj(query) * self.scaling, self.num_heads)
        options = {
            "top_k": self.top_k,
            "query_chunk_size": self.query_chunk_size,
            "dropout": self._dropout(),
            "need_weights": need_weights or need_head_weights,
        }
        if memory is not None:
            context, weights = memory.attend(self, query, projected, **options)
        else:
            key = query if self.self_attention else key
            value = query if self.self_attention else key if self.encoder_decoder_attention else value
            mask = _join_masks(key_padding_mask, attn_mask)
            segment = Segment(*self.keys_and_values(key, value), mask)
            context, weights = multi_head_attention(projected, [segment], causal=causal, window=self.window, **options)
        output = self.out_proj(context.permute(2, 0, 1, 3).flatten(start_dim=2))
        if weights is None:
            return output, None
        return output, weights.transpose(0, 1) if need_head_weights else weights.mean(dim=1)

    def keys_and_values(self, key: Tensor, value: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Project key and value [S, N, D] to [N, G, S, K] each. value: default: key."""
        value = key if value is None else value
        return tuple(self._split(projected, self.num_kv_heads) for projected in (self.k_proj(key), self.v_proj(value)))

    def projection(self, of: Literal["key", "value"]) -> tuple[Tensor, Tensor | None]:
        """Weight [G K, D] and bias [G K] or None, for methods that evaluate the products in another order."""
        linear = self.k_proj if of == "key" else self.v_proj
        return linear.weight, linear.bias

    @property
    def sizes(self) -> AttentionSizes:
        return AttentionSizes(self.num_heads, self.head_dim, self.num_kv_heads, self.k_proj.in_features)

    def _split(self, projected: Tensor, heads: int) -> Tensor:
        """[T, N, heads K] to [N, heads, T, K]."""
        length, sequences, _ = projected.shape
        return projected.view(length, sequences, heads, self.head_dim).permute(1, 2, 0, 3)

    def _dropout(self) -> float:
        dropout = self.dropout_module
        active = self.training or getattr(dropout, "apply_during_inference", False)
        return dropout.p if active else 0.0


def split_joint_projections(state_dict: dict[str, Tensor], name: str) -> None:
    """fairseq before 0.9 stored the query, key and value projections of self-attention as one: [3 C, C], bias [3 C]."""
    for part in ("weight", "bias"):
        joint = state_dict.pop(f"{name}.in_proj_{part}", None)
        if joint is not None:
            for kind, projection in zip("qkv", joint.chunk(3), strict=True):
                state_dict[f"{name}.{kind}_proj.{part}"] = projection


def _join_masks(key_padding_mask: Tensor | None, attn_mask: Tensor | None) -> Tensor | None:
    """bool [N or 1, T or 1, S] or None."""
    masks = []
    if key_padding_mask is not None:
        masks.append(key_padding_mask.bool().unsqueeze(1))
    if attn_mask is not None:
        excluded = attn_mask
        if attn_mask.dtype != torch.bool:
            # fairseq's encoder layer writes -1e8 (or -1e4) for "not attended to".
            excluded = attn_mask <= -1e4
            if bool((attn_mask[~excluded] != 0).any()):
                raise ValueError("attn_mask may exclude positions, not weigh them: values other than 0 and -inf found")
        masks.append(excluded.unsqueeze(0))
    return None if not masks else masks[0] if len(masks) == 1 else masks[0] | masks[1]
