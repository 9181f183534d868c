"""The kernel of a decoding step with hidden states, against keys and values in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elseq.attention.kernels.el_step import el_step
from tests.attention.reference import naive_attention, quick, seeds

pytestmark = pytest.mark.usefixtures("kernels_for")
widths = st.sampled_from([1, 3, 8, 15, 16, 17, 31, 33, 64, 80, 131])
head_widths = st.sampled_from([1, 2, 3, 4, 8, 17, 18, 35])
lengths = st.sampled_from([1, 2, 5, 15, 16, 17, 63, 64, 65, 130, 257])
dtypes = st.sampled_from([torch.float32, torch.bfloat16])
tops = st.sampled_from([None, 1, 2, 7, 16, 60, 200, 2**64])


def draw_layer(hypotheses, heads, head_width=8, width=16, kv_heads=None, seed=1):
    """A query, the weights of keys and values, and a bias or None."""
    outputs = (kv_heads or heads) * head_width
    query = torch.randn(hypotheses, 1, heads, head_width).transpose(1, 2) * 2 / head_width**0.5
    key_weight, value_weight = torch.randn(2, outputs, width) / width**0.5
    return query, key_weight, value_weight, torch.randn(outputs) if seed % 2 else None


def draw_shared(sentences, length, width=16, hidden=0.0, dtype=torch.float32):
    mask = torch.rand(sentences, 1, length) < hidden
    mask[:, :, length // 2] = False  # something is left
    return torch.randn(sentences, length + 2, width + 1, dtype=dtype)[:, 1:-1, :-1], mask if hidden else None


def draw_own(hypotheses, buffer_rows, length, width, listed, dtype=torch.float32):
    states = torch.randn(buffer_rows, length + 3, width, dtype=dtype)[:, 2:-1]
    return states, torch.randint(buffer_rows, (hypotheses, listed + 2))[:, 1 : 1 + listed]


def expected(layer, shared=None, own=None, top_k=None):
    """By the keys and values of the hidden states."""
    query, key_weight, value_weight, bias = (None if tensor is None else tensor.double() for tensor in layer)
    segments = [] if shared is None else [(shared[0].double(), shared[1])]
    if own is not None:
        states, rows = own
        places = torch.arange(len(rows)).unsqueeze(1).repeat(1, states.size(1))
        places[:, : rows.size(1)] = rows
        segments.append((states[places, torch.arange(states.size(1))].double(), None))

    def heads(projected):
        return projected.unflatten(2, (-1, query.size(3))).transpose(1, 2)

    def segment(states, mask):
        values = states @ value_weight.T
        return heads(states @ key_weight.T), heads(values if bias is None else values + bias), mask

    return naive_attention(query, [segment(*each) for each in segments], top_k=top_k)[0]


def assert_right(layer, shared=None, own=None, top_k=None):
    found = el_step(*layer, shared, own, top_k)
    assert found.dtype == torch.float32 and found.is_contiguous()
    torch.testing.assert_close(found.double(), expected(layer, shared, own, top_k), rtol=0, atol=6e-6)


@quick
@given(
    *(seeds, st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.sampled_from([1, 2, 7])),
    *(head_widths, lengths, widths, dtypes, tops),
)
def test_positions_of_sentences(seed, sentences, beam, kv_heads, ratio, head_width, length, width, dtype, top_k):
    torch.manual_seed(seed)
    layer = draw_layer(sentences * beam, kv_heads * ratio, head_width, width, kv_heads, seed)
    assert_right(layer, draw_shared(sentences, length, width, seed % 3 / 3, dtype), None, top_k)


@quick
@given(seeds, st.integers(1, 7), st.integers(0, 3), st.sampled_from([1, 2, 5, 8]), lengths, widths, dtypes, tops)
def test_positions_of_hypotheses(seed, hypotheses, dropped, heads, length, width, dtype, top_k):
    torch.manual_seed(seed)
    own = draw_own(hypotheses, hypotheses + dropped, length, width, seed % (length + 1), dtype)
    assert_right(draw_layer(hypotheses, heads, 4, width), None, own, top_k)


@quick
@given(seeds, st.integers(1, 2), st.integers(1, 4), st.sampled_from([1, 3, 8]), lengths, lengths, dtypes, dtypes, tops)
def test_both_under_one_softmax(seed, sentences, beam, heads, prompt, length, of_prompt, of_own, top_k):
    torch.manual_seed(seed)
    width, hypotheses = (16, 24, 64)[seed % 3], sentences * beam
    shared = draw_shared(sentences, prompt, width, 0.4, of_prompt)
    own = draw_own(hypotheses, hypotheses, length, width, seed % (length + 1), of_own)
    assert_right(draw_layer(hypotheses, heads, 8, width), shared, own, top_k)


@pytest.mark.parametrize("top_k", [None, 9, 1000])
def test_a_layer_in_bfloat16(top_k):
    """The result is rounded once more."""
    torch.manual_seed(0)
    layer = [tensor.bfloat16() for tensor in draw_layer(8, 4, width=40)]
    shared, own = draw_shared(2, 30, 40, 0.3, torch.bfloat16), draw_own(8, 8, 6, 40, 5, torch.bfloat16)
    found = el_step(*layer, shared, own, top_k)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected(layer, shared, own, top_k), rtol=2**-8, atol=6e-6)


@pytest.mark.parametrize("top_k", [1, 2, 9, 30, 75, 79])
def test_of_equal_scores_the_first_count(top_k):
    """Of small whole numbers many products are equal, and exact."""
    torch.manual_seed(top_k)
    (query, _, *value), shared, own = draw_layer(6, 4, 8, 8), draw_shared(2, 60, 8), draw_own(6, 6, 20, 8, 15)
    layer = query.round(), torch.eye(8).repeat(4, 1), *value
    assert_right(layer, (shared[0].round(), shared[1]), (own[0].round(), own[1]), top_k)


def test_positions_that_are_chosen_in_several_blocks():
    torch.manual_seed(0)
    layer, shared = draw_layer(8, 4, 8, 131), draw_shared(2, 3000, 131, 0.3)
    for top_k in (3, 700, 2000):
        assert_right(layer, shared, None, top_k)


def test_every_way_to_share_the_work(threads):
    torch.manual_seed(0)
    query, *weights = draw_layer(24, 16, 16, 64, 8)
    for sentences in (8, 1, 24):
        shared, own = draw_shared(sentences, 200, 64, 0.2), draw_own(24, 24, 20, 64, 19)
        assert_right((query, *weights), shared, own)
        beam = 24 // sentences
        one = el_step(query[:beam], *weights, tuple(x[:1] for x in shared))
        assert torch.equal(one, el_step(query, *weights, shared)[:beam])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("more", [1, 7, 40, 100])
@pytest.mark.parametrize("top_k", [None, 9, 29, 33])
def test_masked_positions_behind_a_text_change_no_bit(top_k, more, dtype):
    torch.manual_seed(1)
    layer, (states, _) = draw_layer(6, 4, width=40), draw_shared(2, 29, 40, dtype=dtype)
    longer = torch.nn.functional.pad(states, (0, 0, 0, more), value=3.0)
    mask = torch.arange(29 + more).view(1, 1, -1) >= 29
    assert torch.equal(el_step(*layer, (longer, mask), None, top_k), el_step(*layer, (states, None), None, top_k))


def test_large_scores():
    """Later positions lower the weights of former ones to nothing, and the other way round."""
    torch.manual_seed(0)
    (query, *weights), (states, mask) = draw_layer(4, 3), draw_shared(2, 300, hidden=0.5)
    states[0] *= torch.linspace(0, 3, 300).unsqueeze(1)
    states[1] *= torch.linspace(3, 0, 300).unsqueeze(1)
    layer = (query * 64, *weights)
    found = el_step(*layer, (states, mask))
    torch.testing.assert_close(found.double(), expected(layer, (states, mask)), rtol=0, atol=2e-4)


@pytest.mark.parametrize("value, top_k", [(math.nan, None), (math.inf, None), (-math.inf, None), (math.nan, 70)])
@pytest.mark.parametrize("place", ["shared", "own", "query"])
def test_numbers_that_are_none_spread_as_in_torch(place, value, top_k):
    torch.manual_seed(0)
    layer, shared, own = draw_layer(4, 2), draw_shared(2, 80, hidden=0.3), draw_own(4, 4, 6, 16, 0)
    shared[1][1, 0, 3] = False
    {"shared": shared[0][1, 3], "own": own[0][3, 2], "query": layer[0][3, 0, 0]}[place][3] = value
    reference = expected(layer, shared, own, top_k)
    assert 0 < reference.isnan().sum() < reference.numel()
    found = el_step(*layer, shared, own, top_k)
    assert torch.equal(found.isnan().flatten(2).any(2), reference.isnan().flatten(2).any(2))
    right = ~found.isnan()
    torch.testing.assert_close(found[right].double(), reference[right], rtol=0, atol=6e-6)


def test_sentences_without_a_position():
    torch.manual_seed(0)
    (query, *weights), (states, mask) = draw_layer(4, 2), draw_shared(2, 100, hidden=0.3)
    mask[0] = True
    for top_k in (None, 3):
        found = el_step(query, *weights, (states, mask), None, top_k)
        assert found[:2].isnan().all() and not found[2:].isnan().any()
    assert el_step(query, *weights, (states[:, :0], None)).isnan().all()
    states[1, 3], mask[1, :, 3] = torch.finfo(torch.float32).max, True  # hidden entirely
    assert el_step(query, *weights, (states, mask))[2:].abs().max() < 10
    mask[1, :, :70] = True  # a whole block
    assert_right((query[2:], *weights), (states[1:], mask[1:]))


def test_weights_that_are_not_stored_in_order():
    query, *weights = draw_layer(4, 2)
    shared = draw_shared(2, 5)
    found = el_step(query, *weights, shared)
    strided = [weight.repeat_interleave(2, dim=-1)[..., ::2] for weight in weights]
    negative = [torch._neg_view(-weight) for weight in weights]
    assert not any(weight.is_contiguous() for weight in strided) and all(weight.is_neg() for weight in negative)
    for stored in (strided, negative):
        assert torch.equal(el_step(query, *stored, shared), found)


def test_no_hypotheses():
    assert el_step(*draw_layer(0, 2), draw_shared(0, 20)).shape == (0, 2, 1, 8)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"query": torch.randn(4, 2, 2, 8)}, "query"),
        ({"query": torch.randn(4, 2, 1, 8).double()}, "query"),
        ({"query": torch.randn(4, 2, 1, 8).bfloat16()}, "weight"),
        ({"query": torch.randn(3, 2, 1, 8), "own": None}, "multiples"),
        ({"query": torch.randn(4, 3, 1, 8)}, "multiples"),
        ({"query": torch.randn(4, 2, 1, 7)}, "weight"),
        ({"value_weight": torch.randn(16, 15)}, "weight"),
        ({"value_weight": torch.randn(16, 16).double()}, "weight"),
        ({"value_bias": torch.randn(15)}, "bias"),
        ({"shared": (torch.randn(2, 5, 15), None)}, "hidden states"),
        ({"shared": (torch.randn(2, 16, 5).mT, None)}, "hidden states"),
        ({"shared": (torch.randn(2, 5, 16).half(), None)}, "hidden states"),
        ({"shared": (torch.randn(2, 5, 16), torch.zeros(2, 1, 5))}, "mask"),
        ({"own": (torch.randn(4, 16, 5).mT, torch.zeros(4, 0).long())}, "own keys"),
        ({"own": draw_own(3, 4, 5, 16, 3)}, "rows"),
        ({"own": draw_own(4, 4, 5, 16, 6)}, "6 rows"),
        ({"own": draw_own(4, 3, 5, 16, 4)}, "4 rows"),
        ({"top_k": 0}, "^top_k is 0: it has to be 1 or more$"),
    ],
)
def test_refuses(wrong, message):
    names = "query", "key_weight", "value_weight", "value_bias"
    right = dict(zip(names, draw_layer(4, 2), strict=True), shared=draw_shared(2, 5), own=draw_own(4, 4, 5, 16, 3))
    el_step(**right)
    with pytest.raises(ValueError, match=message):
        el_step(**{**right, **wrong})
