import pytest
import torch
from fairseq import search
from hypothesis import given, settings
from hypothesis import strategies as st

from elseq.generation import SequenceGenerator
from elseq.generation.beam_search import BeamSearch
from tests.tiny_models import make_dictionary, make_models

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
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (None, BeamSearch),
        (search.BeamSearch, BeamSearch),  # what fairseq's tasks ask for
        (search.Sampling, search.Sampling),
    ],
)
def test_it_stands_in_for_the_beam_search_of_fairseq_alone(strategy, expected):
    model = make_models("transformer", DICTIONARY)["kv"]
    strategy = None if strategy is None else strategy(DICTIONARY)
    assert type(SequenceGenerator([model], DICTIONARY, search_strategy=strategy).search) is expected
