"""Heads that are turned, reordered, merged and fitted, against the attention that they come from and brute force."""

import itertools
from dataclasses import replace

import pytest
import torch

from elseq.attention import Attention
from elseq.interop.head_sharing import (
    Moments,
    Projections,
    aligned,
    alignment,
    balanced,
    fit_values,
    fitted,
    principal_components,
    readings,
    similar_order,
    similarities,
)

HEADS, WIDTH, MODEL = 4, 5, 12


def make(seed=1, dtype=torch.float64, bias=True, kdim=None):
    torch.manual_seed(seed)
    options = (
        {"self_attention": True} if kdim is None else {"encoder_decoder_attention": True, "kdim": kdim, "vdim": kdim}
    )
    attention = Attention(MODEL, HEADS, head_dim=WIDTH, bias=bias, **options).to(dtype).eval().requires_grad_(False)
    for projection in attention.children():
        if getattr(projection, "bias", None) is not None:
            projection.bias.normal_()
    return attention


def texts(attention, number=20, seed=2):
    generator = torch.Generator().manual_seed(seed)
    dtype, width = attention.q_proj.weight.dtype, attention.k_proj.in_features
    for _ in range(number):
        query = torch.randn(7, 1, MODEL, generator=generator, dtype=torch.float64).to(dtype)
        memory = torch.randn(9, 1, width, generator=generator, dtype=torch.float64).to(dtype)
        yield query, query if attention.self_attention else memory


def run(attention, query, memory, **options):
    return attention(query, key=memory, **options)


def moments_of(attention, number=20):
    """By the definitions, a query at a time."""
    width = HEADS * WIDTH
    found = Moments.empty(HEADS, WIDTH)
    for query, memory in texts(attention, number):
        _, weights = run(attention, query, memory, need_head_weights=True)
        keys = attention.k_proj(memory[:, 0]).double()
        values = attention.v_proj(memory[:, 0]).double()
        rows = (attention.q_proj(query[:, 0]) * attention.scaling).double().view(-1, HEADS, WIDTH)
        for head, place in itertools.product(range(HEADS), range(len(query))):
            p = weights[head, 0, place].double()
            centred = keys - p @ keys
            found.keys[head] += centred.T @ (p.unsqueeze(1) * centred)
            found.values[head] += torch.outer(p @ values, p @ values)
            found.queries[head] += torch.outer(rows[place, head], rows[place, head])
    assert found.keys.shape == (HEADS, width, width)
    return found


def added(attention, number=20):
    found = Moments.empty(HEADS, WIDTH)
    for query, memory in texts(attention, number):
        _, weights = run(attention, query, memory, need_head_weights=True)
        key, value = (each[0] for each in attention.keys_and_values(memory))
        rows = attention.q_proj(query[:, 0]).view(-1, HEADS, WIDTH).transpose(0, 1) * attention.scaling
        found.add(rows, key, value, weights[:, 0])
    return found


@pytest.mark.parametrize("kdim", [None, 8])
def test_moments(kdim):
    attention = make(kdim=kdim)
    expected, found = moments_of(attention), added(attention)
    for name in ("queries", "keys", "values"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-10, atol=1e-10)


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kdim", [None, 8])
@pytest.mark.parametrize("change", ["turned", "reordered", "aligned"])
def test_the_function_is_the_same(dtype, tolerance, bias, kdim, change):
    attention = make(dtype=dtype, bias=bias, kdim=kdim)
    projections = Projections.of(attention)
    if change == "turned":
        turns = [torch.linalg.qr(torch.randn(HEADS, WIDTH, WIDTH, dtype=torch.float64)).Q for _ in range(2)]
        new = projections.turned(*turns)
    elif change == "reordered":
        new = projections.reordered(torch.tensor([2, 0, 3, 1]))
    else:
        new = aligned(projections, added(attention), 2)
        assert relative_error(new.key, projections.key) > 0.1
    other = make(seed=3, dtype=dtype, bias=bias, kdim=kdim)
    new.give_to(other)
    assert {name: each.dtype for name, each in other.named_parameters()} == {
        name: dtype for name, _ in attention.named_parameters()
    }
    for query, memory in texts(attention):
        assert relative_error(run(other, query, memory)[0], run(attention, query, memory)[0]) < tolerance


def turned_copies(copies=2, noise=0.0):
    """An attention in which the heads of each group are one, in other bases."""
    attention = make()
    projections = Projections.of(attention)
    one = [each.clone() for each in (projections.key, projections.value)]
    for heads in one:
        for head in range(HEADS):
            turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64)).Q
            heads[head] = turn @ heads[head // copies * copies] + noise * torch.randn_like(heads[head])
    new = Projections(projections.query, *one, projections.output, projections.output_bias)
    new.give_to(attention)
    return attention


@pytest.mark.parametrize("method", ["aligned", "fitted"])
def test_heads_that_are_one_in_other_bases_lose_nothing(method):
    """And their mean, as they are, would."""
    attention = turned_copies()
    inputs = list(texts(attention))
    expected = [run(attention, *each)[0] for each in inputs]
    projections, moments = Projections.of(attention), added(attention)
    projections.merged(2, "mean").give_to(attention)
    assert relative_error(run(attention, *inputs[0])[0], expected[0]) > 0.05
    if method == "aligned":
        new = aligned(projections, moments, 2).merged(2, "mean")
    else:
        new = fitted(projections, moments, 2).projections
    new.give_to(attention)
    assert attention.num_kv_heads == 2 and attention.k_proj.out_features == 2 * WIDTH
    for each, output in zip(inputs, expected, strict=True):
        assert relative_error(run(attention, *each)[0], output) < 1e-6


def test_alignment_against_random_turns():
    """It is a maximum of what the heads of a group have in common, and more than without it."""
    attention = turned_copies(noise=0.1)
    joint = added(attention).keys.sum(dim=0)
    blocks = joint.view(HEADS, WIDTH, HEADS, WIDTH)

    def common(turns):
        pairs = [(one, other) for one, other in itertools.permutations(range(HEADS), 2) if one // 2 == other // 2]
        return sum(float((turns[one] @ blocks[one, :, other] @ turns[other].T).trace()) for one, other in pairs)

    found = alignment(joint, HEADS, 2)
    torch.testing.assert_close(found @ found.mT, torch.eye(WIDTH, dtype=torch.float64).expand_as(found))
    unturned = torch.eye(WIDTH, dtype=torch.float64).repeat(HEADS, 1, 1)
    assert common(found) > common(unturned)
    for size in (1e-3, 1e-1, 1, 10):
        skew = size * torch.randn(HEADS, WIDTH, WIDTH, dtype=torch.float64)
        assert common(torch.linalg.matrix_exp(skew - skew.mT) @ found) <= common(found) + 1e-9


def partitions(heads, groups):
    """Every way to put heads into groups of one size."""
    if not heads:
        yield []
        return
    first, *others = heads
    for members in itertools.combinations(others, len(heads) // groups - 1):
        rest = [head for head in others if head not in members]
        for more in partitions(rest, groups - 1):
            yield [[first, *members], *more]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (6, 2), (6, 3), (8, 4), (4, 1), (4, 4)])
def test_similar_order_against_all_partitions(heads, groups, seed):
    """Groups of heads that belong together are found; of random ones no exchange of two heads makes better ones."""

    def within(similarity, order):
        return float(sum(similarity[group][:, group].sum() for group in torch.as_tensor(order).view(groups, -1)))

    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(heads, heads, generator=generator, dtype=torch.float64)
    family = torch.randperm(heads, generator=generator) % groups
    planted = (family.unsqueeze(0) == family.unsqueeze(1)).double() + 0.2 * (noise + noise.T)
    every = [sum(each, []) for each in partitions(list(range(heads)), groups)]
    order = similar_order(planted, groups)
    assert sorted(order.tolist()) == list(range(heads))
    assert within(planted, order) == pytest.approx(max(within(planted, each) for each in every))
    order = similar_order(noise + noise.T, groups)
    best = within(noise + noise.T, order)
    assert best >= within(noise + noise.T, range(heads)) - 1e-9
    for one, other in itertools.combinations(range(heads), 2):
        exchanged = order.clone()
        exchanged[[one, other]] = order[[other, one]]
        assert within(noise + noise.T, exchanged) <= best + 1e-9


def test_similar_heads_are_found_in_any_basis_and_order():
    attention = turned_copies()
    order = torch.tensor([0, 2, 1, 3])
    Projections.of(attention).reordered(order).give_to(attention)
    moments = added(attention)
    found = similar_order(similarities(moments), 2)
    assert order[found].tolist() == [0, 1, 2, 3]
    reordered = moments.reordered(found)
    Projections.of(attention).reordered(found).give_to(attention)
    again = added(attention)
    for name in ("queries", "keys", "values"):
        torch.testing.assert_close(getattr(reordered, name), getattr(again, name), rtol=1e-9, atol=1e-9)


def test_merged():
    projections = Projections.of(make())
    mean, first = (projections.merged(2, method) for method in ("mean", "first"))
    assert torch.equal(mean.key[1], (projections.key[2] + projections.key[3]) / 2)
    assert torch.equal(first.value, projections.value[::2])


def error_of_group(covariances, uses, combination):
    """Of the outputs of the heads of a group as they are read: the sum over the heads, by the definition."""
    matrices = readings(covariances, combination)
    total = 0.0
    for head, (covariance, use, reading) in enumerate(zip(covariances, uses, matrices, strict=True)):
        lost = torch.zeros(WIDTH, covariance.size(0), dtype=torch.float64)
        lost[:, head * WIDTH : (head + 1) * WIDTH] = torch.eye(WIDTH)
        lost -= reading @ combination.T
        total += float((use @ lost @ covariance @ lost.T).trace())
    return total


def test_principal_components_against_others():
    """Where the covariance is the same for every head, no other combinations have less error."""
    moments = added(make())
    shared = moments.keys[:2, :10, :10].mean(dim=0).expand(2, -1, -1)
    uses = moments.queries[:2]
    best = principal_components(shared, uses, WIDTH)
    least = error_of_group(shared, uses, best)
    mean_of_heads = torch.cat([torch.eye(WIDTH, dtype=torch.float64)] * 2)
    generator = torch.Generator().manual_seed(1)
    others = [torch.randn(10, WIDTH, generator=generator, dtype=torch.float64) for _ in range(50)]
    others += [best + size * other for size in (1e-3, 1e-1) for other in others]
    assert least < error_of_group(shared, uses, mean_of_heads)
    assert all(error_of_group(shared, uses, other) >= least - 1e-9 for other in others)
    whole = error_of_group(shared, uses, principal_components(shared, uses, 10))
    assert whole == pytest.approx(0, abs=1e-8 * least)


def test_readings_are_least_squares():
    """Against the normal equations of samples."""
    generator = torch.Generator().manual_seed(1)
    samples = torch.randn(2, 100, 10, generator=generator, dtype=torch.float64)
    combination = torch.randn(10, WIDTH, generator=generator, dtype=torch.float64)
    found = readings(samples.mT @ samples, combination)
    for head in range(2):
        own = samples[head][:, head * WIDTH : (head + 1) * WIDTH]
        expected = torch.linalg.lstsq(samples[head] @ combination, own).solution.T
        torch.testing.assert_close(found[head], expected)


def attended(attention, components, wanted):
    for (query, memory), output in zip(texts(attention), wanted, strict=True):
        _, weights = run(attention, query, memory, need_head_weights=True)
        memory = torch.cat((memory[:, 0], torch.ones(len(memory), 1, dtype=memory.dtype)), dim=1)
        heads = [weights[head, 0] @ memory @ components[head * len(components) // HEADS].T for head in range(HEADS)]
        yield torch.stack(heads, dim=1), output[:, 0]


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_fitted_values(kv_heads):
    """The error of the outputs is less than that of the principal components and of aligned heads, and a minimum: no
    small change of the values or of the output projection makes it less."""
    attention = make(kdim=8)
    wanted = [run(attention, *each)[0] for each in texts(attention)]
    projections, moments = Projections.of(attention), added(attention)
    aligned(projections, moments, kv_heads).merged(kv_heads, "mean").give_to(attention)

    def error(new):
        new.give_to(attention)
        pairs = zip(texts(attention), wanted, strict=True)
        return sum(float((run(attention, *each)[0] - output).square().sum()) for each, output in pairs)

    after_aligning = error(aligned(projections, moments, kv_heads).merged(kv_heads, "mean"))
    fit = fitted(projections, moments, kv_heads)
    by_components = error(fit.projections)
    new = fit_values(fit, attended(attention, fit.components, wanted))
    least = error(new)
    assert least < 0.9 * by_components and by_components < after_aligning
    generator = torch.Generator().manual_seed(1)
    for name in ("value", "output"):
        tensor = getattr(new, name)
        for _ in range(10):
            change = (
                1e-2
                * tensor.norm()
                * torch.nn.functional.normalize(
                    torch.randn(tensor.shape, generator=generator, dtype=torch.float64).flatten(), dim=0
                ).view_as(tensor)
            )
            assert error(replace(new, **{name: tensor + change})) > least * (1 - 1e-3)
    balance = balanced(new)
    assert error(balance) == pytest.approx(least, rel=1e-6)
    for shared, uses in ((balance.key, balance.query), (balance.value, balance.output)):
        theirs = (uses @ uses.mT).unflatten(0, (kv_heads, -1)).mean(dim=1)
        torch.testing.assert_close(shared @ shared.mT, theirs, rtol=1e-6, atol=1e-6)


ZEROS = {
    "everything": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "queries, keys and values": ("q_proj", "k_proj", "v_proj"),
    "queries": ("q_proj",),
    "keys": ("k_proj",),
    "values": ("v_proj",),
    "output": ("out_proj",),
}


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("zeros", ZEROS)
def test_weights_of_zero(zeros, kv_heads, biases):
    """Nothing is lost where there was nothing to read, and what was not zero can be trained from what is left."""
    attention = make(kdim=8)
    for name in ZEROS[zeros]:
        getattr(attention, name).weight.zero_()
        if not biases:
            getattr(attention, name).bias.zero_()
    wanted = [run(attention, *each)[0] for each in texts(attention)]
    projections = Projections.of(attention)
    fit = fitted(projections, added(attention), kv_heads)
    fit.projections.give_to(attention)
    new = balanced(fit_values(fit, attended(attention, fit.components, wanted)))
    new.give_to(attention)
    assert all(bool(parameter.isfinite().all()) for parameter in attention.parameters())
    if zeros not in ("queries", "keys"):  # without which the heads differ in their values
        for each, output in zip(texts(attention), wanted, strict=True):
            torch.testing.assert_close(run(attention, *each)[0], output, rtol=1e-9, atol=1e-9)
    for one, other in (("query", "key"), ("value", "output")):
        if bool(getattr(projections, one).any()) or bool(getattr(projections, other).any()):
            assert bool(getattr(new, one).any()) or bool(getattr(new, other).any())
