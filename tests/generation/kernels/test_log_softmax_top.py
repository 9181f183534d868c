"""The kernel for CPUs, against log-probabilities in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elseq.generation.kernels.log_softmax_top import log_softmax_top
from tests.attention.reference import quick, seeds

pytestmark = pytest.mark.usefixtures("kernels_for")


@quick
@given(seeds, st.integers(0, 9), st.integers(1, 5000), st.integers(1, 70), st.integers(0, 5))
def test_log_softmax_top(seed, rows, width, count, tenths):
    torch.manual_seed(seed)
    count = min(count, width)
    logits = torch.randn(rows, width) * 10
    logits = logits.round(decimals=tenths % 3)  # many are equal
    logits[torch.rand(logits.shape) < tenths / 10] = -float("inf")
    logits[:, width // 2] = 1.0
    values, indices = log_softmax_top(logits, count)
    reference, order = logits.double().log_softmax(1).sort(descending=True, stable=True)
    assert torch.equal(indices, order[:, :count])
    assert torch.allclose(values.double(), reference[:, :count], rtol=1e-6, atol=1e-6)


def test_log_softmax_top_of_a_vocabulary(threads):
    torch.manual_seed(0)
    logits = torch.randn(32, 50265) * 4
    logits[1] = logits[1].sort().values
    logits[2] = 0
    logits[3] += 1e4
    values, indices = log_softmax_top(logits, 8)
    reference, order = logits.double().log_softmax(1).sort(descending=True, stable=True)
    assert torch.equal(indices, order[:, :8])
    assert torch.allclose(values.double(), reference[:, :8], rtol=1e-6, atol=1e-6)
    for row in range(4):
        assert torch.equal(log_softmax_top(logits[row : row + 1], 8)[0][0], values[row])


@pytest.mark.parametrize("place", [0, 5, 90])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_log_softmax_top_without_probabilities(value, place):
    logits = torch.randn(3, 100)
    logits[0, place] = value
    logits[2] = -float("inf")
    values, indices = log_softmax_top(logits, 8)
    assert values[[0, 2]].isnan().all() and not values[1].isnan().any()
    for row in indices:
        assert len(set(row.tolist())) == 8 and row.min() >= 0 and row.max() < 100


@pytest.mark.parametrize("count", [0, 6])
def test_log_softmax_top_refuses(count):
    with pytest.raises(ValueError, match=f"between 1 and 5, not {count}"):
        log_softmax_top(torch.zeros(2, 5), count)
    with pytest.raises(ValueError, match="logits"):
        log_softmax_top(torch.zeros(2, 5, dtype=torch.float64), 1)
