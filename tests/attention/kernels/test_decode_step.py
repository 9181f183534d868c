"""The kernel of a decoding step, against attention written out in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from elseq import native
from elseq.attention.kernels.decode_step import attend_to_texts, computes_step, computes_texts, decode_step
from tests.attention.reference import naive_attention, quick, seeds

pytestmark = pytest.mark.usefixtures("kernels_for")
widths = st.sampled_from([1, 3, 8, 15, 16, 17, 40, 64, 80, 128, 131])
lengths = st.sampled_from([1, 2, 5, 15, 16, 17, 63, 64, 65, 130])
tops = st.sampled_from([None, 1, 2, 7, 16, 60, 200, 2**64])


def draw_query(hypotheses, heads, width):
    return torch.randn(hypotheses, 1, heads, width).transpose(1, 2) * 2 / width**0.5


def draw_shared(sentences, heads, length, width, hidden=0.0, dtype=torch.float32):
    keys = torch.randn(sentences, heads, width, length, dtype=dtype).transpose(2, 3)
    mask = torch.rand(sentences, 1, length) < hidden
    mask[:, :, length // 2] = False  # something is left
    return keys, torch.randn(sentences, heads, length, width, dtype=dtype), mask if hidden else None


def draw_own(hypotheses, buffer_rows, heads, length, width, listed, dtype=torch.float32):
    keys, values = torch.randn(2, buffer_rows, heads, length + 3, width, dtype=dtype)[..., 2:-1, :]
    return keys, values, torch.randint(buffer_rows, (hypotheses, listed + 2))[:, 1 : 1 + listed]


def moved(keys, values, rows):
    """What each hypothesis has, as `naive_attention` reads it."""
    hypotheses, listed = rows.shape
    places = [[int(rows[n, s]) if s < listed else n for s in range(keys.size(2))] for n in range(hypotheses)]
    picked = [
        [torch.stack([tensor[row, :, s] for s, row in enumerate(of)], 1) for of in places] for tensor in (keys, values)
    ]
    return (*map(torch.stack, picked), None)


def expected(query, shared=None, own=None, top_k=None):
    segments = ([] if shared is None else [shared]) + ([] if own is None else [moved(*own)])
    wide = [(keys.double(), values.double(), mask) for keys, values, mask in segments]
    return naive_attention(query.double(), wide, top_k=top_k)[0]


def assert_close(actual, reference):
    assert actual.dtype == torch.float32 and actual.is_contiguous()
    torch.testing.assert_close(actual.double(), reference, rtol=0, atol=6e-6)


@quick
@given(
    *(seeds, st.integers(1, 3), st.integers(1, 7), st.integers(1, 3), st.integers(1, 4)),
    *(lengths, widths, st.booleans(), tops),
)
def test_positions_of_sentences(seed, sentences, beam, kv_heads, ratio, length, width, narrow, top_k):
    torch.manual_seed(seed)
    query = draw_query(sentences * beam, kv_heads * ratio, width)
    dtype = torch.bfloat16 if narrow else torch.float32
    shared = draw_shared(sentences, kv_heads, length, width, seed % 3 / 3, dtype)
    assert_close(decode_step(query, shared, None, top_k), expected(query, shared, None, top_k))


@quick
@given(
    seeds, st.integers(1, 7), st.integers(0, 3), st.integers(1, 3), st.sampled_from([1, 2, 9]), lengths, widths, tops
)
def test_positions_of_hypotheses(seed, hypotheses, dropped, kv_heads, ratio, length, width, top_k):
    torch.manual_seed(seed)
    query = draw_query(hypotheses, kv_heads * ratio, width)
    own = draw_own(hypotheses, hypotheses + dropped, kv_heads, length, width, seed % (length + 1))
    assert_close(decode_step(query, None, own, top_k), expected(query, None, own, top_k))


@quick
@given(
    seeds, st.integers(1, 2), st.integers(1, 4), st.integers(1, 2), st.sampled_from([1, 2, 5]), lengths, lengths, tops
)
def test_both_under_one_softmax(seed, sentences, beam, kv_heads, ratio, prompt, length, top_k):
    torch.manual_seed(seed)
    width = (16, 24, 64)[seed % 3]
    query = draw_query(sentences * beam, kv_heads * ratio, width)
    shared = draw_shared(sentences, kv_heads, prompt, width, 0.4, (torch.float32, torch.bfloat16)[seed // 2 % 2])
    dtype = torch.bfloat16 if seed % 2 else torch.float32
    own = draw_own(sentences * beam, sentences * beam, kv_heads, length, width, seed % (length + 1), dtype)
    assert_close(decode_step(query, shared, own, top_k), expected(query, shared, own, top_k))


@pytest.mark.parametrize("top_k", [1, 2, 9, 30, 75, 79])
def test_of_equal_scores_the_first_count(top_k):
    """Of small whole numbers many products are equal, and exact. Zeros are of both signs."""
    torch.manual_seed(top_k)
    query, (keys, values, mask), own = draw_query(6, 4, 4), draw_shared(2, 2, 60, 4, 0.2), draw_own(6, 6, 2, 20, 4, 15)
    query, keys, own = query.round(), keys.round(), (own[0].round(), *own[1:])
    shared = keys, values, mask
    assert_close(decode_step(query, shared, own, top_k), expected(query, shared, own, top_k))


def test_positions_that_are_chosen_in_several_blocks():
    torch.manual_seed(0)
    query, shared = draw_query(8, 4, 64), draw_shared(2, 2, 5000, 64, 0.3)
    for top_k in (3, 700, 3000):
        assert_close(decode_step(query, shared, None, top_k), expected(query, shared, None, top_k))


def test_a_query_in_bfloat16():
    """It is rounded once more: the result."""
    torch.manual_seed(0)
    query, bfloat16 = draw_query(4, 4, 64).bfloat16(), torch.bfloat16
    shared, own = draw_shared(2, 2, 30, 64, 0.3, bfloat16), draw_own(4, 4, 2, 6, 64, 5, bfloat16)
    found = decode_step(query, shared, own)
    assert found.dtype == bfloat16
    torch.testing.assert_close(found.double(), expected(query, shared, own), rtol=2**-8, atol=3e-6)


def test_every_way_to_share_the_work(threads):
    torch.manual_seed(0)
    query = draw_query(24, 16, 64)
    for sentences, kv_heads in ((8, 16), (8, 1), (1, 1), (24, 4)):
        shared = draw_shared(sentences, kv_heads, 200, 64, 0.2)
        own = draw_own(24, 24, kv_heads, 20, 64, 19)
        found = decode_step(query, shared, own)
        assert_close(found, expected(query, shared, own))
        one = decode_step(query[: 24 // sentences], tuple(x[:1] for x in shared))
        assert torch.equal(one, decode_step(query, shared)[: 24 // sentences])


@pytest.mark.parametrize("more", [1, 7, 40])
@pytest.mark.parametrize("top_k", [None, 9, 29, 33])
def test_masked_positions_behind_a_sentence_change_no_bit(top_k, more):
    torch.manual_seed(1)
    query, (keys, values, _) = draw_query(6, 4, 16), draw_shared(2, 2, 29 + more, 16)
    mask = torch.arange(29 + more).view(1, 1, -1) >= 29
    alone = decode_step(query, (keys[:, :, :29], values[:, :, :29], None), None, top_k)
    assert torch.equal(decode_step(query, (keys, values, mask), None, top_k), alone)


def test_large_scores():
    torch.manual_seed(0)
    query, shared = draw_query(4, 2, 16) * 100, draw_shared(2, 2, 50, 16, 0.5)
    assert (query.double() @ shared[0].double().repeat_interleave(2, 0).mT).abs().max() > 200
    torch.testing.assert_close(decode_step(query, shared).double(), expected(query, shared), rtol=0, atol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["key", "value", "query"])
@pytest.mark.parametrize("top_k", [None, 25])
def test_numbers_that_are_none_spread_as_in_torch(place, value, top_k):
    torch.manual_seed(0)
    query, shared, own = draw_query(4, 2, 16), draw_shared(2, 2, 20, 16, 0.3), draw_own(4, 4, 2, 6, 16, 5)
    {"key": shared[0], "value": own[1], "query": query}[place][1, 1, 0, 3] = value
    if place == "key":
        shared[2][1, 0, 0] = False
    reference = expected(query, shared, own, top_k)
    assert 0 < reference.isfinite().sum() < reference.numel()
    found = decode_step(query, shared, own, top_k).double()
    torch.testing.assert_close(found, reference, rtol=0, atol=3e-6, equal_nan=True)


def test_sentences_without_a_position():
    torch.manual_seed(0)
    query, (keys, values, mask) = draw_query(4, 2, 16), draw_shared(2, 2, 20, 16, 0.3)
    mask[0] = True
    for top_k in (None, 3):
        found = decode_step(query, (keys, values, mask), None, top_k)
        assert found[:2].isnan().all() and not found[2:].isnan().any()
    assert decode_step(query, (keys[:, :, :0], values[:, :, :0], None)).isnan().all()
    values[1, :, 3], mask[1, :, 3] = torch.finfo(torch.float32).max, True  # hidden entirely
    assert decode_step(query, (keys, values, mask))[2:].abs().max() < 10


def test_no_hypotheses():
    shared = draw_shared(0, 2, 20, 16)
    assert decode_step(torch.randn(0, 2, 1, 16), shared).shape == (0, 2, 1, 16)


@pytest.mark.parametrize("value", [-0.001, -0.4, -1.0, -20.0, -80.0])
def test_the_exponential(value):
    """Of two positions: the second one's weight is close to exp(value)."""
    keys, values = torch.tensor([0.0, value]).view(1, 1, 2, 1), torch.tensor([0.0, 1.0]).view(1, 1, 2, 1)
    found = decode_step(torch.ones(1, 1, 1, 1), (keys.mT.contiguous().mT, values, None))
    torch.testing.assert_close(found.double().squeeze(), torch.tensor(value).double().sigmoid(), rtol=4e-7, atol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"query": torch.randn(4, 2, 2, 16)}, "query"),
        ({"query": torch.randn(4, 2, 1, 16).double()}, "query"),
        ({"query": torch.randn(3, 2, 1, 16), "own": None}, "multiples"),
        ({"query": torch.randn(4, 3, 1, 16)}, "multiples"),
        ({"shared": (torch.randn(2, 2, 5, 16), torch.randn(2, 2, 5, 16), None)}, "shared keys"),
        ({"shared": (torch.randn(2, 2, 16, 5).mT, torch.randn(2, 2, 16, 5).mT, None)}, "shared values"),
        ({"shared": (torch.randn(2, 2, 16, 5).mT, torch.randn(2, 2, 5, 16).bfloat16(), None)}, "shared values"),
        ({"shared": draw_shared(2, 2, 5, 16)[:2] + (torch.zeros(2, 1, 5),)}, "mask"),
        ({"own": draw_own(4, 4, 1, 5, 16, 3)}, "shared keys"),
        ({"own": (torch.randn(4, 2, 16, 5).mT, torch.randn(4, 2, 5, 16), torch.zeros(4, 0).long())}, "own keys"),
        ({"own": draw_own(3, 4, 2, 5, 16, 3)}, "rows"),
        ({"own": draw_own(4, 4, 2, 5, 16, 6)}, "6 rows"),
        ({"own": draw_own(4, 3, 2, 5, 16, 4)}, "4 rows"),
        ({"top_k": 0}, "^top_k is 0: it has to be 1 or more$"),
    ],
)
def test_refuses(wrong, message):
    right = {"query": torch.randn(4, 2, 1, 16), "shared": draw_shared(2, 2, 5, 16), "own": draw_own(4, 4, 2, 5, 16, 3)}
    decode_step(**right)
    with pytest.raises(ValueError, match=message):
        decode_step(**{**right, **wrong})


def test_fits(monkeypatch):
    query = torch.randn(2, 3, 1, 16)
    assert computes_step(query) and computes_step(query.bfloat16())
    assert not any(map(computes_step, (query.double(), query.half(), query.to("meta"), torch.randn(2, 3, 2, 16))))
    with FlopCounterMode(display=False):
        assert not computes_step(query)
    assert not computes_step(query.requires_grad_())
    with torch.no_grad():
        assert computes_step(query)
        monkeypatch.setattr(native, "library", lambda: None)
        assert not computes_step(query)


@quick
@given(seeds, st.integers(1, 3), lengths, st.integers(1, 3), st.integers(1, 3), widths, st.booleans())
def test_whole_texts(seed, texts, length, kv_heads, ratio, width, is_padded):
    torch.manual_seed(seed)
    query = torch.randn(length, texts, kv_heads * ratio, width).permute(1, 2, 0, 3) * 2 / width**0.5
    key, value = (torch.randn(length, texts, kv_heads, width).permute(1, 2, 0, 3) for _ in range(2))
    mask = None
    if is_padded:
        mask = torch.rand(texts, 1, length) < 0.3
        mask[:, :, 0] = False
    found = attend_to_texts(query, key, value, mask)
    wide = [(key.double(), value.double(), mask)]
    torch.testing.assert_close(found.double(), naive_attention(query.double(), wide)[0], rtol=0, atol=1e-5)


def test_no_texts():
    query, key, value = torch.randn(3, 9, 0, 2, 16).permute(0, 2, 3, 1, 4)
    assert attend_to_texts(query, key, value, None).shape == (0, 2, 9, 16)


@pytest.mark.parametrize("more", [1, 7, 40])
def test_masked_positions_behind_a_text_change_no_bit(more):
    torch.manual_seed(1)
    query, key, value = torch.randn(3, 2, 3, 29, 16)
    found = attend_to_texts(query, key, value, None)
    longer = [torch.nn.functional.pad(tensor, (0, 0, 0, more), value=3.0) for tensor in (query, key, value)]
    mask = torch.arange(29 + more).view(1, 1, -1).expand(2, -1, -1) >= 29
    assert torch.equal(attend_to_texts(*longer, mask)[:, :, :29], found)


def test_a_mask_of_transposed_tokens():
    torch.manual_seed(1)
    query, key, value = torch.randn(3, 2, 3, 9, 16)
    mask = torch.zeros(9, 1, 2, dtype=torch.bool)
    mask[5:, :, 1] = True
    mask = mask.transpose(0, 2)
    assert torch.equal(attend_to_texts(query, key, value, mask), attend_to_texts(query, key, value, mask.contiguous()))


def test_texts_that_it_does_not_compute():
    query, key, value = torch.randn(3, 1, 2, 5, 8)
    assert computes_texts(query, key, value, torch.zeros(1, 1, 5, dtype=torch.bool))
    assert not computes_texts(query.bfloat16(), key, value)
    assert not computes_texts(query, key, value, torch.zeros(1, 5, 5, dtype=torch.bool))
    assert not computes_texts(query, key, value[..., :4])
    assert not computes_texts(query, key, value.transpose(2, 3).contiguous().transpose(2, 3))
    for trained in (query, key, value):
        trained.requires_grad_()
        assert not computes_texts(query, key, value)
        with torch.no_grad():
            assert computes_texts(query, key, value)
        trained.requires_grad_(False)
