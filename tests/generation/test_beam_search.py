import pytest
import torch
from fairseq import search
from hypothesis import given, settings
from hypothesis import strategies as st

from elseq.generation import SequenceGenerator
from elseq.generation.beam_search import BeamSearch, GreedySearch
from elseq.generation.strategies import Sampling
from tests.tiny_models import make_dictionary, make_models, make_sample, make_sources

DICTIONARY = make_dictionary(5)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    sentences=st.integers(1, 4),
    beam=st.integers(1, 9),
    vocabulary=st.integers(4, 40) | st.integers(1000, 2000),
    step=st.integers(0, 3),
    excluded=st.floats(0, 1),
    values=st.sampled_from([0, 1, 2, 10]),
)
def test_the_candidates_are_those_of_fairseq(seed, sentences, beam, vocabulary, step, excluded, values):
    """Whether some words are excluded, and whether some or all scores are equal: of so many values, 0 for any."""
    torch.manual_seed(seed)
    beam = min(beam, vocabulary - 1)
    log_probs = torch.randn(sentences, beam, vocabulary)
    if values:
        log_probs = torch.randint(-values, 0, log_probs.shape).float()
    if step == 0:
        log_probs = log_probs[:, :1].repeat(1, beam, 1)
    log_probs[:, :, torch.randperm(vocabulary)[: int(excluded * vocabulary)]] = -float("inf")
    scores = -torch.rand(sentences, beam, step).cumsum(dim=-1) if values == 0 else torch.zeros(sentences, beam, step)
    found = BeamSearch(DICTIONARY).step(step, log_probs.clone(), scores)
    expected = search.BeamSearch(DICTIONARY).step(step, log_probs.clone(), scores)
    is_one = expected[0].isfinite()  # any other words are as impossible
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-6)
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert torch.equal(ours[is_one], theirs[is_one])


@pytest.mark.parametrize(
    ("strategy", "beam", "expected"),
    [
        (None, 2, BeamSearch),
        (search.BeamSearch, 2, BeamSearch),  # what fairseq's tasks ask for
        (search.BeamSearch, 1, GreedySearch),
        (None, 1, GreedySearch),
        (search.Sampling, 1, Sampling),
    ],
)
def test_what_stands_in_for_a_strategy_of_fairseq(strategy, beam, expected):
    model = make_models("transformer", DICTIONARY)["kv"]
    strategy = None if strategy is None else strategy(DICTIONARY)
    assert type(SequenceGenerator([model], DICTIONARY, beam, search_strategy=strategy).search) is expected


def test_greedy_search_takes_the_most_probable_word():
    """Teacher-forced, in float64, word by word."""
    model = make_models("transformer", DICTIONARY)["stock"].double()
    sources = make_sources(DICTIONARY, (3, 7, 1))
    found = SequenceGenerator([model], DICTIONARY, 1, max_len_b=9).generate([model], make_sample(DICTIONARY, sources))
    for source, [hypothesis] in zip(sources, found, strict=True):
        words = [DICTIONARY.eos()]
        while len(words) == 1 or (words[-1] != DICTIONARY.eos() and len(words) < 10):
            output = model(torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([words]))[0][0, -1]
            output[DICTIONARY.pad()] = -torch.inf
            if len(words) == 1:
                output[DICTIONARY.eos()] = -torch.inf  # a hypothesis has a word
            words.append(output.argmax().item())
        expected = words[1:] if words[-1] == DICTIONARY.eos() else [*words[1:], DICTIONARY.eos()]
        assert hypothesis["tokens"].tolist() == expected
