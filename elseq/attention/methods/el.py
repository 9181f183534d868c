"""EL-attention (2105.04779): multi-head attention that reads the hidden states instead of keys and values.

A head's score for hidden state h is q . (W_k h) = (W_k^T q) . h, and its output is W_v applied to the weighted mean of
the hidden states. So the query is expanded to the width of the hidden states, and these serve as the keys and the
values of every head: multi-query attention whose only key and value is the memory itself.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from elseq.attention.kernels.el_step import el_step, working_bytes
from elseq.attention.memory import Stretch
from elseq.attention.methods.method import AttentionSizes, DecodingMethod, is_plain_step
from elseq.attention.multi_head import WIDEST_FUSED_HEAD, Segment, has_step_kernel, multi_head_attention


class HiddenStates(DecodingMethod):
    """Keeps hidden states [N, S, D], those of the source once for all layers, and expands the query."""

    name = "el"
    help = "hidden states are cached"
    shares_memory = True
    projects_memory = False
    reads_rounded = True

    def keep(self, attention, hidden: Tensor) -> tuple[Tensor, ...]:
        return (hidden.transpose(0, 1),)

    def attend(self, attention, query: Tensor, memory: Sequence[Stretch], **options) -> tuple[Tensor, Tensor | None]:
        key_weight, _ = attention.projection("key")
        weights = key_weight, *attention.projection("value")
        *prompts, last = memory
        [hidden] = last.tensors
        if last.rows is not None:
            prompt = (*prompts[0].tensors, prompts[0].mask) if prompts else None
            return el_step(query, *weights, prompt, (hidden, last.rows), options.get("top_k")), None
        # Autocast narrows the query, not the weights.
        is_plain = last.ancestry is None and not prompts and key_weight.dtype == query.dtype
        if is_plain and self.has_cpu_kernel(query, hidden.size(1), **options):
            return el_step(query, *weights, (hidden, last.mask), None, options.get("top_k")), None
        return el_attention(query, _hidden(memory), *weights, **options)

    def has_cpu_kernel(self, query: Tensor, shared: int = 0, *, top_k: int | None = None, **options) -> bool:
        # In bfloat16 oneDNN's products are as fast, but not the choice of the largest scores. A subclass may attend in
        # its own way, or keep something else.
        is_faster = query.dtype == torch.float32 or top_k is not None and top_k < shared
        return type(self) is HiddenStates and is_faster and is_plain_step(query, **options)

    def has_step_kernel(self, sizes, like: Tensor, hypotheses: int, positions: int, ancestry=None, prompt=()) -> bool:
        number = like.new_empty(1)  # only the shapes count
        query = number.expand(hypotheses, sizes.num_heads, 1, sizes.memory_width)
        own = Stretch((number.expand(hypotheses, positions, sizes.memory_width),), ancestry=ancestry)
        segments = [_segment(*each) for each in _hidden([*prompt, own])]
        return type(self) is HiddenStates and has_step_kernel(query, segments)

    def numbers_kept(self, sizes: AttentionSizes) -> int:
        return sizes.memory_width

    def operations(self, sizes: AttentionSizes) -> int:
        return 4 * sizes.num_heads * sizes.memory_width

    def bytes_of_cpu_kernel(self, sizes: AttentionSizes, hypotheses: int, positions: int, top_k: int | None) -> int:
        return working_bytes(hypotheses * sizes.num_heads, sizes.memory_width, positions, top_k)

    def numbers_of_step(self, sizes: AttentionSizes, shared: int, own: int) -> int:
        if shared and own:  # two results, and their sum
            return sizes.num_heads * (4 * sizes.memory_width + 2 * (shared + own))
        scores = 2 * (shared + own) if sizes.memory_width > WIDEST_FUSED_HEAD else 0
        return sizes.num_heads * (2 * sizes.memory_width + scores)


EL = HiddenStates()


def el_attention(
    query: Tensor,
    hidden: Sequence[tuple[Tensor | None, ...]],
    key_weight: Tensor,
    value_weight: Tensor,
    value_bias: Tensor | None = None,
    *,
    dropout: float = 0.0,
    **options,
) -> tuple[Tensor, Tensor | None]:
    """Multi-head attention, evaluated without keys and values.

    The bias of the key projection is not needed: it adds the same number to every score of a query.

    Args:
        query: [N, H, T, K], projected and scaled: N sequences, H heads, T positions, K width of a head.
        hidden: one tuple per segment: the hidden states [M, S, D] (M divides N, S positions of width D), a mask, and
            optionally an ancestry; see `Segment`.
        key_weight: [G K, D], as `nn.Linear` stores it: G key/value heads.
        value_weight: [G K, D].
        value_bias: [G K] or None.
        dropout, options: as for `multi_head_attention`.

    Returns:
        [N, H, T, K], and the weights [N, H, T, S] or None.
    """
    heads, head_dim = query.size(1), query.size(3)
    segments = [_segment(*each) for each in hidden]
    if dropout > 0:
        # With dropout the weights do not sum to one. A column of ones in the values gives their sum for the bias below.
        segments = [segment._replace(value=F.pad(segment.value, (0, 1), value=1.0)) for segment in segments]
    context, weights = multi_head_attention(
        _per_head(query, key_weight.view(-1, head_dim, key_weight.size(1))),
        segments,
        dropout=dropout,
        **options,
    )
    mass = None
    if dropout > 0:
        context, mass = context[..., :-1], context[..., -1:]
    output = _per_head(context, value_weight.view(-1, head_dim, value_weight.size(1)).transpose(1, 2))
    if value_bias is not None:
        bias = value_bias.view(-1, 1, head_dim).repeat_interleave(heads * head_dim // value_bias.numel(), dim=0)
        output = output + (bias if mass is None else mass * bias)
    return output, weights


def _hidden(memory: Sequence[Stretch]) -> list[tuple]:
    """As for `el_attention`."""
    return [(*stretch.tensors, stretch.mask, stretch.ancestry) for stretch in memory]


def _segment(hidden: Tensor, *more) -> Segment:
    states = hidden.unsqueeze(1)
    return Segment(states, states, *more)  # one object: see `flash_decoding`


def _per_head(rows: Tensor, weight: Tensor) -> Tensor:
    """[N, H, T, X] times [G, X, Y], head h with weight h // (H / G), to [N, H, T, Y]."""
    sequences, heads, length, width = rows.shape
    by_weight = rows.transpose(0, 1).reshape(weight.size(0), -1, width)
    return torch.bmm(by_weight, weight).view(heads, sequences, length, -1).transpose(0, 1)
