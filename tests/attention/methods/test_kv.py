"""Keys and values: what is kept of them, in which layout and numbers, and attention to them written out."""

from unittest.mock import Mock

import pytest
import torch

from elseq import native
from elseq.attention import Attention, SentenceMemory
from elseq.attention.memory import Stretch
from elseq.attention.methods import EL, KV, AttentionSizes
from tests.attention.reference import naive_attention, padding_mask


@pytest.mark.parametrize("library", [native.library(), None], ids=["kernels", "no kernels"])
@pytest.mark.parametrize(("sentences", "length"), [(2, 1), (6, 1), (2, 3)])
def test_attention_to_what_is_kept(sentences, length, library, monkeypatch):
    """Of six hypotheses, with the sentences' padding; one position is read by the kernel, if it is there."""
    monkeypatch.setattr(native, "library", lambda: library)
    torch.manual_seed(0)
    query = torch.randn(6, 4, length, 8)
    pair = torch.randn(sentences, 2, 5, 8), torch.randn(sentences, 2, 5, 8)
    mask = padding_mask([5, 3, 4, 1, 2, 5][:sentences], 5, "right").unsqueeze(1)
    expected, _ = naive_attention(query.double(), [(*(tensor.double() for tensor in pair), mask)])
    found, weights = KV.attend(None, query, [Stretch(KV.lay_out(pair), mask)])
    assert weights is None
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_layout():
    """The numbers stay; those of a position of all keys lie apart by one."""
    pair = torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4)
    keys, values = KV.lay_out(pair)
    assert torch.equal(keys, pair[0]) and torch.equal(values, pair[1])
    assert keys.stride(-2) == 1 and values.is_contiguous()


def test_costs():
    """Two numbers of each of 3 heads of width 4; a product and a sum for each number of a score and of a result."""
    sizes = AttentionSizes(num_heads=6, head_dim=4, num_kv_heads=3, memory_width=7)
    assert KV.numbers_kept(sizes) == 2 * 3 * 4
    assert KV.operations(sizes) == 2 * (2 * 6 * 4)
    assert KV.numbers_of_step(sizes, shared=5, own=2) == 6 * (2 * 4 + 3 * (5 + 2))
    assert KV.numbers_of_step(sizes, shared=0, own=2) == 6 * 2 * 4


def test_states_of_layers_hold_their_own_keys_and_values_in_one_block():
    pairs = [(torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4)) for _ in range(3)]
    mask = padding_mask([5, 1, 3], 5, "left")
    sizes = AttentionSizes(num_heads=2, head_dim=4, num_kv_heads=2, memory_width=8)
    attentions = [Mock(keys_and_values=Mock(return_value=pair), sizes=sizes) for pair in pairs]
    states = KV.memories(attentions, torch.empty(0), mask)
    assert len({tensor.untyped_storage().data_ptr() for state in states for tensor in state.tensors}) == 1
    kept = torch.tensor([0, 2])
    for state, pair in zip(states, pairs, strict=True):
        assert state.size_bytes() == 2 * 3 * 2 * 5 * 4 * 4
        assert all(map(torch.equal, state.tensors, pair))
        state.keep(kept)
    for state, pair in zip(states, pairs, strict=True):  # none has written into another's part of the block
        assert all(torch.equal(found, tensor[kept]) for found, tensor in zip(state.tensors, pair, strict=True))
        assert torch.equal(state.mask, mask[kept])


@pytest.mark.parametrize("library", [native.library(), None], ids=["kernels", "no kernels"])
@pytest.mark.parametrize("method", [KV, EL], ids=lambda method: method.name)
@torch.no_grad()
def test_sentences_in_bfloat16(method, library, monkeypatch):
    """Rounded once, and equal whether the kernel reads them or torch does."""
    monkeypatch.setattr(native, "library", lambda: library)
    torch.manual_seed(0)
    layers = [Attention(16, 4, encoder_decoder_attention=True).eval() for _ in range(2)]
    hidden, query = torch.randn(7, 2, 16), torch.randn(1, 6, 16)
    mask = padding_mask([7, 4], 7, "right")
    plain = method.memories(layers, hidden, mask)
    rounded = method.memories(layers, hidden, mask, torch.bfloat16)
    for layer, exact, memory in zip(layers, plain, rounded, strict=True):
        assert memory.size_bytes() == exact.size_bytes() // (1 if library is None else 2)
        for found, expected in zip(memory.tensors, exact.tensors, strict=True):
            assert torch.equal(found.float(), expected.bfloat16().float())
        wide = SentenceMemory(method, (tensor.float() for tensor in memory.tensors), mask)
        for need_weights in (False, True):
            found, expected = (layer(query, need_weights=need_weights, memory=state) for state in (memory, wide))
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.skipif(native.library() is None, reason="not compiled, or no AVX2")
@pytest.mark.parametrize("method", [KV, EL], ids=lambda method: method.name)
def test_has_cpu_kernel(method):
    class Other(type(method)):
        pass

    query = torch.randn(2, 4, 1, 3)
    assert method.has_cpu_kernel(query, top_k=None, dropout=0.0, need_weights=False)
    assert method.has_cpu_kernel(query, top_k=2)
    assert not method.has_cpu_kernel(query, dropout=0.1)
    assert not method.has_cpu_kernel(query, need_weights=True)
    assert not method.has_cpu_kernel(query.double())
    for top_k in (None, 5, 9):
        assert method.has_cpu_kernel(query.bfloat16(), 7, top_k=top_k) == (method is KV or top_k == 5)
    assert not Other().has_cpu_kernel(query)
