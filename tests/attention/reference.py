"""Attention written out: one sequence, one head, one product at a time. What the methods are compared to."""

import copy
import os

import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st

quick = settings(max_examples=int(os.environ.get("ELSEQ_EXAMPLES", "40")), deadline=None, derandomize=True)
seeds = st.integers(0, 2**31 - 1)


def find_by_ancestry(monkeypatch):
    """As on a GPU whose kernel finds positions by an ancestry. On a CPU they are moved whenever they are read."""
    for method in ("kv", "el"):
        monkeypatch.setattr(
            f"elseq.attention.methods.{method}.has_step_kernel",
            lambda query, segments: segments[-1].ancestry is not None,
        )


def naive_attention(query, segments, causal=False, window=None, factors=None, top_k=None):
    """The output [N, H, T, V] and the weights [N, H, T, S] of `multi_head_attention`.

    factors: [N, H, T, S], what dropout multiplies each weight with. top_k: of equal scores the first are taken.
    """
    sequences, heads, length, _ = query.shape
    outputs, weights = [], []
    for sequence in range(sequences):
        for head in range(heads):
            keys, values, excluded = [], [], []
            for number, (key, value, mask, *_) in enumerate(segments):
                owner = sequence // (sequences // key.size(0))
                kv_head = head // (heads // key.size(1))
                keys.append(key[owner, kv_head])
                values.append(value[owner, kv_head])
                hidden = torch.zeros(length, key.size(2), dtype=torch.bool)
                if mask is not None:
                    hidden = hidden | mask[owner if mask.size(0) > 1 else 0]
                if causal and number == len(segments) - 1:
                    for position in range(length):
                        itself = key.size(2) - length + position
                        hidden[position, itself + 1 :] = True
                        if window is not None:
                            hidden[position, : max(0, itself - window + 1)] = True
                excluded.append(hidden)
            scores = query[sequence, head] @ torch.cat(keys).T
            scores = scores.masked_fill(torch.cat(excluded, dim=1), float("-inf"))
            order = scores.sort(dim=-1, descending=True, stable=True).indices
            scores = scores.scatter(-1, order[:, top_k or order.size(-1) :], float("-inf"))
            probabilities = scores.softmax(dim=-1)
            weights.append(probabilities)
            kept = probabilities if factors is None else probabilities * factors[sequence, head]
            outputs.append(kept @ torch.cat(values))
    return (
        torch.stack(outputs).view(sequences, heads, length, -1),
        torch.stack(weights).view(sequences, heads, length, -1),
    )


def split_heads(projected, head_dim):
    """[M, S, G K] to [M, G, S, K]."""
    return torch.stack(projected.split(head_dim, dim=-1), dim=1)


def naive_layer(layer, query, key, value, mask=None, causal=False, factors=None):
    """The output [T, N, C] and the weights [N, H, T, S] of `Attention`; key and value may be shared by hypotheses.

    mask: as in a `Segment`.
    """
    rows = F.linear(query, layer.q_proj.weight, layer.q_proj.bias) / layer.head_dim**0.5
    keys = F.linear(key, layer.k_proj.weight, layer.k_proj.bias)
    values = F.linear(value, layer.v_proj.weight, layer.v_proj.bias)
    rows, keys, values = (split_heads(x.transpose(0, 1), layer.head_dim) for x in (rows, keys, values))
    context, weights = naive_attention(rows, [(keys, values, mask)], causal, layer.window, factors)
    heads = torch.cat([context[:, head] for head in range(context.size(1))], dim=-1)
    return F.linear(heads, layer.out_proj.weight, layer.out_proj.bias).transpose(0, 1), weights


def padding_mask(lengths, longest, side):
    """bool [M, S], true at padding, which stands on the left or on the right."""
    mask = torch.zeros(len(lengths), longest, dtype=torch.bool)
    for row, length in enumerate(lengths):
        if side == "left":
            mask[row, : longest - length] = True
        else:
            mask[row, length:] = True
    return mask


def double(layer):
    """A copy in float64."""
    return copy.deepcopy(layer).double()
