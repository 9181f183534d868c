import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from elseq.attention import (
    Segment,
    keep_largest,
    multi_head_attention,
    top_k_attention,
    top_k_feed_forward,
)
from elseq.attention import top_k as module
from tests.attention.reference import padding_mask, quick, seeds

DENSE_ACTIVATIONS = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_accurate": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
}


def naive_top_k(query, key, value, top_k, mask=None, causal=False, window=None):
    """One query at a time: its scores in order of size, the first k of those that it sees."""
    sequences, heads, length, _ = query.shape
    owners, kv_heads, keys, _ = key.shape
    output = []
    for sequence in range(sequences):
        owner = sequence // (sequences // owners)
        for head in range(heads):
            kv_head = head // (heads // kv_heads)
            for position in range(length):
                itself = keys - length + position
                seen = []
                for other in range(keys):
                    excluded = (
                        mask is not None
                        and mask[owner if mask.size(0) > 1 else 0, position if mask.size(1) > 1 else 0, other].item()
                    )
                    if causal:
                        excluded = excluded and other != itself or other > itself
                        excluded = excluded or window is not None and other <= itself - window
                    if not excluded:
                        seen.append(other)
                scores = key[owner, kv_head, seen] @ query[sequence, head, position]
                chosen = scores.argsort(descending=True)[:top_k]
                weights = scores[chosen].softmax(dim=0)
                output.append(weights @ value[owner, kv_head, seen][chosen])
    return torch.stack(output).view(sequences, heads, length, value.size(-1))


def naive_feed_forward(x, weight_in, bias_in, weight_out, bias_out, top_k, activation):
    scores = F.linear(x, weight_in, bias_in)
    if top_k < scores.size(-1):
        smallest = scores.sort(dim=-1, descending=True).values[..., top_k - 1 : top_k]
        hidden = torch.where(scores >= smallest, DENSE_ACTIVATIONS[activation](scores), 0.0)
    else:
        hidden = DENSE_ACTIVATIONS[activation](scores)
    return F.linear(hidden, weight_out, bias_out)


def random(*shape, **options):
    return torch.randn(*shape, **{"dtype": torch.float64, "requires_grad": True, **options})


def assert_equal_with_gradients(output, expected, inputs, tolerance=1e-10):
    torch.testing.assert_close(output, expected, rtol=0, atol=tolerance)
    direction = torch.randn_like(output)
    gradients = torch.autograd.grad(output, inputs, direction)
    wanted = torch.autograd.grad(expected, inputs, direction, materialize_grads=True)
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, want, rtol=0, atol=tolerance)


@pytest.fixture(params=[0.0, 1 / 8, 2.0], ids=["among zeros", "as shipped", "embedding_bag"])
def large_part(request, monkeypatch):
    """Both ways to sum rows, whatever k is."""
    monkeypatch.setattr(module, "LARGE_PART", request.param)


@st.composite
def problems(draw):
    torch.manual_seed(draw(seeds))
    owners, shared = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2, 3]))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    length, keys = draw(st.integers(1, 9)), draw(st.integers(1, 24))
    width, value_width = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    inputs = (
        random(owners * shared, kv_heads * group, length, width),
        random(owners, kv_heads, keys, width),
        random(owners, kv_heads, keys, value_width),
    )
    options = {"causal": draw(st.booleans())}
    if options["causal"]:
        options["window"] = draw(st.one_of(st.none(), st.integers(1, keys + 2)))
    kind = draw(st.sampled_from(["none", "padding", "full"]))
    if kind == "padding":
        lengths = [draw(st.integers(0, keys)) for _ in range(owners)]
        options["mask"] = padding_mask(lengths, keys, draw(st.sampled_from(["left", "right"]))).unsqueeze(1)
    elif kind == "full":
        options["mask"] = torch.rand(draw(st.sampled_from([1, owners])), length, keys) < 0.5
    chunk = draw(st.sampled_from([None, 1, 2, length, length + 5]))
    return inputs, draw(st.integers(1, keys + 2)), options, chunk


@pytest.mark.usefixtures("large_part")
@quick
@given(problems())
def test_equals_one_query_at_a_time(problem):
    inputs, top_k, options, chunk = problem
    output = top_k_attention(*inputs, top_k, query_chunk_size=chunk, **options)
    assert_equal_with_gradients(output, naive_top_k(*inputs, top_k, **options), inputs)


@pytest.mark.parametrize("most", [1, 50, 200])
def test_key_value_heads_are_evaluated_in_chunks_too(monkeypatch, most):
    monkeypatch.setitem(module.MOST_SCORES, "cpu", most)
    torch.manual_seed(1)
    inputs = random(6, 4, 5, 3), random(3, 2, 9, 3), random(3, 2, 9, 2)
    options = {"mask": padding_mask([9, 2, 5], 9, "left").unsqueeze(1), "causal": True}
    output = top_k_attention(*inputs, 3, **options)
    assert_equal_with_gradients(output, naive_top_k(*inputs, 3, **options), inputs)


@pytest.mark.parametrize("total, most", [(1, 1), (7, 3), (9, 8), (100, 99), (12, 4), (3, 10), (0, 2)])
def test_chunks_are_even(total, most):
    pieces = list(module._even_slices(total, most))
    assert [position for piece in pieces for position in range(total)[piece]] == list(range(total))
    sizes = [piece.stop - piece.start for piece in pieces]
    assert len(sizes) == -(-total // most)
    assert not sizes or max(sizes) <= most and max(sizes) - min(sizes) <= 1


@pytest.mark.usefixtures("large_part")
@pytest.mark.parametrize("top_k", [13, 40])
@pytest.mark.parametrize("causal", [False, True])
def test_equals_attention_where_no_key_is_dropped(top_k, causal):
    torch.manual_seed(2)
    inputs = random(4, 6, 13 if causal else 5, 8), random(4, 2, 13, 8), random(4, 2, 13, 8)
    output = top_k_attention(*inputs, top_k, causal=causal, query_chunk_size=4)
    expected = F.scaled_dot_product_attention(*inputs, is_causal=causal, scale=1.0, enable_gqa=True)
    assert_equal_with_gradients(output, expected, inputs)


def test_masks_are_those_of_multi_head_attention():
    torch.manual_seed(3)
    inputs = random(4, 2, 6, 3), random(2, 2, 8, 3), random(2, 2, 8, 3)
    mask = padding_mask([8, 3], 8, "left").unsqueeze(1)
    output = top_k_attention(*inputs, 8, mask=mask, causal=True, window=5)
    expected, _ = multi_head_attention(inputs[0], [Segment(*inputs[1:], mask)], causal=True, window=5)
    assert_equal_with_gradients(output, expected, inputs)


@pytest.mark.usefixtures("large_part")
def test_a_query_that_sees_nothing_gives_zeros_and_changes_no_gradient():
    torch.manual_seed(4)
    inputs = random(2, 2, 3, 4), random(2, 2, 40, 4), random(2, 2, 40, 4)
    mask = padding_mask([40, 0], 40, "right").unsqueeze(1)
    output = top_k_attention(*inputs, 3, mask=mask)
    assert torch.equal(output[1], torch.zeros_like(output[1]))
    gradients = torch.autograd.grad(output.sum(), inputs)
    alone = [tensor[:1] for tensor in inputs]
    wanted = torch.autograd.grad(top_k_attention(*alone, 3).sum(), inputs)
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, want, rtol=0, atol=1e-12)


# sequences, positions of the query and of the keys, width of a key and of a value
EMPTY = [(0, 3, 50, 4, 6), (2, 0, 50, 4, 6), (2, 3, 0, 4, 6), (2, 0, 0, 4, 6), (2, 3, 50, 0, 6), (2, 3, 50, 4, 0)]


@pytest.mark.usefixtures("large_part")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("sequences", "length", "keys", "width", "value_width"), EMPTY)
def test_nothing_to_attend_with_or_to(sequences, length, keys, width, value_width, causal):
    """Where nothing is dropped, what torch's attention gives; where something might be, as much."""
    torch.manual_seed(19)
    inputs = (
        random(sequences, 4, length, width),
        random(sequences, 2, keys, width),
        random(sequences, 2, keys, value_width),
    )
    hidden = torch.ones(length, keys, dtype=torch.bool).triu(keys - length + 1) if causal else None
    visible = None if hidden is None else ~hidden
    expected = F.scaled_dot_product_attention(*inputs, attn_mask=visible, scale=1.0, enable_gqa=True)
    mask = torch.zeros(sequences, 1, keys, dtype=torch.bool)
    assert_equal_with_gradients(top_k_attention(*inputs, 99, causal=causal, mask=mask), expected, inputs)
    some = top_k_attention(*inputs, 2, causal=causal, dropout=0.5)
    assert some.shape == expected.shape
    assert [tensor.shape for tensor in torch.autograd.grad(some.sum(), inputs)] == [tensor.shape for tensor in inputs]


@pytest.mark.parametrize("shape", [(0, 5), (0, 500), (3, 0), (2, 0, 4)])
def test_of_no_scores_none_are_kept(shape):
    scores = random(*shape)
    kept = keep_largest(scores, 2)
    assert kept.shape == shape
    assert torch.autograd.grad(kept.sum(), scores)[0].shape == shape


@pytest.mark.usefixtures("large_part")
@quick
@given(seeds, st.integers(1, 11))
def test_of_equal_scores_exactly_k_are_kept(seed, top_k):
    """Where the values are powers of two, the output says which were averaged."""
    torch.manual_seed(seed)
    keys = 12
    query, key = torch.randn(1, 2, 3, 4, dtype=torch.float64), torch.randn(1, 1, 1, 4, dtype=torch.float64)
    powers = 2.0 ** torch.arange(keys, dtype=torch.float64)
    output = top_k_attention(query, key.expand(1, 1, keys, 4), powers.view(1, 1, keys, 1), top_k)
    for total in (output * top_k).flatten().tolist():
        assert abs(total - round(total)) < 1e-6
        assert round(total).bit_count() == top_k


@quick
@given(seeds, st.integers(1, 9), st.integers(1, 6))
def test_ties_at_the_threshold(seed, top_k, levels):
    """Scores of a few values: k are kept, none of them below one that is dropped."""
    torch.manual_seed(seed)
    scores = torch.randint(levels, (2, 3, 8)).double()
    kept = keep_largest(scores, top_k)
    survives = kept > float("-inf")
    assert (survives.sum(dim=-1) == min(top_k, 8)).all()
    assert torch.equal(kept[survives], scores[survives])
    lowest_kept = kept.masked_fill(~survives, torch.inf).amin(dim=-1)
    highest_dropped = scores.masked_fill(survives, -torch.inf).amax(dim=-1)
    assert (lowest_kept >= highest_dropped).all()


def test_keep_largest_before_softmax_is_top_k_attention():
    torch.manual_seed(5)
    inputs = random(2, 3, 1, 4), random(2, 3, 9, 4), random(2, 3, 9, 4)
    scores = keep_largest(inputs[0] @ inputs[1].transpose(-1, -2), 4)
    assert_equal_with_gradients(top_k_attention(*inputs, 4), scores.softmax(dim=-1) @ inputs[2], inputs)
    assert keep_largest(scores, 9) is scores


@quick
@given(seeds, st.integers(1, 6), st.integers(1, 150), st.booleans(), st.sampled_from([1, 2, 8]))
def test_a_search_in_groups_finds_what_topk_finds(seed, top_k, length, ties, group):
    torch.manual_seed(seed)
    scores = torch.randint(9, (2, 3, length)).double() if ties else torch.randn(2, 3, length)
    scores[0, :, length // 2 :] = float("-inf")
    top_k = min(top_k, length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "GROUP", group)
        largest, indices = module._largest(scores, top_k)
    assert torch.equal(largest.sort(descending=True).values, scores.topk(top_k).values)
    assert torch.equal(scores.gather(-1, indices), largest)
    assert (indices.sort().values.diff() > 0).all()


@pytest.mark.few_cases(2)
@pytest.mark.usefixtures("large_part")
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradcheck(dropout):
    torch.manual_seed(6)
    inputs = random(2, 2, 4, 2), random(1, 1, 12, 2), random(1, 1, 12, 3)

    def attend(*tensors):
        torch.manual_seed(7)
        return top_k_attention(*tensors, 3, causal=True, query_chunk_size=3, dropout=dropout)

    assert torch.autograd.gradcheck(attend, inputs)


@pytest.mark.usefixtures("large_part")
def test_dropout_drops_weights_and_scales_the_others():
    """Where the values are the unit vectors, the output is the weights after dropout."""
    torch.manual_seed(8)
    query, key = random(40, 2, 30, 4), random(1, 1, 50, 4)
    units = torch.eye(50, dtype=torch.float64).view(1, 1, 50, 50)
    exact = top_k_attention(query, key, units, 5)
    dropped = top_k_attention(query, key, units, 5, dropout=0.25)
    survives = dropped != 0
    assert 0.73 < survives.sum() / (exact != 0).sum() < 0.77
    torch.testing.assert_close(dropped, exact / 0.75 * survives)
    torch.testing.assert_close(dropped.mean(dim=(0, 2)), exact.mean(dim=(0, 2)), rtol=0, atol=0.02)
    nothing = top_k_attention(query, key, units, 5, dropout=1.0)
    assert torch.equal(nothing, torch.zeros_like(nothing))


@pytest.mark.usefixtures("large_part")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_float_types(dtype):
    """Gradients of many queries are summed, which half precision could not."""
    torch.manual_seed(9)
    inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in (random(1, 2, 600, 16), random(1, 1, 64, 16))]
    inputs.append(torch.randn(1, 1, 64, 8).to(dtype).requires_grad_())
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    # Half precision has ties and near ties: with all keys the choice is no matter.
    output, expected = top_k_attention(*inputs, 64, query_chunk_size=50), top_k_attention(*exact, 64)
    assert output.dtype == dtype
    tolerance = 20 * torch.finfo(dtype).eps
    direction = torch.rand_like(output)
    gradients = torch.autograd.grad(output, inputs, direction)
    wanted = torch.autograd.grad(expected, exact, direction.double())
    for found, want in zip((output, *gradients), (expected, *wanted), strict=True):
        assert found.dtype == dtype
        assert (found.double() - want).norm() <= tolerance * want.norm()


def test_autocast():
    torch.manual_seed(10)
    inputs = [tensor.detach().float().requires_grad_() for tensor in (random(1, 2, 6, 4), random(1, 2, 30, 4))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = top_k_attention(inputs[0].bfloat16(), inputs[1], inputs[1], 3)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert all(tensor.grad.dtype == torch.float32 for tensor in inputs)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(use_reentrant, dropout):
    torch.manual_seed(11)
    inputs = random(1, 2, 6, 4), random(1, 2, 40, 4), random(1, 2, 40, 4)

    def attend(*tensors):
        return top_k_attention(*tensors, 3, causal=True, dropout=dropout, query_chunk_size=4)

    torch.manual_seed(12)
    output = checkpoint(attend, *inputs, use_reentrant=use_reentrant)
    output.square().sum().backward()
    torch.manual_seed(12)
    expected = attend(*inputs)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    assert torch.equal(output, expected)
    for tensor, want in zip(inputs, wanted, strict=True):
        torch.testing.assert_close(tensor.grad, want, rtol=0, atol=1e-12)


def test_twice_in_a_graph_and_twice_backward():
    torch.manual_seed(13)
    inputs = random(1, 2, 6, 4), random(1, 2, 20, 4), random(1, 2, 20, 4)

    def twice(attend):
        return attend(attend(*inputs, 3), *inputs[1:], 2)

    output = twice(top_k_attention)
    first = torch.autograd.grad(output.sum(), inputs, retain_graph=True)
    again = torch.autograd.grad(output.sum(), inputs)
    wanted = torch.autograd.grad(twice(naive_top_k).sum(), inputs)
    for gradients in (first, again):
        for gradient, want in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(gradient, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode):
    torch.manual_seed(14)
    inputs = random(2, 2, 5, 3), random(2, 2, 20, 3), random(2, 2, 20, 3)
    with mode():
        output = top_k_attention(*inputs, 4, causal=True)
        assert not output.requires_grad
        torch.testing.assert_close(output, naive_top_k(*inputs, 4, causal=True), rtol=0, atol=1e-12)


def test_only_some_gradients_are_asked_for():
    torch.manual_seed(15)
    query, key, value = random(1, 1, 5, 3), random(1, 1, 20, 3, requires_grad=False), random(1, 1, 20, 3)
    output = top_k_attention(query, key, value, 2)
    assert_equal_with_gradients(output, naive_top_k(query, key, value, 2), (query, value))


def test_no_second_derivative():
    query, key = random(1, 1, 3, 2), random(1, 1, 4, 2)
    (gradient,) = torch.autograd.grad(top_k_attention(query, key, key, 2).square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("mistake", ["top_k", "query_chunk_size"])
def test_mistakes(mistake):
    with pytest.raises(ValueError, match=f"^{mistake} is 0: it has to be 1 or more"):
        top_k_attention(*torch.randn(3, 1, 1, 4, 2), **{"top_k": 2, mistake: 0})


class LargestTensor(TorchDispatchMode):
    """Numbers in the largest tensor that an operation returned."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


def largest_saved_and_largest_tensor(function, inputs):
    """Of a forward and a backward pass."""
    saved = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    with LargestTensor() as largest:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = function(*inputs)
        torch.autograd.grad(output, inputs, torch.ones_like(output))
    return max(saved), largest.numbers


@pytest.mark.parametrize("options", [{}, {"causal": True, "dropout": 0.1}, {"causal": True, "window": 300}])
def test_nothing_is_as_large_as_queries_times_keys(options):
    length, chunk, top_k, width = 2048, 64, 16, 8
    inputs = [torch.randn(1, 1, length, width, requires_grad=True) for _ in range(3)]
    saved, largest = largest_saved_and_largest_tensor(
        lambda *tensors: top_k_attention(*tensors, top_k, query_chunk_size=chunk, **options), inputs
    )
    assert saved == length * top_k
    assert largest <= chunk * length < length * length / 16


def test_scores_at_a_time_are_bounded_by_default():
    inputs = [torch.randn(1, 6, 2048, 4, requires_grad=True) for _ in range(3)]
    saved, largest = largest_saved_and_largest_tensor(lambda *tensors: top_k_attention(*tensors, 16), inputs)
    assert saved == 6 * 2048 * 16
    assert largest <= module.MOST_SCORES["cpu"]


@st.composite
def feed_forward_layers(draw):
    torch.manual_seed(draw(seeds))
    tokens, width = (draw(st.integers(1, 4)), draw(st.integers(1, 3))), draw(st.integers(1, 5))
    units, out_width = draw(st.integers(1, 24)), draw(st.integers(1, 5))
    biases = draw(st.booleans())
    tensors = [
        random(*tokens, width),
        random(units, width),
        random(units) if biases else None,
        random(out_width, units),
        random(out_width) if biases else None,
    ]
    chunk = draw(st.sampled_from([None, 1, 2, 20]))
    return tensors, draw(st.integers(1, units + 2)), draw(st.sampled_from(list(DENSE_ACTIVATIONS))), chunk


@pytest.mark.usefixtures("large_part")
@quick
@given(feed_forward_layers())
def test_feed_forward_equals_the_dense_layer(layer):
    tensors, top_k, activation, chunk = layer
    output = top_k_feed_forward(*tensors, top_k, activation, chunk_size=chunk)
    expected = naive_feed_forward(*tensors, top_k, activation)
    assert_equal_with_gradients(output, expected, [tensor for tensor in tensors if tensor is not None])


@pytest.mark.usefixtures("large_part")
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize(
    ("tokens", "width", "units", "out_width"), [((0,), 4, 50, 6), ((2, 0), 4, 50, 6), ((3,), 0, 50, 6), ((3,), 4, 0, 6)]
)
def test_feed_forward_of_nothing(tokens, width, units, out_width, biases):
    torch.manual_seed(20)
    tensors = [random(*tokens, width), random(units, width), random(units), random(out_width, units), random(out_width)]
    if not biases:
        tensors[2] = tensors[4] = None
    expected = F.linear(F.linear(*tensors[:3]).relu(), *tensors[3:])
    inputs = [tensor for tensor in tensors if tensor is not None]
    assert_equal_with_gradients(top_k_feed_forward(*tensors, 99, "relu"), expected, inputs)
    assert top_k_feed_forward(*tensors, 2, "relu").shape == expected.shape


@pytest.mark.usefixtures("large_part")
@pytest.mark.parametrize("activation", DENSE_ACTIVATIONS)
def test_feed_forward_gradcheck(activation):
    torch.manual_seed(16)
    tensors = random(3, 2), random(12, 2), random(12), random(3, 12), random(3)
    assert torch.autograd.gradcheck(lambda *t: top_k_feed_forward(*t, 3, activation, chunk_size=2), tensors)


def test_feed_forward_is_exact_where_k_units_are_all_that_relu_lets_pass():
    torch.manual_seed(17)
    tensors = random(7, 4), random(30, 4), random(30), random(5, 30), random(5)
    positive = int((F.linear(*tensors[:3]) > 0).sum(dim=-1).max())
    assert positive < 30
    expected = F.linear(F.linear(*tensors[:3]).relu(), *tensors[3:])
    assert_equal_with_gradients(top_k_feed_forward(*tensors, positive, "relu"), expected, tensors)


def test_what_gelu_loses_of_a_negative_pre_activation():
    x = torch.linspace(-10, 0, 10001)
    for activation in ("gelu", "gelu_accurate"):
        assert -0.1701 < module.ACTIVATIONS[activation](x).min() <= module.ACTIVATIONS[activation](x).max() <= 0


def test_feed_forward_memory():
    tokens, units, top_k = 1024, 2048, 32
    tensors = [
        torch.randn(*shape, requires_grad=True) for shape in ((tokens, 8), (units, 8), (units,), (8, units), (8,))
    ]
    saved, largest = largest_saved_and_largest_tensor(
        lambda *tensors: top_k_feed_forward(*tensors, top_k, "relu", chunk_size=32), tensors
    )
    assert saved == tokens * top_k
    assert largest <= 32 * units


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ({"top_k": 0}, "^top_k is 0: it has to be 1 or more"),
        ({"chunk_size": 0}, "^chunk_size is 0: it has to be 1 or more"),
        ({"activation": "swish"}, "swish: top-k feed-forward layers have one of relu"),
    ],
)
def test_feed_forward_mistakes(mistake, sentence):
    tensors = torch.randn(2, 3), torch.randn(4, 3), None, torch.randn(3, 4), None
    with pytest.raises(ValueError, match=sentence):
        top_k_feed_forward(*tensors, **{"top_k": 2, "activation": "relu", **mistake})


@pytest.mark.gpu
@pytest.mark.usefixtures("large_part")
def test_cuda():
    torch.manual_seed(18)
    inputs = random(4, 4, 40, 8), random(2, 2, 50, 8), random(2, 2, 50, 8)
    mask = padding_mask([50, 20], 50, "left").unsqueeze(1)
    moved = [tensor.cuda() for tensor in inputs]
    output = top_k_attention(*moved, 5, mask=mask.cuda(), causal=True, window=30, query_chunk_size=9).cpu()
    expected = top_k_attention(*inputs, 5, mask=mask, causal=True, window=30)
    assert_equal_with_gradients(output, expected, inputs)
