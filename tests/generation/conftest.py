import pytest
from fairseq import search

from elseq.generation import strategies, transfers


@pytest.fixture
def as_on_gpu(monkeypatch):
    """A search on the CPU that asks for as little as on a GPU, but for top-p sampling, which draws others there."""
    monkeypatch.setattr(transfers, "is_free", lambda device: False)
    monkeypatch.setattr(strategies.Sampling, "_sample_topp", search.Sampling._sample_topp)
