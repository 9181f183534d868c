"""The best words of a search, found without the log-probabilities of all, against the full way."""

import pytest
import torch
from fairseq import search

from elseq import native
from elseq.generation import SequenceGenerator
from elseq.generation.next_tokens import MOST_ON_CPU, NextTokens
from tests.tiny_models import assert_same_hypotheses, make_dictionary, make_models, make_sample, make_sources

needs_kernels = pytest.mark.skipif(native.library() is None, reason="needs the kernels")
DICTIONARY = make_dictionary(200)
SEARCHES = {
    "greedy": {"beam_size": 1},
    "beam": {"beam_size": 4},
    "minimum length": {"beam_size": 3, "min_len": 6},
    "suppressed words": {"beam_size": 3, "tokens_to_suppress": ["w3", "w8", "w90"]},
    "penalty of unknown words": {"beam_size": 3, "unk_penalty": 1.0},
    "no bigram twice": {"beam_size": 4, "no_repeat_ngram_size": 2},
    "no word twice": {"beam_size": 3, "no_repeat_ngram_size": 1},
    "temperature": {"beam_size": 3, "temperature": 1.7},
    "wide": {"beam_size": 40},
    "groups": {"beam_size": 6, "search_strategy": lambda: search.DiverseBeamSearch(DICTIONARY, 3, 0.6)},
    "groups of one": {"beam_size": 4, "search_strategy": lambda: search.DiverseBeamSearch(DICTIONARY, 4, 2.0, 0.5)},
    "groups and no bigram twice": {
        "beam_size": 4,
        "search_strategy": lambda: search.DiverseBeamSearch(DICTIONARY, 2, 0.6),
        "no_repeat_ngram_size": 2,
    },
    "siblings": {"beam_size": 4, "search_strategy": lambda: search.DiverseSiblingsSearch(DICTIONARY, 0.8)},
    "siblings and a minimum length": {
        "beam_size": 3,
        "search_strategy": lambda: search.DiverseSiblingsSearch(DICTIONARY, 0.3),
        "min_len": 6,
    },
    "sampling, top-k": {"beam_size": 4, "search_strategy": lambda: search.Sampling(DICTIONARY, 10)},
    "sampling, top-k, and suppressed words": {
        "beam_size": 2,
        "search_strategy": lambda: search.Sampling(DICTIONARY, 50),
        "tokens_to_suppress": ["w3", "w8", "w90"],
    },
}
NONE = torch.zeros(1, 0, dtype=torch.long)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_best_tokens(dtype):
    logits = torch.randn(5, 300).to(dtype)
    words = NextTokens(logits=logits, normalize=lambda logits: torch.log_softmax(logits.double(), dim=-1))
    found = words.best(9, NONE)
    if dtype != torch.float32:
        assert found is None
        return
    log_probs = torch.log_softmax(logits.double(), dim=-1)
    values, numbers = torch.topk(log_probs, 9)
    torch.testing.assert_close(found[0].double(), values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_probs.gather(1, found[1]), values)


@pytest.mark.parametrize("count", [MOST_ON_CPU + 1, 21])
def test_more_than_are_found_one_by_one(count):
    words = NextTokens(logits=torch.randn(2, 20 if count == 21 else 500), normalize=None)
    assert words.best(count, NONE) is None


def test_log_probabilities_offer_no_best():
    assert not NextTokens(torch.randn(2, 20)).offers_best


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("are_logits", [True, False])
def test_the_best_tokens_on_a_gpu(as_on_gpu, dtype, are_logits):
    """All that there are, where there are fewer; words that are forbidden have their share all the same."""
    logits = torch.randn(5, 300).to(dtype)
    exact = torch.log_softmax(logits.double(), dim=-1)
    forbidden = torch.topk(exact, 4, dim=1)[1][:, [0, 2, 0]]
    expected = torch.topk(exact.scatter(1, forbidden, -torch.inf), 300, dim=1)[0]
    for count in (9, 400):
        words = NextTokens(exact.float())
        if are_logits:
            words = NextTokens(logits=logits, normalize=lambda logits: logits.float().log_softmax(dim=-1))
        values, numbers, is_nan = words.best(count, forbidden)
        assert not is_nan and values.size(1) == numbers.size(1) == min(count, 300)
        torch.testing.assert_close(values.double(), expected[:, :count], rtol=1e-5, atol=1e-5)
        finite = values.isfinite()
        torch.testing.assert_close(exact.gather(1, numbers)[finite], expected[:, :count][finite])


def test_a_drawn_word(kernel_draws):
    logits = torch.randn(5, 300)
    exact = logits.log_softmax(dim=1)
    values, words, is_nan = NextTokens(logits=logits).sampled(torch.arange(290).repeat(5, 1))
    assert not is_nan and (words >= 290).all()
    torch.testing.assert_close(values, exact.gather(1, words))
    logits = torch.randn(2, 300)
    logits[1, 7] = torch.nan
    values, _, is_nan = NextTokens(logits=logits).sampled(torch.tensor([[7]]).expand(2, 1))
    assert is_nan and values.isneginf().tolist() == [[False], [True]]


def test_no_word_is_drawn_without_a_kernel():
    assert NextTokens(torch.randn(2, 20)).sampled(NONE) is None
    assert NextTokens(logits=torch.randn(2, 20)).sampled(NONE) is None


@pytest.mark.parametrize("place", ["as on a CPU", "as on a GPU"])
def test_no_number(request, place):
    if place == "as on a GPU":
        request.getfixturevalue("as_on_gpu")
    elif native.library() is None:
        pytest.skip("needs the kernels")
    logits = torch.randn(3, 20)
    logits[1, 7] = torch.nan
    words = NextTokens(logits=logits, normalize=lambda logits: logits.log_softmax(dim=-1))
    values, _, is_nan = words.best(3, torch.tensor([[7]]).expand(3, 1))
    assert is_nan and values[1].isneginf().all() and values[::2, :3].isfinite().any(dim=1).all()


@needs_kernels
@pytest.mark.parametrize("family", ["transformer", "bart"])
@pytest.mark.parametrize("name", SEARCHES)
def test_searches_find_the_same(family, name, monkeypatch):
    model = make_models(family, DICTIONARY)["kv"]
    sample = make_sample(DICTIONARY, make_sources(DICTIONARY, [5, 9, 3, 7]))
    called = []
    best = NextTokens.best
    monkeypatch.setattr(NextTokens, "best", lambda self, *asked: called.append(asked) or best(self, *asked))

    def generate():
        options = {"max_len_b": 15, **SEARCHES[name]}
        if "search_strategy" in options:
            options["search_strategy"] = options["search_strategy"]()
        torch.manual_seed(1)
        return SequenceGenerator([model], DICTIONARY, **options).generate(None, sample)

    found = generate()
    assert bool(called) == (name != "penalty of unknown words")
    monkeypatch.setattr(NextTokens, "offers_best", False)
    assert_same_hypotheses(found, generate())


def test_the_prefix_and_the_end_take_all_words():
    model = make_models("transformer", DICTIONARY)["kv"]
    sample = make_sample(DICTIONARY, make_sources(DICTIONARY, [5, 9]))
    prefix = torch.tensor([[8, 9], [10, DICTIONARY.pad()]])
    expected = SequenceGenerator(
        [make_models("transformer", DICTIONARY)["stock"]], DICTIONARY, beam_size=3, max_len_b=6
    )
    found = SequenceGenerator([model], DICTIONARY, beam_size=3, max_len_b=6)
    assert_same_hypotheses(found.generate(None, sample, prefix), expected.generate(None, sample, prefix))


@needs_kernels
def test_the_same_numbers_whether_all_are_asked_for_or_the_best():
    logits = torch.randn(50, 300) * 4
    values, words, _ = NextTokens(logits=logits).best(9, NONE)
    assert torch.equal(NextTokens(logits=logits).log_probs.gather(1, words), values)


def test_a_model_that_normalizes_in_its_own_way_is_asked():
    model = make_models("transformer", DICTIONARY)["kv"]
    sample = make_sample(DICTIONARY, make_sources(DICTIONARY, [5, 9]))
    plain = model.get_normalized_probs

    def without_most_words(output, log_probs, sample=None):
        found = plain(output, log_probs, sample)
        return found.index_fill(-1, torch.arange(10, len(DICTIONARY)), -1e4)

    model.get_normalized_probs = without_most_words
    found = SequenceGenerator([model], DICTIONARY, beam_size=2, max_len_b=6).generate(None, sample)
    assert all(int(each["tokens"].max()) < 10 for hypotheses in found for each in hypotheses)
