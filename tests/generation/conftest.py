import pytest
from fairseq import search

from elseq.generation import strategies, transfers
from tests.attention.reference import find_by_ancestry


@pytest.fixture(params=["moved", "found by ancestry"])
def reordering(request, monkeypatch):
    """Whether hypotheses in buffers of fixed addresses are moved."""
    if request.param != "moved":
        find_by_ancestry(monkeypatch)
    return request.param


@pytest.fixture
def as_on_gpu(monkeypatch):
    """A search on the CPU that asks for as little as on a GPU, but for top-p sampling, which draws others there."""
    monkeypatch.setattr(transfers, "is_free", lambda device: False)
    monkeypatch.setattr(strategies.Sampling, "_sample_topp", search.Sampling._sample_topp)
