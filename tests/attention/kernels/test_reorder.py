"""Reordering in place, against indexing; the kernel runs on CPU tensors, interpreted, where there is no GPU."""

from importlib.util import find_spec
from unittest.mock import MagicMock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elseq.attention.kernels.reorder import _trial, has_kernel, reorder_in_place
from tests.attention.reference import quick, seeds

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def check(reorder, seed, shape, sentences, beam, taken):
    torch.manual_seed(seed)
    hypotheses = sentences * beam
    buffer = torch.randn(hypotheses, *shape, device=DEVICE)
    before = buffer.clone()
    order = torch.arange(0, hypotheses, beam).unsqueeze(1) + torch.randint(beam, (sentences, beam))
    reorder(buffer, order.flatten().to(DEVICE), beam, torch.tensor([taken], device=DEVICE))
    assert torch.equal(buffer[..., :taken, :], before[order.flatten()][..., :taken, :])


shapes = st.one_of(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 40)), st.just((40, 64)))


@quick
@given(seeds, shapes, st.integers(1, 3), st.integers(1, 5), st.integers(0, 40))
def test_every_hypothesis_continues_another(seed, shape, sentences, beam, taken):
    check(reorder_in_place, seed, shape, sentences, beam, min(taken, shape[-2]))


@needs_triton
@quick
@given(seeds, shapes, st.integers(1, 3), st.integers(1, 5), st.integers(0, 40))
def test_kernel(seed, shape, sentences, beam, taken):
    from elseq.attention.kernels.reorder_triton import launch

    check(launch, seed, shape, sentences, beam, min(taken, shape[-2]))


@needs_triton
@pytest.mark.parametrize("beam", [16, 100])
def test_a_large_beam(beam):
    from elseq.attention.kernels.reorder_triton import launch

    check(launch, 1, (2, 7, 150), 2, beam, 5)


@needs_triton
@pytest.mark.parametrize(("beam", "room", "width"), [(64, 16384, 1024), (4, 2**20, 64)])
def test_a_launch_of_many_positions(beam, room, width, monkeypatch):
    """A GPU has 2^31 - 1 blocks in the first direction of a grid, and 65,535 in the others."""
    from elseq.attention.kernels import reorder_triton

    kernel = MagicMock()
    monkeypatch.setattr(reorder_triton, "reorder", kernel)
    reorder_triton.launch(torch.empty(1).expand(2 * beam, 3, room, width), None, beam, None)
    pieces, *others = kernel.__getitem__.call_args.args[0]
    assert others == [2, 3] and 65_535 < pieces < 2**31


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_its_trial_finds_it_right(dtype):
    case = _trial(torch.device(DEVICE), dtype)
    assert torch.equal(case.kernel(), case.expected)
    assert torch.equal(case.plain(), case.expected)


@pytest.mark.gpu
@pytest.mark.parametrize("beam", [1, 3, 4, 16])
@pytest.mark.parametrize("shape", [(16, 64, 64), (64, 1024)])
def test_on_a_gpu(beam, shape):
    assert has_kernel(torch.zeros(1, device="cuda"))
    check(reorder_in_place, 1, shape, 5, beam, 40)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types(dtype):
    from elseq.attention.kernels.reorder_triton import launch

    buffer = torch.arange(24, device=DEVICE).view(4, 2, 3).to(dtype)
    expected = buffer[[1, 0, 3, 3]]
    launch(buffer, torch.tensor([1, 0, 3, 3], device=DEVICE), 2, torch.tensor([2], device=DEVICE))
    assert torch.equal(buffer, expected)
