import pytest
import torch
from fairseq import search

from elseq.generation import next_tokens, strategies, transfers
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
    monkeypatch.setattr(transfers, "is_asynchronous", lambda device: True)
    monkeypatch.setattr(strategies.Sampling, "_sample_topp", search.Sampling._sample_topp)


@pytest.fixture
def kernel_draws(monkeypatch):
    """A search draws words as where there is a kernel, by parts of 8 words, whose sums torch computes."""
    pytest.importorskip("triton")
    from elseq.generation.kernels import best_tokens_triton

    def log_sums(logits):
        parts = logits.float().split(best_tokens_triton.BLOCK, dim=1)
        return torch.stack([part.logsumexp(dim=1) for part in parts], dim=1)

    monkeypatch.setattr(best_tokens_triton, "BLOCK", 8)
    monkeypatch.setattr(best_tokens_triton, "launch_log_sums", log_sums)
    monkeypatch.setattr(next_tokens, "has_kernel", lambda logits, count: True)
