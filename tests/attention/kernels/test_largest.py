"""The kernel of the k largest scores, against a sorted list in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elseq import native
from elseq.attention.kernels.largest import attend_to_largest, computes_largest
from elseq.attention.multi_head import Segment, multi_head_attention
from tests.attention.reference import quick, seeds

pytestmark = pytest.mark.usefixtures("kernels_for")
widths = st.sampled_from([1, 3, 16, 17, 64, 80, 131])
lengths = st.sampled_from([2, 5, 15, 16, 17, 33, 64, 130, 1000])


def expected(scores, value, top_k):
    """[R, S] and [S, V]: row by row."""
    rows = []
    for row in scores.tolist():
        chosen = sorted(range(len(row)), key=lambda place: -row[place])[:top_k]  # stable: of equal ones the first
        weights = torch.tensor([math.exp(row[place] - row[chosen[0]]) for place in chosen], dtype=torch.float64)
        rows.append(weights @ value[chosen].double() / weights.sum())
    return torch.stack(rows)


def reference(scores, value, top_k):
    return torch.stack(
        [
            torch.stack([expected(*pair, top_k) for pair in zip(*heads, strict=True)])
            for heads in zip(scores, value, strict=True)
        ]
    )


@quick
@given(seeds, st.integers(1, 3), st.integers(1, 3), st.integers(1, 7), lengths, widths, st.data())
def test_scores_of_all_kinds(seed, sequences, heads, rows, length, width, data):
    top_k = data.draw(st.integers(1, length - 1))
    kind = data.draw(st.sampled_from(["normal", "equal", "wide", "negative"]))
    torch.manual_seed(seed)
    scores = torch.randn(sequences, heads, rows, length)
    if kind == "equal":
        scores = scores.round()
    elif kind == "wide":
        scores = scores * 10 ** (8 * torch.rand_like(scores))
    elif kind == "negative":
        scores = -scores.abs() - 100
    hidden = torch.rand(sequences, 1, 1, length) < data.draw(st.sampled_from([0.0, 0.3]))
    hidden[..., 0] = False
    scores = scores.masked_fill(hidden, -math.inf)
    value = torch.randn(sequences, length, heads, width + 2)[..., 1:-1].transpose(1, 2)
    if data.draw(st.booleans()):
        value = value.bfloat16()
    found = attend_to_largest(scores, value, top_k)
    torch.testing.assert_close(found.double(), reference(scores, value, top_k), rtol=2e-5, atol=3e-6)


def test_negative_zero_is_zero():
    scores = torch.tensor([[[[-0.0, 0.0, -0.0, -1.0]]]])
    value = torch.eye(4).view(1, 1, 4, 4)
    for top_k, chosen in ((1, [0]), (2, [0, 1]), (3, [0, 1, 2])):
        mean = sum(value[0, 0, place] for place in chosen) / top_k
        torch.testing.assert_close(attend_to_largest(scores, value, top_k)[0, 0, 0], mean)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_softmax_makes_no_number_of(number):
    scores = torch.zeros(1, 1, 3, 40)
    scores[0, 0, 1, 20] = number
    found = attend_to_largest(scores, torch.ones(1, 1, 40, 5), 7)[0, 0]
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], torch.ones(2, 5))


def test_nothing_to_attend_to():
    scores = torch.full((1, 1, 1, 40), -math.inf)
    assert attend_to_largest(scores, torch.ones(1, 1, 40, 5), 7).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (6, 1)])
def test_attention_uses_it(heads, kv_heads, dtype, monkeypatch):
    """As attention without the kernel, for hypotheses that share a memory."""
    torch.manual_seed(1)
    query = torch.randn(6, heads, 1, 16, dtype=dtype)
    key, value = torch.randn(2, 3, kv_heads, 50, 16, dtype=dtype)
    mask = torch.rand(3, 1, 50) < 0.2
    segment = Segment(key, value, mask)
    found, _ = multi_head_attention(query, [segment], top_k=9)
    monkeypatch.setattr(native, "library", lambda: None)
    usual, _ = multi_head_attention(query, [segment], top_k=9)
    assert found.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, usual, rtol=tolerance, atol=tolerance)


def test_what_it_does_not_compute():
    query, key, value = (torch.randn(1, 1, length, 8) for length in (1, 30, 30))
    assert computes_largest(query, key, value)
    assert not computes_largest(query.double(), key, value)
    assert not computes_largest(query, key, value.transpose(2, 3))
    assert not computes_largest(query.requires_grad_(), key, value)
    with torch.no_grad():
        assert computes_largest(query, key, value)


@pytest.mark.parametrize("top_k", [0, 30, 31])
def test_a_k_that_is_not_below_the_length(top_k):
    with pytest.raises(ValueError, match=f"^{top_k} of the scores"):
        attend_to_largest(torch.zeros(1, 1, 2, 30), torch.zeros(1, 1, 30, 4), top_k)


def test_values_of_another_shape():
    with pytest.raises(ValueError, match="of values"):
        attend_to_largest(torch.zeros(1, 1, 2, 30), torch.zeros(1, 1, 29, 4), 3)
