"""Scaled dot-product attention with full, grouped or single key/value heads, over keys that hypotheses share."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from elseq.attention.ancestry import Ancestry
from elseq.attention.kernels import flash_decoding
from elseq.attention.kernels.decode_step import attend_to_texts, computes_texts
from elseq.attention.top_k import MOST_CONVERTED, keep_largest, top_k_attention

# The fused kernels of PyTorch are optimized for narrow heads. For wider ones (with EL-attention as wide as the model)
# two matrix products are faster.
WIDEST_FUSED_HEAD = 256


class Segment(NamedTuple):
    """A stretch of keys and values, stored once for M sequences and attended to by N queries, M dividing N.

    The queries of one sequence are adjacent: query n attends to sequence n // (N / M). In this way the hypotheses of a
    sentence share its memory without a copy. Keys and values are read in the type of the query; narrower ones are
    converted where they are read.

    With an ancestry M is N, and one query of each hypothesis attends to positions in all rows of its sentence. A mask
    then has one row for all, or one for each sentence.
    """

    key: Tensor  # [M, G, S, K]: M sequences, G key/value heads, S positions, K width of a key
    value: Tensor  # [M, G, S, V]: V width of a value
    mask: Tensor | None = None  # bool [M or 1, T or 1, S], T queries per sequence: True is not attended to
    ancestry: Ancestry | None = None

    @property
    def sequences(self) -> int:
        """M, or with an ancestry sentences."""
        return self.key.size(0) // (1 if self.ancestry is None else self.ancestry.beam)


def multi_head_attention(
    query: Tensor,
    segments: Sequence[Segment],
    *,
    causal: bool = False,
    window: int | None = None,
    dropout: float = 0.0,
    need_weights: bool = False,
    top_k: int | None = None,
    query_chunk_size: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attend to all segments under one softmax.

    Head h of the query uses key/value head h // (H / G). G = H is multi-head attention, G = 1 is multi-query attention
    (1911.02150, section 3), and other G are grouped-query attention (2305.13245).

    Args:
        query: [N, H, T, K], already scaled: N sequences, H heads, T positions, K width of a key.
        segments: keys and values, S positions in total. The M of each divides N, its G divides H.
        causal: position t of the query does not see beyond position S' - T + t of the last segment, S' its length.
        window: with causal, it sees at most window - 1 positions of that segment before it.
        dropout: probability with which a weight is dropped (the others grow by 1 / (1 - dropout)).
        need_weights: also return the weights, as they are before dropout.
        top_k: each query attends only to its k largest scores (2106.06899). Default: to all.
        query_chunk_size: see `top_k_attention`, which evaluates several queries at once.

    Returns:
        [N, H, T, V], and the weights [N, H, T, S] or None.
    """
    if top_k is not None and top_k >= sum(segment.key.size(2) for segment in segments):
        top_k = None
    is_plain = top_k is None and not causal and not dropout and not need_weights
    if is_plain and has_step_kernel(query, segments):
        return flash_decoding.flash_decoding(query, segments), None
    is_single = len(segments) == 1 and not need_weights
    if top_k is not None and is_single and query.size(2) > 1:
        key, value, mask, *_ = segments[0]
        options = {"mask": mask, "causal": causal, "window": window, "dropout": dropout}
        return top_k_attention(query, key, value, top_k, query_chunk_size=query_chunk_size, **options), None
    if causal:
        keys, length = segments[-1].key.size(2), query.size(2)
        everything = keys == length > 1 and (window is None or window >= length)
        is_of_queries = segments[0].mask is None and segments[0].key.size(0) == query.size(0)
        if top_k is None and is_single and everything and is_of_queries and _is_fused(query, segments[0]):
            return _fused(query, segments[0], dropout, causal=True), None
        segments = [*segments[:-1], _with_causal_mask(segments[-1], length, window)]
    return _by_torch(query, segments, dropout, need_weights, top_k)


def has_step_kernel(query: Tensor, segments: Sequence[Segment]) -> bool:
    """Whether a GPU has a kernel for `multi_head_attention` of one position of each hypothesis without options. It does
    not read what a mask hides at the ends, and moves nothing by an ancestry."""
    return flash_decoding.computes(query, segments, _by_torch)


def _by_torch(
    query: Tensor,
    segments: Sequence[Segment],
    dropout: float = 0.0,
    need_weights: bool = False,
    top_k: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`multi_head_attention` by operations of torch, with masks for all that is not attended to. top_k is below the
    number of positions."""
    segments = [_moved(segment) for segment in segments]
    if len(segments) == 1 and not need_weights and top_k is None and _is_fused(query, segments[0]):
        return _fused(query, segments[0], dropout), None
    scores = [_ungroup(_scores(query, segment), query) for segment in segments]
    scores = scores[0] if len(scores) == 1 else torch.cat(scores, dim=-1)
    if top_k is not None:
        scores = keep_largest(scores, top_k)
    # Softmax computes in float32 or wider. Returned weights have that type, too.
    wide = torch.promote_types(query.dtype, torch.float32) if need_weights or dropout > 0 else query.dtype
    weights = torch.softmax(scores, dim=-1, dtype=wide)
    probabilities = F.dropout(weights, dropout) if dropout > 0 else weights
    pieces = probabilities.to(query.dtype).split([segment.key.size(2) for segment in segments], dim=-1)
    context = [_mix(piece, segment) for piece, segment in zip(pieces, segments, strict=True)]
    return sum(context[1:], start=context[0]), weights if need_weights else None


def _moved(segment: Segment) -> Segment:
    """Without ancestry."""
    key, value, _, ancestry = segment
    if ancestry is None:
        return segment
    moved = ancestry.move(key)
    return segment._replace(key=moved, value=moved if value is key else ancestry.move(value), ancestry=None)


def _is_fused(query: Tensor, segment: Segment) -> bool:
    """Whether PyTorch's fused attention is to be used. Keys with the positions in the last dimension, as in
    `SentenceMemory`, are laid out for matrix products."""
    return query.size(-1) <= WIDEST_FUSED_HEAD and segment.key.stride(-1) == 1


def _fused(query: Tensor, segment: Segment, dropout: float, causal: bool = False) -> Tensor:
    key, value = segment.key.to(query.dtype), segment.value.to(query.dtype)
    mask = segment.mask
    if key.size(0) == query.size(0) and query.size(2) > 1:
        if not causal and not dropout and computes_texts(query, key, value, mask):
            return attend_to_texts(query, key, value, mask)
        # Whole texts: the kernel itself handles heads that share a key.
        mask = None if mask is None else ~mask.unsqueeze(1)
        shared = key.size(1) != query.size(1)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, dropout_p=dropout, scale=1.0, enable_gqa=shared
        )
    rows = _group(query, segment)
    if mask is not None:
        mask = ~_spread_mask(mask, rows.size(2) // query.size(2))
    context = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask, dropout_p=dropout, scale=1.0)
    return _ungroup(context, query)


def fused_workspace_bytes(length: int, keys: int, width: int, itemsize: int) -> int:
    """What PyTorch's fused attention on a CPU computes in: each thread has the scores, their maxima and sums, and the
    result of a block of queries, in float32 at least, and the weights in a narrower type.

    Args:
        length: queries of a head.
        keys: positions that they attend to.
        width: of a head.
        itemsize: bytes of a number of the query.
    """
    queries = min(length, 256 if length >= 768 else 64 if length >= 192 else 32)
    positions, wide = min(keys, 512), max(itemsize, torch.float32.itemsize)
    weights = positions * itemsize if itemsize < wide else 0
    return torch.get_num_threads() * queries * ((positions + 2 + width) * wide + weights)


def _scores(query: Tensor, segment: Segment) -> Tensor:
    """As `_group` orders the rows: [M, G, (N/M)(H/G)T, S]."""
    rows = _group(query, segment)
    scores = _products(rows, segment.key.transpose(-1, -2))
    if segment.mask is not None:
        scores.masked_fill_(_spread_mask(segment.mask, rows.size(2) // query.size(2)), float("-inf"))
    return scores


def _products(rows: Tensor, keys: Tensor) -> Tensor:
    """[M, G, R, K] times [M, G, K, S]. Narrower keys are converted some positions at a time."""
    if keys.dtype == rows.dtype:
        if rows.shape[:2] == (1, 1):  # torch.matmul would copy the keys, be they of 262,144 positions
            return torch.bmm(rows[0], keys[0]).unsqueeze(0)
        return torch.matmul(rows, keys)
    products = rows.new_empty(*rows.shape[:-1], keys.size(-1))
    positions = block_positions(keys[..., 0].numel())
    for block, of in zip(products.split(positions, dim=-1), keys.split(positions, dim=-1), strict=True):
        block.copy_(torch.matmul(rows, of.to(rows.dtype)))
    return products


def block_positions(numbers: int) -> int:
    """How many positions of narrower keys are converted together; numbers: of all keys of a position."""
    return max(64, MOST_CONVERTED // max(1, numbers) // 64 * 64)


def _mix(probabilities: Tensor, segment: Segment) -> Tensor:
    values = segment.value.to(probabilities.dtype)
    return _ungroup(torch.matmul(_group(probabilities, segment), values), probabilities)


def _group(rows: Tensor, segment: Segment) -> Tensor:
    """[N, H, T, X] to [M, G, (N/M)(H/G)T, X]: one matrix of all rows that attend to the same keys."""
    queries, heads, length, width = rows.shape
    sequences, kv_heads = segment.key.shape[:2]
    if sequences == queries and kv_heads == heads:
        return rows
    return (
        rows.reshape(sequences, queries // sequences, kv_heads, heads // kv_heads * length, width)
        .transpose(1, 2)
        .reshape(sequences, kv_heads, -1, width)
    )


def _ungroup(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_group`: [M, G, (N/M)(H/G)T, X] to [N, H, T, X]."""
    queries, heads, length, _ = like.shape
    sequences, kv_heads, _, width = rows.shape
    if sequences == queries and kv_heads == heads:
        return rows
    return (
        rows.view(sequences, kv_heads, queries // sequences, heads // kv_heads * length, width)
        .transpose(1, 2)
        .reshape(queries, heads, length, width)
    )


def _spread_mask(mask: Tensor, repeats: int) -> Tensor:
    """[M, T or 1, S] to [M, 1, repeats * T or 1, S], for the rows of `_group`."""
    if mask.size(1) > 1:
        mask = mask.repeat(1, repeats, 1)
    return mask.unsqueeze(1)


def causal_mask(length: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """The keys that the last `length` positions do not attend to: bool [1, length, keys], or None if there are none.

    Args:
        window: a position sees itself and the window - 1 before it. Default: all before it.
    """
    within = window is None or window >= keys
    if length == 1 and within:
        return None
    unseen = torch.ones(length, keys, dtype=torch.bool, device=device).triu(keys - length + 1)
    if not within:
        unseen |= torch.ones_like(unseen).tril(keys - length - window)
    return unseen.unsqueeze(0)


def _with_causal_mask(segment: Segment, length: int, window: int | None) -> Segment:
    keys = segment.key.size(2)
    unseen = causal_mask(length, keys, window, segment.key.device)
    if segment.mask is None:
        return segment._replace(mask=unseen)
    # A padded position sees itself, because an empty softmax gives NaN, which would spread. Its output is not used.
    itself = torch.eye(length, keys, dtype=torch.bool, device=segment.key.device).roll(keys - length, dims=1)
    mask = segment.mask & ~itself
    return segment._replace(mask=mask if unseen is None else mask | unseen)
