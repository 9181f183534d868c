"""Top-k attention (2106.06899): each query attends to the keys of its k largest scores, in memory linear in length.

Attention and the feed-forward layer are one operation here, as in section 3 of the paper: compute the scores of all
keys, select the k largest, compute weights from them (softmax, or the activation), and sum the values with these
weights. In a feed-forward layer, the queries are its inputs, the keys the rows of its first matrix, and the values the
columns of its second.

Queries are evaluated in chunks. Only the scores of one chunk are in memory at a time. The backward pass keeps the k
scores of each query and their indices, and recomputes everything else. Selected rows are not copied: `embedding_bag`
sums weighted rows of a table, which gives the output from the values. Its gradient is that of the weights. The
gradients of keys and values are again weighted sums of rows, of the queries that selected a key. On a CPU, with 4096
keys, heads of width 64 and k = 128, this takes a fifteenth of the time of gathered copies and `index_add_`, and a
quarter of that of matrix products with the weights scattered into zeros. These products are used only if k is a large
part of the keys (see `LARGE_PART`), where they are faster.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from elseq.gpu import device_kind

# Number of queries of one key/value head evaluated together, on a CPU and elsewhere. Several heads are evaluated
# together up to this number of scores. Short chunks of causal attention skip most of the keys that they do not see, but
# each chunk adds to the gradients of all keys that it sees. A GPU needs larger chunks.
MOST_QUERIES = {"cpu": 256, "other": 1024}
MOST_SCORES = {"cpu": 2**20, "other": 2**26}

MOST_CONVERTED = 2**18  # numbers of keys or values narrower than the query that are converted together

# If k is at least this part of the keys, weights are scattered into zeros for matrix products.
LARGE_PART = 1 / 8

GROUP = 8  # scores: see `_largest`

INDEX_BYTES = torch.int64.itemsize
WIDE_BYTES = torch.float32.itemsize

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "gelu_accurate": partial(F.gelu, approximate="tanh")}


def top_k_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    top_k: int,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    dropout: float = 0.0,
    query_chunk_size: int | None = None,
) -> Tensor:
    """Attention to the keys of the k largest scores of each query. It is exact if a query sees at most k keys.

    Each query keeps exactly the k largest of its scores, or all if there are fewer. `torch.topk` chooses among equal
    scores. The output of a query that sees no key is zero. There is no second derivative.

    Args:
        query: [N, H, T, K], already scaled: N sequences, H heads, T positions, K width of a key.
        key: [M, G, S, K]: M sequences, dividing N, as in a `Segment`; G key/value heads, dividing H; S positions.
        value: [M, G, S, V]: V width of a value. Keys and values may have a narrower type than the query; they are
            converted chunk by chunk.
        top_k: number of scores that each query keeps.
        mask: bool [M or 1, T or 1, S], True is not attended to (but under `causal` a position always sees itself).
        causal: position t of the query does not see beyond position S - T + t of the keys.
        window: with causal, it sees at most window - 1 positions before that.
        dropout: probability with which a weight is dropped (the others grow by 1 / (1 - dropout)).
        query_chunk_size: maximum number of positions of the query that are evaluated together. Default: 256 queries per
            key/value head on a CPU, 1024 elsewhere. Several key/value heads are evaluated together up to 2**20 scores
            on a CPU, 2**26 elsewhere.

    Returns:
        [N, H, T, V].

    Raises:
        ValueError: top_k or query_chunk_size is below 1.
    """
    _require_positive(top_k=top_k, query_chunk_size=query_chunk_size)
    query, key, value = _autocast(query, key, value)
    sequences, heads, length, width = query.shape
    owners, kv_heads, keys, _ = key.shape
    shared, group = sequences // max(1, owners), heads // max(1, kv_heads)  # no sequences or no heads
    # Rows of a position that attend to the same keys are adjacent: [M G, (N/M)(H/G), T, K].
    rows = query.reshape(owners, shared, kv_heads, group, length, width)
    rows = rows.transpose(1, 2).reshape(owners * kv_heads, shared * group, length, width)
    context = _TopK.apply(
        rows,
        key.reshape(owners * kv_heads, keys, width),
        value.reshape(owners * kv_heads, keys, value.size(-1)),
        None,
        _Plan(top_k, _softmax, query_chunk_size, mask, kv_heads, causal, window, dropout),
        torch.is_grad_enabled(),
    )
    context = context.view(owners, kv_heads, shared, group, length, value.size(-1))
    return context.transpose(1, 2).reshape(sequences, heads, length, value.size(-1))


def keep_largest(scores: Tensor, top_k: int) -> Tensor:
    """The k largest of the last dimension of scores [..., S], -inf elsewhere. Ties: as in `top_k_attention`."""
    _require_positive(top_k=top_k)
    if top_k >= scores.size(-1):
        return scores
    largest, indices = _largest(scores, top_k)
    return torch.full_like(scores, float("-inf")).scatter(-1, indices, largest)


def top_k_feed_forward(
    x: Tensor,
    weight_in: Tensor,
    bias_in: Tensor | None,
    weight_out: Tensor,
    bias_out: Tensor | None,
    top_k: int,
    activation: str,
    *,
    chunk_size: int | None = None,
) -> Tensor:
    """A feed-forward layer in which each token uses the k units with the largest pre-activations.

    With ReLU it is exact for a token with at most k positive pre-activations. With GELU, each dropped negative
    pre-activation loses an activation between -0.17 and 0. Ties: as in `top_k_attention`. There is no
    second derivative.

    Args:
        x: [..., C], C the width of the input.
        weight_in: [F, C], as `nn.Linear` stores it: F units.
        bias_in: [F] or None.
        weight_out: [D, F], D the width of the output.
        bias_out: [D] or None.
        top_k: number of units that each token uses.
        activation: "relu", "gelu" or "gelu_accurate" (the GELU of GPT-2, by tanh).
        chunk_size: maximum number of tokens evaluated together. Default: as query_chunk_size of `top_k_attention`.

    Returns:
        [..., D].

    Raises:
        ValueError: top_k or chunk_size is below 1, or another activation.
    """
    _require_positive(top_k=top_k, chunk_size=chunk_size)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation}: top-k feed-forward layers have one of {', '.join(ACTIVATIONS)}")
    x, weight_in, bias_in, weight_out, bias_out = _autocast(x, weight_in, bias_in, weight_out, bias_out)
    output = _TopK.apply(
        x.reshape(1, 1, x.shape[:-1].numel(), x.size(-1)),
        weight_in.unsqueeze(0),
        weight_out.t().unsqueeze(0),
        bias_in,
        _Plan(top_k, ACTIVATIONS[activation], chunk_size),
        torch.is_grad_enabled(),
    ).view(*x.shape[:-1], weight_out.size(0))
    return output if bias_out is None else output + bias_out


class _Chunk(NamedTuple):
    """The queries and keys that are evaluated together.

    Shapes from here on: B sets of keys, b of them in a chunk; R queries per position and set; T positions, c of them in
    a chunk; S keys in a set, s of them visible from the positions of a chunk; k scores kept per query.
    """

    sets: slice
    positions: slice
    seen: slice  # of the S keys

    @property
    def queries(self) -> tuple[slice, ...]:
        """Index of the queries in [B, R, T, K]."""
        return self.sets, slice(None), self.positions

    @property
    def keys(self) -> tuple[slice, ...]:
        """Index of the visible keys in [B, S, K]."""
        return self.sets, self.seen

    def kept(self, top_k: int) -> tuple[slice, ...]:
        """Index of the kept scores in [B, R, T, k]."""
        return *self.queries, slice(min(top_k, self.seen.stop - self.seen.start))


@dataclass(frozen=True)
class _Plan:
    """The parameters of the computation and its chunks. For other fields see `top_k_attention`."""

    top_k: int
    weigh: Callable[[Tensor], Tensor]  # the weights of scores [..., k]
    chunk_size: int | None = None
    mask: Tensor | None = None
    kv_heads: int = 1
    causal: bool = False
    window: int | None = None
    dropout: float = 0.0

    def chunks(self, query: Tensor, key: Tensor) -> Iterator[_Chunk]:
        """All of query [B, R, T, K]; key: [B, S, K]."""
        sets, rows, length, _ = query.shape
        narrow = 0 if key.dtype == query.dtype else key.size(2)
        sets_together, positions = _together(rows, length, key.size(1), self.chunk_size, query.device, narrow)
        for some_sets in _even_slices(sets, sets_together):
            for some_positions in _even_slices(length, positions):
                seen = self._seen(some_positions, key.size(1), key.size(1) - length)
                yield _Chunk(some_sets, some_positions, seen)

    def _seen(self, positions: slice, keys: int, offset: int) -> slice:
        if not self.causal:
            return slice(0, keys)
        first = 0 if self.window is None else max(0, offset + positions.start - self.window + 1)
        return slice(first, min(keys, max(1, offset + positions.stop)))  # if no key is visible, one hidden key

    def select(self, query: Tensor, key: Tensor, bias: Tensor | None, chunk: _Chunk) -> tuple[Tensor, Tensor]:
        """The largest scores of the queries of a chunk, and the indices of their keys, int32, both [b, R, c, k]."""
        rows = query[chunk.queries]
        scores = torch.bmm(rows.flatten(1, 2), key[chunk.keys].to(query.dtype).transpose(1, 2))
        scores = scores.unflatten(1, rows.shape[1:3])
        if bias is not None:
            scores += bias
        hidden = self._hidden(chunk, key.size(1) - query.size(2), key.device)
        if hidden is not None:
            scores.masked_fill_(hidden.unsqueeze(1), float("-inf"))
        largest, indices = _largest(scores, min(self.top_k, scores.size(-1)))
        return largest, indices.int()

    def _hidden(self, chunk: _Chunk, offset: int, device: torch.device) -> Tensor | None:
        """bool [b or 1, c or 1, s], True is not attended to, or None. Position t of the query is t + offset of keys."""
        hidden = self.mask
        if hidden is not None:
            hidden = hidden[:, chunk.positions if hidden.size(1) > 1 else slice(None), chunk.seen]
            if hidden.size(0) > 1:
                hidden = hidden[torch.arange(chunk.sets.start, chunk.sets.stop, device=device) // self.kv_heads]
        if self.causal:
            itself = torch.arange(chunk.positions.start, chunk.positions.stop, device=device).view(1, -1, 1) + offset
            keys = torch.arange(chunk.seen.start, chunk.seen.stop, device=device)
            outside = keys > itself
            if self.window is not None:
                outside |= keys <= itself - self.window
            # As in `multi_head_attention`, a padded position sees itself.
            hidden = outside if hidden is None else (hidden & (keys != itself)) | outside
        return hidden

    def weights(self, scores: Tensor, survives: Tensor | None) -> Tensor:
        """The weights of scores [..., k], in float32 or wider; survives: bool [..., k], False where dropped."""
        weights = self.weigh(scores.to(_wide(scores)))
        return weights if survives is None else weights * survives / ((1 - self.dropout) or 1.0)


def _together(
    rows: int, length: int, keys: int, chunk_size: int | None, device: torch.device, narrow: int = 0
) -> tuple[int, int]:
    """How many sets of keys, and positions of each, are evaluated together; letters: see `_Chunk`.

    Args:
        rows, length, keys: R, T and S.
        chunk_size: see `_Plan`.
        device: of the queries.
        narrow: width of keys and values narrower than the query; 0: they have its type.
    """
    kind = device_kind(device)
    positions = chunk_size or max(1, MOST_QUERIES[kind] // max(1, rows))
    sets = MOST_SCORES[kind] // max(1, rows * min(positions, length) * keys)
    if narrow:
        sets = min(sets, MOST_CONVERTED // max(1, keys * narrow))
    return max(1, sets), positions


def chunk_bytes(
    sets: int,
    rows: int,
    length: int,
    keys: int,
    top_k: int,
    itemsize: int,
    chunk_size: int | None,
    device: torch.device,
    narrow: int = 0,
) -> int:
    """The most that `top_k_attention` holds for the queries that are evaluated together: their scores, the choice of
    the largest of them, the weights, and keys or values that are converted.

    Args:
        sets, rows, length, keys: B, R, T and S; see `_Chunk`.
        top_k: below S.
        itemsize: bytes of a number of the query.
        chunk_size: query_chunk_size of `top_k_attention`.
        device: of the query.
        narrow: see `_together`.
    """
    most = _together(rows, length, keys, chunk_size, device, narrow)
    sets_together, positions = map(_largest_slice, (sets, length), most)
    weighing = top_k * (2 * INDEX_BYTES + 3 * WIDE_BYTES)
    if top_k >= LARGE_PART * keys:
        # Among zeros, which `scatter` copies, narrow ones in float32 once more.
        weighing += keys * (2 * itemsize + (WIDE_BYTES if itemsize < WIDE_BYTES else 0))
    each = max(_choice_bytes(keys, top_k, itemsize, device), weighing)
    masks = 3 * positions * keys
    return sets_together * (rows * positions * each + keys * narrow * itemsize) + masks


def keeping_bytes(keys: int, top_k: int, itemsize: int, device: torch.device) -> int:
    """What `keep_largest` holds for the scores of a query, with the scores; arguments: as for `chunk_bytes`."""
    kept = 3 * keys * itemsize + top_k * (itemsize + INDEX_BYTES)  # `scatter` copies
    return max(kept, _choice_bytes(keys, top_k, itemsize, device))


def _choice_bytes(keys: int, top_k: int, itemsize: int, device: torch.device) -> int:
    """What the scores of a query take, and the choice of the k largest of them; arguments: as for `chunk_bytes`."""
    groups = _groups(keys, top_k, device)
    if not groups:
        return keys * itemsize + top_k * (itemsize + INDEX_BYTES)
    members = GROUP * top_k * INDEX_BYTES  # once more as the scores outside of the groups are added
    return (keys + groups) * itemsize + top_k * INDEX_BYTES + 2 * members + keys % GROUP * INDEX_BYTES


class _TopK(torch.autograd.Function):
    """query [B, R, T, K], key [B, S, K], value [B, S, V] and, added to the scores, bias [S] or None: [B, R, T, V]."""

    @staticmethod
    def forward(ctx, query, key, value, bias, plan, for_backward):
        output = query.new_empty(*query.shape[:-1], value.size(-1))
        # Preallocated, so that the kept tensors do not fragment the memory of the chunks.
        kept_shape = (*query.shape[:-1], min(plan.top_k, key.size(1))) if for_backward else (0,)
        kept_scores = query.new_empty(kept_shape)
        kept_indices = query.new_empty(kept_shape, dtype=torch.int32)
        kept_survives = query.new_empty(kept_shape, dtype=torch.bool) if plan.dropout > 0 else None
        values = value.contiguous()
        for chunk in plan.chunks(query, key):
            scores, indices = plan.select(query, key, bias, chunk)
            survives = None
            if plan.dropout > 0:
                survives = torch.empty_like(scores, dtype=torch.bool).bernoulli_(1 - plan.dropout)
            weights = plan.weights(scores, survives).to(query.dtype)
            output[chunk.queries] = _Selection(indices, chunk).mix(weights, values[chunk.keys])
            if for_backward:
                kept = chunk.kept(plan.top_k)
                kept_scores[kept], kept_indices[kept] = scores, indices
                if survives is not None:
                    kept_survives[kept] = survives
        ctx.plan = plan
        ctx.save_for_backward(query, key, value, kept_scores, kept_indices, kept_survives)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        plan = ctx.plan
        query, key, value, kept_scores, kept_indices, kept_survives = ctx.saved_tensors
        keys, values = key.detach().contiguous(), value.detach().contiguous()
        for_query = torch.empty_like(query)
        # Sums over all queries.
        for_key, for_value = (table.new_zeros(table.shape, dtype=_wide(table)) for table in (key, value))
        for_bias = for_key.new_zeros(key.size(1)) if ctx.needs_input_grad[3] else None
        for chunk in plan.chunks(query, key):
            kept = chunk.kept(plan.top_k)
            survives = None if kept_survives is None else kept_survives[kept]
            selection = _Selection(kept_indices[kept], chunk)
            queries, gradients = query[chunk.queries], gradient[chunk.queries]
            with torch.enable_grad():
                scores = kept_scores[kept].detach().requires_grad_()
                weights = plan.weights(scores, survives).to(query.dtype)
                output = selection.mix(weights, values[chunk.keys])
            (for_scores,) = torch.autograd.grad(output, scores, gradients)
            for_query[chunk.queries] = selection.mix(for_scores, keys[chunk.keys])
            for_key[chunk.keys] += selection.spread(for_scores, queries)
            for_value[chunk.keys] += selection.spread(weights.detach(), gradients)
            if for_bias is not None:
                for_bias.index_add_(0, kept_indices[kept].flatten(), for_scores.flatten().to(for_bias.dtype))
        # autograd converts the sums to the types of the inputs.
        return for_query, for_key, for_value, for_bias, None, None


def _largest(scores: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The k largest of the last dimension, in no order, and their indices.

    On a CPU the time of `topk` is proportional to the number of scores. For many scores, the k groups with the largest
    maxima are found first. No score of another group exceeds any of these k maxima.
    """
    groups = _groups(scores.size(-1), top_k, scores.device)
    if not groups:
        return scores.topk(top_k, dim=-1, sorted=False)
    maxima = scores.detach()[..., : GROUP * groups].unflatten(-1, (GROUP, groups)).amax(dim=-2)
    found = maxima.topk(top_k, dim=-1, sorted=False).indices.unsqueeze(-1)
    members = (found + torch.arange(0, GROUP * groups, groups)).flatten(-2)
    members = F.pad(members, (0, scores.size(-1) - GROUP * groups))
    members[..., GROUP * top_k :] = torch.arange(GROUP * groups, scores.size(-1))  # scores outside the groups
    largest, places = scores.gather(-1, members).topk(top_k, dim=-1, sorted=False)
    return largest, members.gather(-1, places)


def _groups(keys: int, top_k: int, device: torch.device) -> int:
    """How many groups of scores have their maxima compared; 0: the scores themselves are."""
    groups = keys // GROUP
    return groups if device.type == "cpu" and groups >= 2 * top_k else 0


class _Selection:
    """Which of the s keys each query of a chunk has selected: indices, int32 [b, R, c, k]."""

    def __init__(self, indices: Tensor, chunk: _Chunk):
        self.indices = indices
        self.keys = chunk.seen.stop - chunk.seen.start
        self.is_large_part = indices.size(-1) >= LARGE_PART * self.keys

    def mix(self, weights: Tensor, table: Tensor) -> Tensor:
        """[b, R, c, X]: for each query the sum of the rows it selects of table [b, s, X], by weights [b, R, c, k]."""
        table = table.to(weights.dtype)
        if self.is_large_part:
            mixed = torch.bmm(self._among_zeros(weights), table)
        else:
            mixed = F.embedding_bag(
                self._rows.flatten(0, 2), table.flatten(0, 1), per_sample_weights=weights.flatten(0, 2), mode="sum"
            )
        return mixed.view(*weights.shape[:-1], table.size(-1))

    def spread(self, weights: Tensor, queries: Tensor) -> Tensor:
        """[b, s, X]: for each key the sum of those of queries [b, R, c, X] that select it, by weights [b, R, c, k]."""
        if self.is_large_part:
            return torch.bmm(self._among_zeros(weights).transpose(1, 2), queries.flatten(1, 2))
        order, selecting, starts = self._by_key
        spread = F.embedding_bag(
            selecting, queries.flatten(0, 2), starts, per_sample_weights=weights.flatten()[order], mode="sum"
        )
        return spread.view(len(queries), self.keys, -1)

    def _among_zeros(self, weights: Tensor) -> Tensor:
        """[b, R c, s]."""
        zeros = weights.new_zeros(weights.size(0), weights.shape[1:3].numel(), self.keys)
        return zeros.scatter(-1, self.indices.flatten(1, 2).long(), weights.flatten(1, 2))

    @cached_property
    def _rows(self) -> Tensor:
        """The indices in a table of all b * s keys."""
        sets = torch.arange(len(self.indices), dtype=torch.int32, device=self.indices.device)
        return self.indices + self.keys * sets.view(-1, 1, 1, 1)

    @cached_property
    def _by_key(self) -> tuple[Tensor, Tensor, Tensor]:
        """The flat indices sorted by key, their queries, and the start of each of the b * s keys among them."""
        rows, order = self._rows.flatten().sort(stable=True)
        selecting = (order // self.indices.size(-1)).to(torch.int32)
        keys = torch.arange(len(self.indices) * self.keys, dtype=torch.int32, device=rows.device)
        return order, selecting, torch.searchsorted(rows, keys, out_int32=True)


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last dimension; zeros where all scores are -inf."""
    nothing = scores.isneginf().all(dim=-1, keepdim=True)
    return scores.masked_fill(nothing, 0.0).softmax(dim=-1).masked_fill(nothing, 0.0)


def _wide(tensor: Tensor) -> torch.dtype:
    """The wider of float32 and the tensor's type."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _even_slices(total: int, most: int) -> Iterator[slice]:
    """The fewest slices of at most this many elements. Their sizes differ by at most one."""
    pieces = -(-total // most)
    for piece in range(pieces):
        yield slice(piece * total // pieces, (piece + 1) * total // pieces)


def _largest_slice(total: int, most: int) -> int:
    """Elements of the largest of `_even_slices`."""
    return -(-total // max(1, -(-total // most)))


def _require_positive(**options: int | None) -> None:
    for name, value in options.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}: it has to be 1 or more")


def _autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """Convert to the type of matrix products under autocast."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [None if tensor is None else tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors]
