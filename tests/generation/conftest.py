import pytest

from elseq.generation import transfers


@pytest.fixture
def as_on_gpu(monkeypatch):
    """A search on the CPU that asks for as little as on a GPU."""
    monkeypatch.setattr(transfers, "is_free", lambda device: False)
