"""States in buffers that are larger than they, against the states themselves."""

import pytest
import torch

from elseq.attention import DecodeState
from elseq.attention.methods import EL, KV
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
@torch.no_grad()
def test_buffers_serve_batches(family, method):
    """One after the other, the first of which leaves no numbers; and the first half of the buffers alone."""
    torch.manual_seed(1)
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
            for memory in buffers._sentence_states():
                for tensor in memory.tensors:
                    tensor.fill_(float("nan"))
            addresses = find(buffers)
        kept = buffers.narrow(6 if number < 2 else 3, BEAM)
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
    memories = [*state._sentence_states(), *(layer.self_attention.generated for layer in state.layers)]
    found = [
        tensor for memory in memories for tensor in (memory.tensors() if callable(memory.tensors) else memory.tensors)
    ]
    found += [memory.mask for memory in state._sentence_states()]
    found += [state.cursor.position, state.cursor.ahead]
    if state.prompt_lengths is not None:
        found.append(state.prompt_lengths)
    return [tensor.data_ptr() for tensor in found]


@pytest.mark.parametrize("method", [KV, EL], ids=lambda method: method.name)
@pytest.mark.parametrize("family", ["transformer", "language_model"])
@torch.no_grad()
def test_fewer_sentences_go_on_in_the_same_buffers(family, method):
    model = make_models(family, DICTIONARY)["kv"].double()
    decoder = model.decoder
    plain = begin(model, method, (3, 7, 1, 5, 2), 1)
    read(decoder, plain, torch.randint(4, 20, (10, 1)))
    buffers = plain.empty(6, BEAM, *((0, 10) if family == "language_model" else (10, 0)), 8)
    kept = buffers.narrow(6, BEAM)
    kept.load(plain)
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
