from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elseq import native
from elseq.attention import Attention, DecodeState, GrowingMemory, LayerState, SelfAttentionMemory, SentenceMemory
from elseq.attention.memory import GROWTH
from elseq.attention.methods import EL, KV, AttentionSizes
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
    [((found_keys, found_values), found_mask, _)] = state.read()
    assert torch.equal(found_keys, keys[kept])
    assert torch.equal(found_values, values[kept])
    assert torch.equal(found_mask.squeeze(1), mask[kept])
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
    [((found_prompt,), found_mask, _), ((found_new,), no_mask, _)] = state.read()
    assert torch.equal(found_prompt, prompt)
    assert torch.equal(found_mask.squeeze(1), mask)
    assert torch.equal(found_new, new)
    assert no_mask is None


def decode_state(layers=3, hypotheses=4):
    """Layers that share one H [2, 5, 3]; each hypothesis has read a token."""
    hidden = torch.arange(2.0).view(2, 1, 1).repeat(1, 5, 3)
    shared = SentenceMemory(EL, (hidden,))
    state = DecodeState([LayerState(SelfAttentionMemory(EL), shared) for _ in range(layers)])
    for layer in state.layers:
        layer.self_attention.append(torch.arange(float(hypotheses)).view(-1, 1, 1).repeat(1, 1, 2))
    state.length = 1
    return state


def test_what_layers_share_is_counted_and_reduced_once():
    state = decode_state()
    assert state.size_bytes() == 2 * 5 * 3 * 4 + 3 * 4 * GROWTH * 2 * 4
    state.keep(torch.tensor([1]))  # a second time it would fail: there is no row 1 left
    state.reorder(torch.tensor([3, 2]))
    assert state.size_bytes() == 1 * 5 * 3 * 4 + 3 * 2 * GROWTH * 2 * 4
    for layer in state.layers:
        assert layer.cross_attention is state.layers[0].cross_attention
        assert layer.cross_attention.tensors[0].unique().tolist() == [1]
        assert positions(layer.self_attention.generated)[0][:, 0, 0].tolist() == [3, 2]


def test_what_layers_do_not_share_is_counted_for_each():
    memories = [SentenceMemory(KV, (torch.zeros(2, 1, 5, 3), torch.zeros(2, 1, 5, 3))) for _ in range(3)]
    state = DecodeState([LayerState(SelfAttentionMemory(KV), memory) for memory in memories])
    assert state.size_bytes() == 3 * 2 * 2 * 5 * 3 * 4
    state.keep(torch.tensor([0]))
    assert state.size_bytes() == 3 * 2 * 1 * 5 * 3 * 4


def test_positions_go_on_after_each_sentence_s_own_prompt():
    state = DecodeState([LayerState(SelfAttentionMemory(EL))])
    assert state.positions(2, 3) == range(0, 3)
    state.layers[0].self_attention.append(torch.zeros(2, 4, 1))
    state.length = 4
    assert state.positions(2, 1) == range(4, 5)
    state.end_prompt(padding_mask([2, 4], 4, "right"))
    assert (state.length, state.longest_prompt) == (0, 4)
    state.length = 1
    assert state.positions(4, 2).tolist() == [[3, 4], [3, 4], [5, 6], [5, 6]]
    state.keep(torch.tensor([1]))
    assert state.positions(2, 1).tolist() == [[5], [5]]
    assert state.longest_prompt == 4
    assert state.layers[0].self_attention.prompt.tensors[0].size(0) == 1


def test_prompts_of_sentences_that_leave_are_forgotten_when_asked():
    state = DecodeState([LayerState(SelfAttentionMemory(EL))])
    state.measure_prompts()
    assert state.longest_prompt == 0
    state.layers[0].self_attention.append(torch.zeros(2, 4, 1))
    state.length = 4
    state.end_prompt(padding_mask([2, 4], 4, "right"))
    state.keep(torch.tensor([0]))
    assert state.longest_prompt == 4
    state.measure_prompts()
    assert state.longest_prompt == 2


@pytest.mark.parametrize("lengths, kept", [([3, 3], False), ([3, 1], True)])
def test_prompts_of_one_length_need_no_mask(lengths, kept):
    state = DecodeState([LayerState(SelfAttentionMemory(EL))])
    state.layers[0].self_attention.append(torch.zeros(2, 3, 1))
    state.length = 3
    state.end_prompt(padding_mask(lengths, 3, "right"))
    assert (state.layers[0].self_attention.prompt.mask is not None) == kept


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


def test_repeated_sentences_keep_the_layout():
    pair = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    memory = SentenceMemory(KV, pair)
    before = [tensor.stride() for tensor in memory.tensors]
    rows = torch.tensor([1, 1, 0])
    memory.keep(rows)
    assert [tensor.stride() for tensor in memory.tensors] == before
    assert all(torch.equal(found, tensor[rows]) for found, tensor in zip(memory.tensors, pair, strict=True))


@pytest.mark.parametrize("library", [native.library(), None], ids=["kernels", "no kernels"])
@pytest.mark.parametrize("method", [KV, EL], ids=lambda method: method.name)
@torch.no_grad()
def test_keys_and_values_of_sentences_in_bfloat16(method, library, monkeypatch):
    """Rounded once, and equal whether the kernel reads them or torch does."""
    monkeypatch.setattr(native, "library", lambda: library)
    torch.manual_seed(0)
    layers = [Attention(16, 4, encoder_decoder_attention=True).eval() for _ in range(2)]
    hidden, query = torch.randn(7, 2, 16), torch.randn(1, 6, 16)
    mask = padding_mask([7, 4], 7, "right")
    plain = method.memories(layers, hidden, mask)
    rounded = method.memories(layers, hidden, mask, torch.bfloat16)
    for layer, exact, memory in zip(layers, plain, rounded, strict=True):
        if method is EL:
            assert all(map(torch.equal, memory.tensors, exact.tensors))
            continue
        assert memory.size_bytes() == exact.size_bytes() // (1 if library is None else 2)
        for found, expected in zip(memory.tensors, exact.tensors, strict=True):
            assert torch.equal(found.float(), expected.bfloat16().float())
        wide = SentenceMemory(KV, (tensor.float() for tensor in memory.tensors), mask)
        for need_weights in (False, True):
            found, expected = (layer(query, need_weights=need_weights, state=state) for state in (memory, wide))
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def in_order(memory, hypotheses):
    """What `read_unmoved` says that each hypothesis has."""
    stretch, rows = memory.read_unmoved()
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
        if memory._buffers[0].size(0) == hypotheses:
            assert memory.size_bytes() == moving.size_bytes()
        hypotheses = max(1, hypotheses + int(torch.randint(-10, 11, (1,)) / 10))
        order = torch.randint(len(new[0]), (hypotheses,))
        memory.reorder(order)
        moving.reorder(order)
    assert all(map(torch.equal, memory.tensors(), moving.tensors()))


def test_what_is_read_unmoved_is_not_moved():
    memory = GrowingMemory()
    memory.append(torch.randn(3, 2, 1, 4))
    [buffer] = memory._buffers
    assert memory.read_unmoved()[1].shape == (3, 0)
    for order in ([2, 0, 0], [1, 2, 0]):
        memory.reorder(torch.tensor(order))
        assert memory._buffers[0] is buffer
    assert memory.read_unmoved()[1].tolist() == [[0], [0], [2]]
    memory.append(torch.randn(3, 2, 1, 4))
    assert memory.read_unmoved()[1].tolist() == [[0], [0], [2]]
    memory.reorder(torch.tensor([2, 1]))
    assert memory.read_unmoved()[1].tolist() == [[2, 2], [0, 1]]
    assert memory._buffers[0] is buffer
    memory.reorder(torch.tensor([1, 1, 0, 0]))  # more than there are rows
    assert memory.read_unmoved()[1].shape == (4, 0)


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
    state = SelfAttentionMemory(method, window)
    outputs = []
    with torch.no_grad():
        if prompt:
            layer(torch.randn(prompt, 2, 12), causal=True, state=state, need_weights=False)
            state.end_prompt(padding_mask([prompt, 1], prompt, "left"))
        hypotheses = 6
        for number in range(20):
            output, _ = layer(torch.randn(1, hypotheses, 12), state=state, need_weights=number == 12)
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


@pytest.mark.skipif(native.library() is None, reason="not compiled, or no AVX-512 VNNI")
def test_only_keys_and_values_are_read_unmoved():
    class Other(type(KV)):
        pass

    query = torch.randn(2, 4, 1, 3)
    assert KV.reads_unmoved(query, top_k=None, dropout=0.0, need_weights=False)
    assert not KV.reads_unmoved(query, top_k=2)
    assert not KV.reads_unmoved(query, dropout=0.1)
    assert not KV.reads_unmoved(query, need_weights=True)
    assert not KV.reads_unmoved(query.double())
    assert not Other().reads_unmoved(query)
    assert not EL.reads_unmoved(query)
