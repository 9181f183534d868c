"""The state of a decoder: what its layers share, positions after prompts, and buffers that are larger than it."""

import pytest
import torch

from elseq.attention import DecodeState, LayerState, SelfAttentionMemory, SentenceMemory
from elseq.attention.memory import GROWTH
from elseq.attention.methods import EL, KV
from tests.attention.reference import find_by_ancestry, padding_mask
from tests.attention.test_memory import positions
from tests.tiny_models import make_dictionary, make_models, make_sample, make_sources, pad_rows

DICTIONARY = make_dictionary(20)
BEAM = 2


def read(decoder, state: DecodeState, tokens):
    if state.cursor is None:
        return decoder.decode(tokens, state)[0]
    state.cursor.begin()
    output, _ = decoder.decode(tokens, state)
    state.cursor.end()
    return output


def begin(model, method, lengths, seed) -> DecodeState:
    """A batch of sources, or of prompts."""
    rows = make_sources(DICTIONARY, lengths, seed)
    if hasattr(model, "encoder"):
        net_input = make_sample(DICTIONARY, rows)["net_input"]
        return model.decoder.new_state(model.encoder.forward_torchscript(net_input), method)
    state = model.decoder.new_state(None, method)
    model.decoder.read_prompt(pad_rows(rows, DICTIONARY.pad()), state)
    return state


@pytest.mark.parametrize("method", [KV, EL], ids=lambda method: method.name)
@pytest.mark.parametrize("family", ["transformer", "language_model"])
@pytest.mark.parametrize("moves", [True, False])
@torch.no_grad()
def test_buffers_serve_batches(family, method, moves, monkeypatch):
    """One after the other, the first of which leaves no numbers; and the first half of the buffers alone."""
    torch.manual_seed(1)
    if not moves:
        find_by_ancestry(monkeypatch)
    model = make_models(family, DICTIONARY)["kv"].double()
    decoder = model.decoder
    buffers = None
    for number, lengths in enumerate([(3, 7, 1, 5), (6, 2, 6, 6, 1), (4, 4), (8,)]):
        plain = begin(model, method, lengths, number)
        hypotheses = BEAM * len(lengths)
        read(decoder, plain, torch.randint(4, 20, (hypotheses, 1)))
        if buffers is None:
            lengths = (0, 10) if family == "language_model" else (10, 0)
            buffers = plain.empty(6, BEAM, *lengths, 8)
            for memory in buffers._sentence_memories():
                for tensor in memory.tensors:
                    tensor.fill_(float("nan"))
            addresses = find(buffers)
        kept = buffers.narrow(6 if number < 2 else 3, BEAM)
        assert (kept.cursor.ancestry is None) == moves
        kept.load(plain)
        assert kept.length == 1
        for _ in range(5):
            tokens = torch.randint(4, 20, (len(kept.layers[0].self_attention.generated.tensors()[0]), 1))
            order = torch.randint(BEAM, (hypotheses // BEAM, BEAM)) + torch.arange(0, hypotheses, BEAM).unsqueeze(1)
            plain.reorder(order.flatten())
            kept.reorder(torch.cat((order.flatten(), torch.arange(hypotheses, len(tokens)))))
            output = read(decoder, kept, tokens)
            expected = read(decoder, plain, tokens[:hypotheses])
            torch.testing.assert_close(output[:hypotheses], expected, rtol=1e-12, atol=1e-12)
            assert torch.isfinite(output).all()
        assert find(kept) == find(buffers) == addresses


def find(state: DecodeState) -> list[int]:
    """Where the tensors are."""
    memories = [*state._sentence_memories(), *(layer.self_attention.generated for layer in state.layers)]
    found = [
        tensor for memory in memories for tensor in (memory.buffers if hasattr(memory, "buffers") else memory.tensors)
    ]
    found += [memory.mask for memory in state._sentence_memories()]
    found += [state.cursor.position, state.cursor.ahead]
    if state.prompt_lengths is not None:
        found.append(state.prompt_lengths)
    return [tensor.data_ptr() for tensor in found]


@pytest.mark.parametrize("method", [KV, EL], ids=lambda method: method.name)
@pytest.mark.parametrize("family", ["transformer", "language_model"])
@pytest.mark.parametrize("moves", [True, False])
@torch.no_grad()
def test_fewer_sentences_go_on_in_the_same_buffers(family, method, moves, monkeypatch):
    if not moves:
        find_by_ancestry(monkeypatch)
    model = make_models(family, DICTIONARY)["kv"].double()
    decoder = model.decoder
    plain = begin(model, method, (3, 7, 1, 5, 2), 1)
    read(decoder, plain, torch.randint(4, 20, (10, 1)))
    buffers = plain.empty(6, BEAM, *((0, 10) if family == "language_model" else (10, 0)), 8)
    kept = buffers.narrow(6, BEAM)
    kept.load(plain)
    for state in (plain, kept):
        state.reorder(torch.tensor([1, 1, 2, 3, 4, 4, 7, 6, 9, 8, *([10, 11] if state is kept else [])]))
    sentences, order = torch.tensor([1, 4]), torch.tensor([3, 2, 8, 8])
    for state in (plain, kept):
        state.keep(sentences)
    plain.reorder(order)
    part = buffers.narrow(3, BEAM)
    part.load(kept, order)
    for _ in range(3):
        tokens = torch.randint(4, 20, (6, 1))
        expected = read(decoder, plain, tokens[:4])
        torch.testing.assert_close(read(decoder, part, tokens)[:4], expected, rtol=1e-12, atol=1e-12)
    assert len(buffers.layers[0].self_attention.generated.tensors()[0]) == 12  # as before
    again = begin(model, method, (9, 2, 2, 8, 4, 1), 2)
    read(decoder, again, torch.randint(4, 20, (12, 1)))
    whole = buffers.narrow(6, BEAM)
    whole.load(again)
    tokens = torch.randint(4, 20, (12, 1))
    torch.testing.assert_close(read(decoder, whole, tokens), read(decoder, again, tokens), rtol=1e-12, atol=1e-12)


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


def test_bytes_of_a_position():
    """Of a hypothesis in a layer two numbers, whatever room the buffers have."""
    state = decode_state(layers=3, hypotheses=4)
    assert state.bytes_of_position() == 3 * 4 * 2 * 4
    state.reorder(torch.tensor([0]))
    assert state.bytes_of_position() == 3 * 1 * 2 * 4


@pytest.mark.parametrize("prompted", [False, True])
def test_fixed_buffers_hold_what_there_was_and_count_their_positions(prompted):
    state = DecodeState([LayerState(SelfAttentionMemory(EL))])
    memory = state.layers[0].self_attention
    if prompted:
        memory.append(torch.zeros(1, 3, 2))
        state.length = 3
        state.end_prompt(padding_mask([3], 3, "right"))
    memory.append(torch.tensor([[[1.0, 1.0]], [[2.0, 2.0]]]))
    state.length = 1
    state.fix(capacity=5, beam=2, hypotheses=torch.tensor([1, 0]))
    state.cursor.begin()
    assert (state.positions(2, 1) == (4 if prompted else 1)).all()
    memory.append(torch.tensor([[[3.0, 3.0]], [[4.0, 4.0]]]))
    (hidden,), mask, *_ = memory.read()[-1]
    assert hidden.shape == (2, 5, 2) and hidden[:, :2, 0].tolist() == [[2, 3], [1, 4]]
    assert mask.broadcast_to(2, 1, 5)[:, 0].tolist() == [[False, False, True, True, True]] * 2
    state.cursor.end()
