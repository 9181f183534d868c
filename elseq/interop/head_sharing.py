"""Fewer key/value heads from what the heads compute on calibration text: which heads share, aligned, merged or fitted.

An output of attention does not change when the keys of a head are multiplied by an invertible matrix and its queries by
the transposed inverse, or its values by a matrix and its part of the output projection by the inverse. With no rotary
positions, this folds into the projections, so that heads can be turned towards one another before they are merged
(2412.20677), put into another order, or replaced by the linear combinations of their outputs that serve all best.

Letters: H heads, G key/value heads, a group of H / G heads for each, K width of a head, C width of query and output, D
width of the positions that are attended to. All is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from elseq.attention import Attention

ROUNDS = 100  # at most, of alternating optimizations
SETTLED = 1e-9  # relative gain of a round at which they end
FITTED = 1e-3  # the same of `fit_values`
STEPS = 10  # of conjugate gradients in a round
COMPONENTS = 4  # times K: principal components of a group's values, of which the shared ones are combined
RIDGE = 1e-3  # of the mean square of the output projection's inputs: keeps the solution near its start


@dataclass(frozen=True)
class Projections:
    """The projections of an attention layer by heads. The last column of the first three is the bias."""

    query: Tensor  # [H, K, C + 1]
    key: Tensor  # [G, K, D + 1]
    value: Tensor  # [G, K, D + 1]
    output: Tensor  # [H, K, C]
    output_bias: Tensor  # [C]

    @classmethod
    def of(cls, attention: Attention) -> Projections:
        query, key, value = (
            _with_bias(linear).unflatten(0, (-1, attention.head_dim))
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        output = _with_bias(attention.out_proj)
        return cls(query, key, value, output[:, :-1].T.unflatten(0, (-1, attention.head_dim)), output[:, -1])

    def give_to(self, attention: Attention) -> None:
        """Let a layer compute with these projections."""
        attention.num_kv_heads = len(self.key)
        for linear, heads in (
            (attention.q_proj, self.query),
            (attention.k_proj, self.key),
            (attention.v_proj, self.value),
        ):
            _replace(linear, heads.flatten(0, 1))
        _replace(attention.out_proj, torch.cat((self.output.flatten(0, 1).T, self.output_bias.unsqueeze(1)), dim=1))

    def turned(self, keys: Tensor, values: Tensor) -> Projections:
        """The same function: keys and values of each head in another basis.

        Args:
            keys, values: orthogonal matrices [H, K, K], by which keys, queries and values are multiplied.
        """
        return replace(
            self, query=keys @ self.query, key=keys @ self.key, value=values @ self.value, output=values @ self.output
        )

    def reordered(self, order: Tensor) -> Projections:
        """The same function: head n is the former head order[n], int64 [H]."""
        return replace(
            self, query=self.query[order], key=self.key[order], value=self.value[order], output=self.output[order]
        )

    def merged(self, num_kv_heads: int, method: str) -> Projections:
        """The key and value heads of each group are its mean (2305.13245, section 2.1) or its first head.

        Args:
            num_kv_heads: G.
            method: "first", otherwise the mean.
        """
        key, value = (pool(heads, num_kv_heads, method) for heads in (self.key, self.value))
        return replace(self, key=key, value=value)


def pool(heads: Tensor, num_kv_heads: int, method: str) -> Tensor:
    """The first head of each group, or with another method the mean, in float32 or wider: [H, ...] to [G, ...]."""
    groups = heads.unflatten(0, (num_kv_heads, -1))
    if method == "first":
        return groups[:, 0].clone()
    return groups.to(torch.promote_types(heads.dtype, torch.float32)).mean(dim=1)


def _with_bias(linear: nn.Linear) -> Tensor:
    weight = linear.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.detach().double()
    return torch.cat((weight, bias.unsqueeze(1)), dim=1)


def _replace(linear: nn.Linear, rows: Tensor) -> None:
    """Weight and bias from [out, in + 1]. A layer without a bias keeps none."""
    linear.out_features, linear.in_features = len(rows), rows.size(1) - 1
    for name, new in (("weight", rows[:, :-1]), ("bias", rows[:, -1])):
        old = getattr(linear, name)
        if old is not None:
            setattr(linear, name, nn.Parameter(new.to(old.dtype).contiguous(), requires_grad=old.requires_grad))


@dataclass
class Moments:
    """What the heads of a layer computed on calibration text, as sums over T queries of every head, in float64.

    Keys count as the softmax sees them: a constant that is added to the keys of all positions changes nothing, and a
    position that is not attended to does not matter. The covariance of keys is therefore taken within each attention
    distribution. Values count as they are attended to.
    """

    queries: Tensor  # [H, K, K]: second moments of the queries of each head, as they are scaled
    keys: Tensor  # [A, H K, H K]: covariance of all keys under the attention of head A
    values: Tensor  # [A, H K, H K]: second moments of the values that head A attends to

    @classmethod
    def empty(cls, heads: int, width: int) -> Moments:
        joint = heads * width
        shapes = (width, width), (joint, joint), (joint, joint)
        return cls(*(torch.zeros(heads, *shape, dtype=torch.float64) for shape in shapes))

    def add(self, query: Tensor, key: Tensor, value: Tensor, weights: Tensor) -> None:
        """Add a text.

        Args:
            query: [H, T, K], scaled.
            key, value: [H, S, K].
            weights: the attention, [H, T, S].
        """
        query, key, value, weights = (each.double() for each in (query, key, value, weights))
        key, value = (each.transpose(0, 1).flatten(1) for each in (key, value))  # [S, H K]
        self.queries += query.transpose(1, 2) @ query
        attended = weights @ key
        self.keys += torch.einsum("as,si,sj->aij", weights.sum(dim=1), key, key) - attended.transpose(1, 2) @ attended
        attended = weights @ value
        self.values += attended.transpose(1, 2) @ attended

    def reordered(self, order: Tensor) -> Moments:
        """The moments of the heads in another order, as `Projections.reordered`."""
        width = self.queries.size(1)
        rows = (order.unsqueeze(1) * width + torch.arange(width)).flatten()
        keys, values = (each[order][:, rows][:, :, rows] for each in (self.keys, self.values))
        return Moments(self.queries[order], keys, values)


# --- which heads share


def similarities(moments: Moments) -> Tensor:
    """How alike heads are when one is turned towards the other, [H, H]: of keys and of values the nuclear norm of their
    cross-covariance over the norms of both (the orthogonal Procrustes problem), added (2406.14963)."""
    total = 0
    for joint in (moments.keys, moments.values):
        blocks = _blocks(joint.sum(dim=0), len(moments.queries))  # [H, H, K, K]
        nuclear = torch.linalg.svdvals(blocks).sum(dim=-1)
        norms = blocks.diagonal(dim1=0, dim2=1).diagonal().sum(dim=-1).clamp(min=torch.finfo(torch.float64).tiny).sqrt()
        total = total + nuclear / norms / norms.unsqueeze(1)
    return total


def similar_order(similarity: Tensor, num_kv_heads: int) -> Tensor:
    """An order of the heads in which similar heads are neighbours and share, int64 [H].

    Starts from the present groups, and exchanges the two heads whose exchange raises the sum of similarities within
    groups most, until no exchange raises it.

    Args:
        similarity: symmetric, [H, H].
        num_kv_heads: G.
    """
    heads = len(similarity)
    order = torch.arange(heads)
    group = order // (heads // num_kv_heads)
    while True:
        here = similarity[order][:, order]
        to_group = torch.stack([here[:, group == number].sum(dim=1) for number in range(num_kv_heads)], dim=1)  # [H, G]
        own = to_group.gather(1, group.unsqueeze(1)) - here.diagonal().unsqueeze(1)
        joining = to_group[:, group] - own  # [H, H]: gain of head n in the group of m, with m still in it
        gain = joining + joining.T - 2 * here
        gain[group.unsqueeze(0) == group.unsqueeze(1)] = 0
        best = int(gain.argmax())
        if gain.flatten()[best] <= SETTLED * similarity.abs().sum():
            return _sorted_groups(order, num_kv_heads)
        first, second = divmod(best, heads)
        order[[first, second]] = order[[second, first]]


def _sorted_groups(order: Tensor, num_kv_heads: int) -> Tensor:
    """The same groups, heads and groups in their former order as far as that goes."""
    groups = order.unflatten(0, (num_kv_heads, -1)).sort(dim=1).values
    return groups[groups[:, 0].argsort()].flatten()


def _blocks(joint: Tensor, heads: int) -> Tensor:
    """[H K, H K] to [H, H, K, K]."""
    return joint.unflatten(0, (heads, -1)).unflatten(2, (heads, -1)).transpose(1, 2)


# --- aligned


def alignment(joint: Tensor, heads: int, num_kv_heads: int) -> Tensor:
    """Orthogonal matrices [H, K, K] that turn the heads of each group towards one another: generalized Procrustes
    analysis. Each head in turn is turned towards the sum of the others, until that changes nothing. The first head of a
    group stays as it is.

    Args:
        joint: second moments of the outputs of all heads, [H K, H K].
        heads, num_kv_heads: H, G.
    """
    blocks = _blocks(joint, heads)
    turns = torch.eye(blocks.size(-1), dtype=joint.dtype).repeat(heads, 1, 1)
    members = heads // num_kv_heads
    for start in range(0, heads, members):
        group = range(start, start + members)
        before = -math.inf
        for _ in range(ROUNDS):
            for head in group[1:]:
                towards = sum(blocks[head, other] @ turns[other].T for other in group if other != head)
                left, _, right = torch.linalg.svd(towards)
                turns[head] = (left @ right).T
            after = sum(
                (turns[one] @ blocks[one, other] @ turns[other].T).trace()
                for one in group
                for other in group
                if one != other
            )
            if after - before <= SETTLED * joint.trace():
                break
            before = after
    return turns


def aligned(projections: Projections, moments: Moments, num_kv_heads: int) -> Projections:
    """The same function, the heads of each group turned towards one another."""
    heads = len(projections.query)
    turns = (alignment(joint.sum(dim=0), heads, num_kv_heads) for joint in (moments.keys, moments.values))
    return projections.turned(*turns)


# --- fitted


def principal_components(covariances: Tensor, uses: Tensor, count: int) -> Tensor:
    """The linear combinations of the outputs of a group of heads that serve all of its heads best, the best ones first.

    Head h reads its output x_h, [K], by vectors u with the second moments `uses`. The error of x_h = R_h y is the mean
    of (u . (x_h - R_h y)) ** 2. Let y = A^T x, where x, [g K], are the outputs of the group. If the covariance of x is
    the same for every head, the best y are the principal components of x, weighted by the square roots of `uses`. The
    mean of the covariances stands for that one here.

    Args:
        covariances: of x as each of the g heads sees it, [g, g K, g K].
        uses: [g, K, K].
        count: how many.

    Returns:
        A, [g K, count].
    """
    weighting = torch.block_diag(*_root(uses))
    _, vectors = torch.linalg.eigh(weighting @ covariances.mean(dim=0) @ weighting)
    return weighting @ vectors.flip(1)[:, :count]


def readings(covariances: Tensor, combination: Tensor) -> Tensor:
    """R of `principal_components`, [g, K, count], by least squares under the covariance of each head."""
    members = len(covariances)
    seen = covariances @ combination  # [g, g K, count]
    own = seen.unflatten(1, (members, -1)).diagonal(dim1=0, dim2=1).movedim(-1, 0)
    return own @ torch.linalg.pinv(combination.T @ seen, hermitian=True)


def _root(matrices: Tensor) -> Tensor:
    """Square roots of positive semidefinite matrices."""
    values, vectors = torch.linalg.eigh(matrices)
    return vectors * values.clamp(min=0).sqrt().unsqueeze(-2) @ vectors.mT


def _or_identity(matrices: Tensor) -> Tensor:
    """The matrices, or identities if all are zero, as for a group whose weights are zero. With zero matrices, the other
    factor would become zero, too, and no gradient could train either."""
    return matrices if matrices.any() else torch.eye(matrices.size(-1), dtype=matrices.dtype).expand_as(matrices)


class Fit(NamedTuple):
    """Shared heads by principal components. Their values are to be fitted further."""

    projections: Projections
    components: Tensor  # [G, r, D + 1]: projections to r principal components of the values, the first K those above


def fitted(projections: Projections, moments: Moments, num_kv_heads: int) -> Fit:
    """The shared heads of `principal_components`.

    Of keys, u are the queries: the error is that of the scores, under the covariance of the keys within the attention
    distributions. Of values, u are the rows of the output projection: the error is that of each head's output.
    """
    heads, width = projections.query.shape[:2]
    members = heads // num_kv_heads
    keys, queries, components, outputs = [], [], [], []
    for start in range(0, heads, members):
        group, joint = slice(start, start + members), slice(start * width, (start + members) * width)
        covariances = _or_identity(moments.keys[group, joint, joint])
        combination = principal_components(covariances, _or_identity(moments.queries[group]), width)
        keys.append(combination.T @ projections.key[group].flatten(0, 1))
        queries.append(readings(covariances, combination).mT @ projections.query[group])
        covariances, output = _or_identity(moments.values[group, joint, joint]), projections.output[group]
        combination = principal_components(covariances, _or_identity(output @ output.mT), COMPONENTS * width)
        components.append(combination.T @ projections.value[group].flatten(0, 1))
        outputs.append(readings(covariances, combination[:, :width]).mT @ output)
    components = torch.stack(components)
    shared = replace(
        projections,
        query=torch.cat(queries),
        key=torch.stack(keys),
        value=components[:, :width],
        output=torch.cat(outputs),
    )
    return Fit(shared, components)


def fit_values(fit: Fit, attended: Iterable[tuple[Tensor, Tensor]]) -> Projections:
    """Values and output projection with the least squared error of the attention's output, all heads together.

    The output is bilinear in the two: each in turn is fitted while the other is kept. The output projection is a ridge
    regression around its start. The values, combinations of the components, are found by conjugate gradients.

    Args:
        fit: the start.
        attended: for each text, the attention of every head applied to the components of its group, [T, H, r], and the
            wanted output, [T, C].
    """
    start = fit.projections
    groups, count, _ = fit.components.shape
    heads, width, _ = start.output.shape
    group = torch.arange(heads) // (heads // groups)
    joint = heads * count + 1
    moments, targets, total = (
        start.output.new_zeros(joint, joint),
        start.output.new_zeros(joint, start.output.size(2)),
        0.0,
    )
    for seen, wanted in attended:
        seen, wanted = torch.nn.functional.pad(seen.double().flatten(1), (0, 1), value=1.0), wanted.double()
        moments += seen.T @ seen
        targets += seen.T @ wanted
        total += float(wanted.square().sum())
    within = moments[:-1, :-1].unflatten(0, (heads, count)).unflatten(2, (heads, count)).transpose(1, 2)  # [H, H, r, r]
    prior = torch.cat((start.output.flatten(0, 1), start.output_bias.unsqueeze(0)))
    combination = torch.eye(count, width, dtype=moments.dtype).repeat(groups, 1, 1)  # [G, r, K]

    def fit_output() -> tuple[Tensor, float]:
        """The output projection with its bias, [H K + 1, C], and the share of the squares that is error."""
        into = torch.block_diag(*combination[group], moments.new_ones(1, 1))
        gram, wanted = into.T @ moments @ into, into.T @ targets
        size = float(gram.diagonal()[:-1].mean()) or 1.0  # of values that are zero, any ridge keeps the start
        ridge = torch.eye(len(gram), dtype=gram.dtype) * (RIDGE * size)
        found = torch.linalg.solve(gram + ridge, wanted + ridge @ prior)
        return found, (total - float(((2 * wanted - gram @ found) * found).sum())) / (total or 1.0)

    def fit_combination() -> Tensor:
        by_head = output[:-1].unflatten(0, (heads, width))
        wanted = (targets[:-1] - moments[:-1, -1:] * output[-1]).unflatten(0, (heads, count)) @ by_head.mT  # [H, r, K]
        products = torch.einsum("hkc,glc->hgkl", by_head, by_head)

        def multiply(x: Tensor) -> Tensor:
            return _sum_groups(torch.einsum("hgrs,gsl,hgkl->hrk", within, x[group], products), groups)

        return _conjugate_gradients(multiply, _sum_groups(wanted, groups), combination)

    output, error = fit_output()
    for _ in range(ROUNDS):
        combination = fit_combination()
        before, (output, error) = error, fit_output()
        if before - error <= FITTED * before:
            break
    return replace(
        start,
        value=combination.mT @ fit.components,
        output=output[:-1].unflatten(0, (heads, width)),
        output_bias=output[-1],
    )


def _sum_groups(by_head: Tensor, groups: int) -> Tensor:
    return by_head.unflatten(0, (groups, -1)).sum(dim=1)


def _conjugate_gradients(multiply: Callable[[Tensor], Tensor], wanted: Tensor, x: Tensor) -> Tensor:
    """An approximate solution of multiply(x) = wanted, starting from x. multiply is positive semidefinite."""
    residual = wanted - multiply(x)
    direction, size = residual, residual.square().sum()
    rounding = torch.finfo(x.dtype).eps * wanted.square().sum()  # below it, a step may have any length
    for _ in range(STEPS):
        product = multiply(direction)
        curvature = (direction * product).sum()
        if size <= rounding or curvature <= torch.finfo(x.dtype).tiny:
            break
        x = x + size / curvature * direction
        residual = residual - size / curvature * product
        before, size = size, residual.square().sum()
        direction = residual + size / before * direction
    return x


def balanced(projections: Projections) -> Projections:
    """The same function with keys as large as queries, and values as output projections, in every direction.

    An optimizer that scales its steps by each parameter's gradients depends on the basis that a model is written in.
    With keys P and queries U_h, this is the T for which the second moments of the rows of T P and T^-T U_h are equal.
    """
    groups = len(projections.key)
    key, query = _balance(projections.key, projections.query.unflatten(0, (groups, -1)))
    value, output = _balance(projections.value, projections.output.unflatten(0, (groups, -1)))
    return replace(projections, key=key, query=query.flatten(0, 1), value=value, output=output.flatten(0, 1))


def _balance(shared: Tensor, uses: Tensor) -> tuple[Tensor, Tensor]:
    """shared: [G, K, ...]; uses: [G, g, K, ...]."""
    own, theirs = shared @ shared.mT, (uses @ uses.mT).mean(dim=1)
    identity = torch.eye(own.size(-1), dtype=own.dtype)
    traces = [each.diagonal(dim1=1, dim2=2).sum(dim=1).view(-1, 1, 1) for each in (own, theirs)]
    own, theirs = (
        # Zeros have no size, by which anything could be balanced.
        torch.where(traces[0] * traces[1] > 0, each + torch.finfo(own.dtype).eps * trace * identity, identity)
        for each, trace in zip((own, theirs), traces, strict=True)
    )
    root = _root(own)
    inverse = torch.linalg.inv(root)
    transform = _root(inverse @ _root(root @ theirs @ root) @ inverse)
    return transform @ shared, torch.linalg.inv(transform).mT.unsqueeze(1) @ uses
