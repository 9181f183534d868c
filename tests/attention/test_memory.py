import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elseq import native
from elseq.attention import Attention, GrowingMemory, SelfAttentionMemory, SentenceMemory
from elseq.attention.memory import GROWTH
from elseq.attention.methods import EL, KV
from tests.attention.reference import padding_mask, quick, seeds


def positions(state):
    [stretch] = state.read()
    if state.newest == 1:  # which sees all there is
        assert stretch.mask is None
    return stretch.tensors


@quick
@given(seeds, st.lists(st.integers(1, 2 * GROWTH + 1), min_size=1, max_size=5), st.booleans())
def test_growing_memory_remembers_what_was_appended(seed, pieces, reordered):
    torch.manual_seed(seed)
    kv, el = GrowingMemory(), GrowingMemory()
    keys, values, hidden = torch.empty(4, 2, 0, 3), torch.empty(4, 2, 0, 3), torch.empty(4, 0, 5)
    for piece in pieces:
        new = torch.randn(4, 2, piece, 3), torch.randn(4, 2, piece, 3), torch.randn(4, piece, 5)
        kv.append(*new[:2])
        el.append(new[2])
        keys, values, hidden = (torch.cat(both, dim=-2) for both in zip((keys, values, hidden), new, strict=True))
        if reordered:
            order = torch.randint(4, (4,))
            kv.reorder(order)
            el.reorder(order)
            keys, values, hidden = keys[order], values[order], hidden[order]
    for found, expected in zip((*positions(kv), *positions(el)), (keys, values, hidden), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    room = -(-sum(pieces) // GROWTH) * GROWTH
    assert kv.size_bytes() == 2 * 4 * 2 * room * 3 * 4
    assert el.size_bytes() == 4 * room * 5 * 4


def test_buffers_grow_only_when_they_are_full():
    state = GrowingMemory()
    sizes = []
    for _ in range(2 * GROWTH + 1):
        state.append(torch.zeros(1, 1, 1))
        sizes.append(state.size_bytes() // 4)
    assert sizes == [GROWTH] * GROWTH + [2 * GROWTH] * GROWTH + [3 * GROWTH]


@pytest.mark.parametrize("window", [1, GROWTH - 1, GROWTH, 2 * GROWTH + 3])
def test_a_window_bounds_what_is_remembered(window):
    state = GrowingMemory(window)
    for position in range(5 * GROWTH):
        state.append(torch.full((1, 1, 1), float(position)))
        seen = positions(state)[0].flatten().tolist()
        assert seen == list(range(max(0, position - window + 1), position + 1))
    assert state.size_bytes() == -(-(window + 1) // GROWTH) * GROWTH * 4


def test_reorder_changes_the_number_of_hypotheses():
    state = GrowingMemory()
    state.append(torch.arange(3.0).view(3, 1, 1))
    state.reorder(torch.tensor([2, 0]))
    assert positions(state)[0].flatten().tolist() == [2, 0]
    assert state.size_bytes() == 2 * GROWTH * 4
    state.append(torch.tensor([7.0, 8.0]).view(2, 1, 1))
    assert positions(state)[0].squeeze(-1).tolist() == [[2, 7], [0, 8]]


def test_sentence_memory_keeps_some_sentences_in_the_order_given():
    keys, values, mask = torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4), padding_mask([5, 1, 3], 5, "left")
    state = SentenceMemory(KV, (keys.clone(), values.clone()), mask)
    assert state.size_bytes() == 2 * 3 * 2 * 5 * 4 * 4
    kept = torch.tensor([2, 0])
    state.keep(kept)
    [stretch] = state.read()
    found_keys, found_values = stretch.tensors
    assert torch.equal(found_keys, keys[kept])
    assert torch.equal(found_values, values[kept])
    assert torch.equal(stretch.mask.squeeze(1), mask[kept])
    assert state.size_bytes() == 2 * 2 * 2 * 5 * 4 * 4


def test_the_prompt_is_kept_without_room_to_grow():
    state = SelfAttentionMemory(EL)
    assert state.is_empty()
    prompt = torch.randn(2, GROWTH + 1, 3)
    state.append(prompt)
    assert not state.is_empty()
    mask = padding_mask([3, GROWTH + 1], GROWTH + 1, "right")
    state.end_prompt(mask)
    assert not state.is_empty()
    assert state.prompt.size_bytes() == prompt.nbytes
    assert state.generated.size_bytes() == 0
    new = torch.randn(4, 1, 3)
    state.append(new)
    before, own = state.read()
    assert torch.equal(*before.tensors, prompt)
    assert torch.equal(before.mask.squeeze(1), mask)
    assert torch.equal(*own.tensors, new)
    assert own.mask is None


def test_repeated_sentences_keep_the_layout():
    pair = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    memory = SentenceMemory(KV, pair)
    before = [tensor.stride() for tensor in memory.tensors]
    rows = torch.tensor([1, 1, 0])
    memory.keep(rows)
    assert [tensor.stride() for tensor in memory.tensors] == before
    assert all(torch.equal(found, tensor[rows]) for found, tensor in zip(memory.tensors, pair, strict=True))


@pytest.mark.parametrize("method", [KV, EL])
def test_the_mask_of_transposed_tokens(method):
    torch.manual_seed(1)
    layer, mask = Attention(12, 2).eval(), padding_mask([5, 1, 3], 5, "left")
    hidden, query = torch.randn(5, 3, 12), torch.randn(1, 6, 12)
    outputs = []
    for each in (mask, mask.t().contiguous().t()):
        with torch.no_grad():
            [memory] = method.memories([layer], hidden, each)
            outputs.append(layer(query, memory=memory, need_weights=False)[0])
    assert torch.equal(*outputs)


def in_order(memory, hypotheses):
    """What `read_unmoved` says that each hypothesis has."""
    stretch = memory.read_unmoved()
    rows = stretch.rows
    assert rows.shape[0] == hypotheses and stretch.mask is None
    listed, found = rows.size(1), []
    for tensor in stretch.tensors:
        places = [[int(rows[n, s]) if s < listed else n for s in range(tensor.size(-2))] for n in range(hypotheses)]
        each = [torch.stack([tensor[row, ..., s, :] for s, row in enumerate(of)], dim=-2) for of in places]
        found.append(torch.stack(each))
    return tuple(found)


@quick
@given(seeds, st.sampled_from([None, 1, 5, GROWTH, 2 * GROWTH + 3]), st.integers(1, 4 * GROWTH), st.floats(0, 0.3))
def test_rows_that_are_not_moved_are_those_of_a_memory_that_moves_them(seed, window, steps, looked):
    torch.manual_seed(seed)
    memory, moving = GrowingMemory(window), GrowingMemory(window)
    hypotheses = 6
    for _ in range(steps):
        new = torch.randn(hypotheses, 2, 1, 3), torch.randn(hypotheses, 2, 1, 3)
        memory.append(*new)
        moving.append(*new)
        if torch.rand(1) < looked:  # somebody else reads the memory, and it is moved
            assert all(map(torch.equal, positions(memory), positions(moving)))
        else:
            assert all(map(torch.equal, in_order(memory, hypotheses), positions(moving)))
        assert memory.size_bytes() >= moving.size_bytes()
        if memory.buffers[0].size(0) == hypotheses:
            assert memory.size_bytes() == moving.size_bytes()
        hypotheses = max(1, hypotheses + int(torch.randint(-10, 11, (1,)) / 10))
        order = torch.randint(len(new[0]), (hypotheses,))
        memory.reorder(order)
        moving.reorder(order)
    assert all(map(torch.equal, memory.tensors(), moving.tensors()))


def test_what_is_read_unmoved_is_not_moved():
    memory = GrowingMemory()
    memory.append(torch.randn(3, 2, 1, 4))
    [buffer] = memory.buffers
    assert memory.read_unmoved().rows.shape == (3, 0)
    for order in ([2, 0, 0], [1, 2, 0]):
        memory.reorder(torch.tensor(order))
        assert memory.buffers[0] is buffer
    assert memory.read_unmoved().rows.tolist() == [[0], [0], [2]]
    memory.append(torch.randn(3, 2, 1, 4))
    assert memory.read_unmoved().rows.tolist() == [[0], [0], [2]]
    memory.reorder(torch.tensor([2, 1]))
    assert memory.read_unmoved().rows.tolist() == [[2, 2], [0, 1]]
    assert memory.buffers[0] is buffer
    memory.reorder(torch.tensor([1, 1, 0, 0]))  # more than there are rows
    assert memory.read_unmoved().rows.shape == (4, 0)


def test_rows_of_hypotheses_that_have_left_are_given_up_when_the_memory_grows():
    memory = GrowingMemory()
    memory.append(torch.randn(4, GROWTH, 3))
    memory.read_unmoved()
    memory.reorder(torch.tensor([3, 1]))
    assert memory.size_bytes() == 4 * GROWTH * 3 * 4
    memory.append(torch.randn(2, 1, 3))
    assert memory.size_bytes() == 2 * 2 * GROWTH * 3 * 4


def step(method, prompt, window, seed, **options):
    """Outputs of a layer that decodes 20 positions of 2 sentences with 3 hypotheses, reordered at every step."""
    torch.manual_seed(seed)
    layer = Attention(12, 4, num_kv_heads=2, self_attention=True, window=window, **options).eval()
    state = SelfAttentionMemory(method, layer)
    outputs = []
    with torch.no_grad():
        if prompt:
            layer(torch.randn(prompt, 2, 12), causal=True, memory=state, need_weights=False)
            state.end_prompt(padding_mask([prompt, 1], prompt, "left"))
        hypotheses = 6
        for number in range(20):
            output, _ = layer(torch.randn(1, hypotheses, 12), memory=state, need_weights=number == 12)
            outputs.append(output)
            if number == 9:
                hypotheses = 3  # of the first sentence
                if prompt:
                    state.prompt.keep(torch.tensor([0]))
            state.generated.reorder(torch.randint(3, (hypotheses,)) + torch.arange(hypotheses) // 3 * 3)
    return outputs


@pytest.mark.parametrize("options", [{}, {"top_k": 3}])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("prompt", [0, 5])
def test_a_layer_decodes_the_same_with_and_without_the_kernel(prompt, window, options, monkeypatch):
    results = [step(KV, prompt, window, 0, **options)]
    monkeypatch.setattr(native, "library", lambda: None)
    results += [step(KV, prompt, window, 0, **options), step(EL, prompt, window, 0, **options)]
    for found, torchs, els in zip(*results, strict=True):
        torch.testing.assert_close(found, torchs, rtol=0, atol=2e-6)
        torch.testing.assert_close(found, els, rtol=0, atol=2e-6)
