"""What a decoding method need not say itself."""

from types import SimpleNamespace

import pytest
import torch

from elseq.attention.methods.method import DecodingMethod
from tests.attention.reference import naive_attention, padding_mask


class Kept(DecodingMethod):
    """Hidden states, which nothing reads."""

    name = help = "kept"

    def __init__(self, shares_memory=False):
        self.calls, self.shares_memory = 0, shares_memory

    def keep(self, attention, hidden):
        self.calls += 1
        return (hidden.transpose(0, 1),)

    def attend(self, attention, query, memory, **options):
        raise NotImplementedError

    def numbers_kept(self, sizes):
        return sizes.memory_width

    def operations(self, sizes):
        return 0

    def numbers_of_step(self, sizes, shared, own):
        return 0


@pytest.mark.parametrize("shares_memory", [True, False])
def test_memory_of_a_source(shares_memory):
    """One for all layers, or one for each; in the type that it has, and without holes."""
    method, hidden, mask = Kept(shares_memory), torch.randn(5, 2, 3), padding_mask([5, 2], 5, "right")
    found = method.memories([None] * 3, hidden, mask, torch.bfloat16)
    assert len(found) == 3 and len({id(memory) for memory in found}) == method.calls == (1 if shares_memory else 3)
    for memory in found:
        assert torch.equal(memory.tensors[0], hidden.transpose(0, 1)) and memory.tensors[0].is_contiguous()
        assert torch.equal(memory.mask, mask)


def test_types_stay():
    method = Kept()
    tensors = [torch.randn(2, 3)]
    assert method.rounded(tensors, torch.bfloat16)[0] is tensors[0]
    assert method.dtype_kept(torch.float32, torch.bfloat16) == torch.float32
    assert not method.has_cpu_kernel(torch.randn(1, 1, 1, 1))


@pytest.mark.parametrize("window", [None, 2])
def test_first_positions_are_read_as_in_training(window):
    torch.manual_seed(0)
    query, pair = torch.randn(2, 4, 5, 3).double(), torch.randn(2, 2, 2, 5, 3).double()
    attention = SimpleNamespace(keys_and_values=lambda hidden: pair, window=window)
    found, _ = Kept().attend_first(attention, query, torch.randn(5, 2, 3), ())
    expected, _ = naive_attention(query, [(*pair, None)], causal=True, window=window)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
