"""A fixed memory against one that grows."""

import pytest
import torch

from elseq.attention import Attention, DecodeState, LayerState, SelfAttentionMemory
from elseq.attention.methods import EL, KV
from tests.attention.reference import find_by_ancestry


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("method", [KV, EL], ids=lambda method: method.name)
@pytest.mark.parametrize("prompt", [0, 3])
@pytest.mark.parametrize("moves", [True, False])
@torch.no_grad()
def test_attention_reads_both_alike(method, kv_heads, prompt, moves, monkeypatch):
    torch.manual_seed(1)
    if not moves:
        find_by_ancestry(monkeypatch)
    sentences, beam, width = 2, 3, 16
    attention = Attention(width, 4, kv_heads, self_attention=True).eval()
    states = [DecodeState([LayerState(SelfAttentionMemory(method, attention))]) for _ in range(2)]

    def read(state, hidden):
        memory = state.layers[0].self_attention
        if state.cursor is not None:
            state.cursor.begin()
        output, _ = attention(hidden, need_weights=False, memory=memory)
        if state.cursor is not None:
            state.cursor.end()
        state.length += len(hidden)
        return output

    if prompt:
        hidden = torch.randn(prompt, sentences, width)
        for state in states:
            read(state, hidden)
            state.end_prompt(torch.zeros(sentences, prompt, dtype=torch.bool))
    plain, fixed = states
    for step in range(8):
        hidden = torch.randn(1, sentences * beam, width)
        torch.testing.assert_close(read(fixed, hidden), read(plain, hidden), rtol=1e-5, atol=1e-6)
        if step in (0, 3):
            fixed.fix(step + 5, beam)
            assert (fixed.cursor.ancestry is None) == moves
        order = torch.randint(beam, (sentences, beam)) + torch.arange(0, sentences * beam, beam).unsqueeze(1)
        before = [buffer.clone() for buffer in fixed.layers[0].self_attention.generated.buffers]
        for state in states:
            state.reorder(order.flatten())
        if not moves and fixed.cursor is not None:
            after = fixed.layers[0].self_attention.generated.buffers
            assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    # Keys and values, or hidden states, of 8 positions for each hypothesis, and of the prompt for each sentence.
    numbers = 2 * 4 * kv_heads if method is KV else width
    assert fixed.size_bytes() == 4 * numbers * (8 * sentences * beam + prompt * sentences)
    for state in states:
        assert state.bytes_of_position() == 4 * numbers * sentences * beam


@torch.no_grad()
def test_what_memory_held_before_does_not_matter(monkeypatch):
    """Weights of zero times no number are no number."""
    attention = Attention(8, 2, self_attention=True).eval()
    state = DecodeState([LayerState(SelfAttentionMemory(KV))])

    def filled(self, *shape, **options):
        tensor = self.new_zeros(*shape, **options)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch.Tensor, "new_empty", filled)
    attention(torch.randn(1, 2, 8), need_weights=False, memory=state.layers[0].self_attention)
    state.length = 1
    state.fix(5, 1)
    state.cursor.begin()
    output, _ = attention(torch.randn(1, 2, 8), need_weights=False, memory=state.layers[0].self_attention)
    assert torch.isfinite(output).all()


@torch.no_grad()
def test_fewer_hypotheses():
    state = DecodeState([LayerState(SelfAttentionMemory(EL))])
    memory = state.layers[0].self_attention
    memory.append(torch.arange(4.0).view(4, 1, 1))
    state.length = 1
    state.fix(3, 2, torch.tensor([3, 0]))
    [hidden] = memory.read()[0].tensors
    assert hidden[:, 0, 0].tolist() == [3, 0]
    assert state.size_bytes() == 2 * 3 * 4
