"""Steps in buffers that stay where they are, as they are recorded on a GPU; here they run unrecorded."""

import pytest
import torch

from elseq.attention import DecodeState
from elseq.generation import SequenceGenerator, replay, steppers
from elseq.generation.policy import EL, KV
from elseq.generation.replay import ReplayedSteps, can_replay
from tests.tiny_models import assert_same_hypotheses, make_dictionary, make_models, make_sample, make_sources, pad_rows

DICTIONARY = make_dictionary(20)
SEARCHES = {
    "greedy": {"beam_size": 1, "max_len_b": 12},
    "beam": {"beam_size": 4, "max_len_b": 17},
    "limits of each sentence": {"beam_size": 3, "max_len_a": 1.5, "max_len_b": 2},
    "n-gram blocking": {"beam_size": 4, "max_len_b": 14, "no_repeat_ngram_size": 2, "min_len": 8},
}


@pytest.fixture
def replayed(monkeypatch):
    """Begin to replay, with little room, so that it has to grow; returns what was replayed."""
    begun = []

    class Watched(ReplayedSteps):
        def __init__(self, *args):
            begun.append(self)
            super().__init__(*args)

    def start():
        monkeypatch.setattr(replay, "ROOM", 3)
        monkeypatch.setattr(steppers, "ReplayedSteps", Watched)
        monkeypatch.setattr(steppers, "can_replay", lambda decoder, max_length: True)
        return begun

    return start


def search(model, sample, extra=None, **options):
    return SequenceGenerator([model], DICTIONARY, **options).generate([model], sample, **(extra or {}))


@pytest.mark.parametrize("family", ["transformer", "bart", "language_model"])
@pytest.mark.parametrize("evaluation", ["kv", "el"])
@pytest.mark.parametrize("options", SEARCHES.values(), ids=SEARCHES)
def test_the_same_hypotheses(replayed, family, evaluation, options):
    model = make_models(family, DICTIONARY)[evaluation]
    rows = make_sources(DICTIONARY, (3, 7, 1, 5, 2, 6, 4))
    if family == "language_model":
        options = {**options, "max_len_a": 0, "max_len_b": 12}
    sample = make_sample(DICTIONARY, rows, left=family != "language_model")
    expected = search(model, sample, **options)
    begun = replayed()
    assert_same_hypotheses(search(model, sample, **options), expected)
    assert len(begun) == 1


@pytest.mark.parametrize("evaluation", ["kv", "el"])
def test_prompts(replayed, evaluation):
    """Of different lengths; the last positions of the model are reached by some sentences and not by others."""
    model = make_models("language_model", DICTIONARY, positions=14)[evaluation]
    rows = [[DICTIONARY.eos(), *row[:-1]] for row in make_sources(DICTIONARY, (2, 9, 5, 1))]
    prompts = torch.tensor(pad_rows(rows, DICTIONARY.pad()))
    sample = {"id": torch.arange(4), "net_input": {"src_tokens": prompts, "src_lengths": prompts.ne(1).sum(dim=1)}}
    options = {"beam_size": 3, "max_len_b": 50}
    expected = search(model, sample, {"prompt_tokens": prompts}, **options)
    assert replayed() == []
    assert_same_hypotheses(search(model, sample, {"prompt_tokens": prompts}, **options), expected)


@pytest.mark.parametrize("policy", [KV, EL], ids="-".join)
@torch.no_grad()
def test_room_and_idle_sentences(monkeypatch, policy):
    """What a step reads grows by `ROOM`; finished sentences are dropped then, or when they are half of all."""
    monkeypatch.setattr(replay, "ROOM", 3)
    model = make_models("transformer", DICTIONARY)["kv"]
    sample = make_sample(DICTIONARY, make_sources(DICTIONARY, (3, 7, 1, 5, 2)))
    decoder, encoder_out = model.decoder, model.encoder.forward_torchscript(sample["net_input"])
    plain, fixed = decoder.new_state(encoder_out, policy), decoder.new_state(encoder_out, policy)
    beam, longest = 2, 11

    def decode(tokens: torch.Tensor, state: DecodeState) -> torch.Tensor:
        return decoder.decode(tokens, state)[0][:, -1]

    steps = ReplayedSteps(decode, fixed, beam, longest)
    tokens = torch.randint(4, len(DICTIONARY), (5 * beam, longest))
    rooms, sentences = [], []
    for step in range(longest):
        expected = decode(tokens[:, step : step + 1], plain)
        torch.testing.assert_close(steps.step(tokens[:, : step + 1]), expected)
        rooms.append(0 if fixed.cursor is None else fixed.cursor.ahead.size(-1))
        memory = fixed.layers[0].cross_attention.tensors[0]
        sentences.append(len(memory))
        rows = torch.arange(len(tokens)).view(-1, beam)
        if step in (3, 4, 7):
            kept = torch.arange(len(rows))[1:]
            rows = rows[kept]
            plain.keep(kept)
            steps.keep(kept)
        order = rows.flip(1).flatten() if step % 3 else rows.flatten()
        plain.reorder(order)
        steps.reorder(order)
        tokens = tokens.index_select(0, order)
    assert rooms == [0, 3, 3, 6, 6, 6, 9, 9, 9, 11, 11]
    assert sentences == [5, 5, 5, 5, 5, 5, 3, 3, 3, 2, 2]


def test_only_on_a_gpu():
    assert not can_replay(make_models("transformer", DICTIONARY)["kv"].decoder, 100)
