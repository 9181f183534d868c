"""fairseq's search strategies as elseq repairs them, under its generator and ours: what ends, ends."""

import itertools
import math

import pytest
import torch
from fairseq import search
from fairseq.models import FairseqIncrementalDecoder, FairseqLanguageModel
from fairseq.sequence_generator import SequenceGenerator as StockGenerator
from fairseq.token_generation_constraints import pack_constraints
from hypothesis import given, settings
from hypothesis import strategies as st

from elseq.generation import SequenceGenerator, transfers
from elseq.generation.strategies import DiverseSiblingsSearch, Sampling, as_ours, seeded
from tests.tiny_models import assert_same_hypotheses, make_dictionary, make_models, make_sample, make_sources

DICTIONARY = make_dictionary(20)
EOS, PAD = DICTIONARY.eos(), DICTIONARY.pad()
LENGTHS = (3, 7, 1, 5)
GENERATORS = {"fairseq's": (StockGenerator, "stock"), "kv": (SequenceGenerator, "kv"), "el": (SequenceGenerator, "el")}


@pytest.fixture(scope="module")
def models():
    return make_models("transformer", DICTIONARY, seed=3)


def found_by(name, models, strategy, **options):
    generator_class, kind = GENERATORS[name]
    sample = make_sample(DICTIONARY, make_sources(DICTIONARY, LENGTHS))
    constraints = options.pop("constraints", None)
    generator = generator_class([models[kind]], DICTIONARY, search_strategy=strategy, **options)
    torch.manual_seed(1)
    return generator.generate([models[kind]], sample, constraints=constraints)


# --- diverse beam search


class Groups:
    """Diverse beam search as its paper has it, with fairseq's cumulative penalty: one sentence, word by word."""

    def __init__(self, model, source, groups, share, strength, discount, min_len, max_len):
        self.model, self.source = model, torch.tensor([source])
        self.done = [[] for _ in range(groups)]
        alive = [[([], 0.0)] for _ in range(groups)]
        overlap = [[0.0] * groups for _ in range(groups)]
        for step in range(max_len + 1):
            chosen = []  # of each group the words that it chose, by their ranks
            for group in range(groups):
                chosen.append({})
                if len(self.done[group]) == share:
                    continue
                candidates = []
                for words, total in alive[group]:
                    for word, log_prob in enumerate(self.log_probs(words)):
                        if word == PAD or (word == EOS and step < min_len) or (word != EOS and step == max_len):
                            continue
                        taken = sum(
                            1 + overlap[group][other]
                            for other in range(group)
                            for previous in chosen[other].values()
                            if previous == word
                        )
                        candidates.append((total + log_prob - strength * taken, [*words, word]))
                candidates.sort(key=lambda candidate: -candidate[0])
                alive[group] = []
                for rank, (total, words) in enumerate(candidates[: 2 * share]):
                    if words[-1] == EOS:
                        if rank < share and len(self.done[group]) < share:
                            self.done[group].append((total / len(words), words))
                            chosen[group][rank] = EOS
                    elif len(alive[group]) < share:
                        alive[group].append((words, total))
                        chosen[group][rank] = words[-1]
            for group, other in itertools.combinations(range(groups), 2):
                same = sum(chosen[group].get(rank) == word for rank, word in chosen[other].items())
                overlap[other][group] = discount * (overlap[other][group] + same)

    def log_probs(self, words):
        output = self.model(self.source, torch.tensor([self.source.size(1)]), torch.tensor([[EOS, *words]]))
        return self.model.get_normalized_probs(output, log_probs=True)[0, -1].tolist()

    def ranked(self):
        return sorted((hypothesis for group in self.done for hypothesis in group), key=lambda pair: -pair[0])


@pytest.mark.few_cases(4)
@torch.no_grad()
@pytest.mark.parametrize("groups, share", [(1, 3), (2, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("strength, discount, min_len", [(0.7, 1.0, 1), (2.0, 0.5, 1), (0.5, 0.0, 4)])
def test_each_group_is_a_beam_search(models, groups, share, strength, discount, min_len):
    sources = make_sources(DICTIONARY, LENGTHS)
    expected = [
        Groups(models["stock"], source, groups, share, strength, discount, min_len, 9).ranked() for source in sources
    ]
    for name in GENERATORS:
        strategy = search.DiverseBeamSearch(DICTIONARY, groups, strength, discount)
        found = found_by(name, models, strategy, beam_size=groups * share, max_len_b=9, min_len=min_len)
        for hypotheses, ranked in zip(found, expected, strict=True):
            assert [hypothesis["tokens"].tolist() for hypothesis in hypotheses] == [words for _, words in ranked]
            scores = torch.stack([hypothesis["score"] for hypothesis in hypotheses])
            torch.testing.assert_close(scores, torch.tensor([score for score, _ in ranked]), rtol=1e-4, atol=1e-4)


def test_the_reference_itself_is_a_beam_search(models):
    """One group, which nothing penalizes."""
    found = found_by("fairseq's", models, None, beam_size=3, max_len_b=9)
    with torch.no_grad():
        for source, hypotheses in zip(make_sources(DICTIONARY, LENGTHS), found, strict=True):
            expected = Groups(models["stock"], source, 1, 3, 0.0, 1.0, 1, 9).ranked()
            assert [hypothesis["tokens"].tolist() for hypothesis in hypotheses] == [words for _, words in expected]


# --- no end symbol inside


def allowed(sentence, words):
    return [EOS, *range(DICTIONARY.nspecial + (sentence + len(words)) % 2, len(DICTIONARY), 2)]


STRATEGIES = {
    "beam": lambda: search.BeamSearch(DICTIONARY),
    "groups": lambda: search.DiverseBeamSearch(DICTIONARY, 2, 0.7),
    "groups of one": lambda: search.DiverseBeamSearch(DICTIONARY, 6, 0.7),
    "groups, of old": lambda: search.DiverseBeamSearch(DICTIONARY, 3, 0.7, 0.0, candidate_multiple=2),
    "siblings": lambda: search.DiverseSiblingsSearch(DICTIONARY, 0.8),
    "allowed words": lambda: search.PrefixConstrainedBeamSearch(DICTIONARY, allowed),
    "sampling": lambda: search.Sampling(DICTIONARY),
    "sampling, top-k": lambda: search.Sampling(DICTIONARY, sampling_topk=3),
    "sampling, top-p": lambda: search.Sampling(DICTIONARY, sampling_topp=0.6),
    "words that must occur": lambda: search.LexicallyConstrainedBeamSearch(DICTIONARY, "unordered"),
}
CONSTRAINTS = pack_constraints(
    [[torch.tensor([5])], [], [torch.tensor([8, 9])], [torch.tensor([7]), torch.tensor([6])]]
)


@pytest.mark.parametrize("name", ["fairseq's", "el"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_end_symbol_inside(models, name, strategy):
    extra = {"constraints": CONSTRAINTS} if strategy == "words that must occur" else {}
    for min_len in (0, 5):
        options = {"beam_size": 6, "max_len_b": 15, "min_len": min_len, **extra}
        for hypotheses in found_by(name, models, STRATEGIES[strategy](), **options):
            assert len(hypotheses) == 6 or (hypotheses and extra)
            for hypothesis in hypotheses:
                assert hypothesis["tokens"].tolist().index(EOS) == len(hypothesis["tokens"]) - 1
                assert hypothesis["score"].isfinite()


@pytest.mark.parametrize("beam", [12, 20, 23, 100])
def test_no_end_symbol_inside_a_beam_as_wide_as_the_dictionary(models, beam):
    for kind in ("kv", "el"):
        for hypotheses in found_by(kind, models, None, beam_size=beam, max_len_b=4):
            words = [tuple(hypothesis["tokens"].tolist()) for hypothesis in hypotheses]
            assert len(set(words)) == len(words) == min(beam, len(DICTIONARY) - 1)
            assert all(row.index(EOS) == len(row) - 1 for row in words)


def test_a_strategy_looks_out_for_the_same_end(models):
    """Another than the dictionary's."""
    end = DICTIONARY.index("w9")
    strategy = search.DiverseBeamSearch(DICTIONARY, 2, 0.7)
    for hypotheses in found_by("kv", models, strategy, beam_size=6, max_len_b=15, eos=end):
        for hypothesis in hypotheses:
            assert hypothesis["tokens"].tolist().index(end) == len(hypothesis["tokens"]) - 1


# --- nothing left


class Successors(FairseqLanguageModel):
    """A language model that knows which words may follow a word, all as likely as the weights say."""

    class Table(FairseqIncrementalDecoder):
        def __init__(self, weights):
            super().__init__(DICTIONARY)
            self.weights = torch.nn.Parameter(weights)

        def forward(self, prev_output_tokens, encoder_out=None, incremental_state=None):
            if incremental_state is not None:
                prev_output_tokens = prev_output_tokens[:, -1:]
            return self.weights[prev_output_tokens], None

        def max_positions(self):
            return 50

        def get_normalized_probs(self, net_output, log_probs, sample=None):
            probs = net_output[0] / net_output[0].sum(dim=-1, keepdim=True).clamp_min(1e-9)
            return probs.log() if log_probs else probs

    def __init__(self, **successors):
        weights = torch.zeros(len(DICTIONARY), len(DICTIONARY))
        for word, following in successors.items():
            row = EOS if word == "start" else DICTIONARY.index(word)
            for other, weight in following.items():
                weights[row, EOS if other == "end" else DICTIONARY.index(other)] = weight
        super().__init__(self.Table(weights))


def continued(model, strategy=None, generator_class=SequenceGenerator, **options):
    sample = {"net_input": {"src_tokens": torch.full((2, 1), EOS), "src_lengths": torch.ones(2, dtype=torch.long)}}
    generator = generator_class([model], DICTIONARY, search_strategy=strategy, max_len_b=8, **options)
    torch.manual_seed(1)
    return [
        [(DICTIONARY.string(found["tokens"]), len(found["tokens"]), found["score"].item()) for found in hypotheses]
        for hypotheses in generator.generate([model], sample)
    ]


DEAD_END = Successors(start={"w1": 3, "w2": 1}, w1={"w3": 1}, w2={"w4": 1}, w4={"w5": 1}, w5={"end": 1})


@pytest.mark.parametrize("beam", [1, 2])
@pytest.mark.parametrize("min_len", [1, 6])
def test_a_search_with_nothing_left_ends_with_the_best_so_far(beam, min_len):
    """The first of the longest hypotheses there have been."""
    found = continued(DEAD_END, beam_size=beam, min_len=min_len, normalize_scores=False)
    expected = ("w1 w3", 3, math.log(0.75)) if beam == 1 else ("w2 w4 w5", 4, math.log(0.25))
    for hypotheses in found:
        [(words, length, score)] = hypotheses
        assert (words, length) == expected[:2]
        assert score == pytest.approx(expected[2])


@pytest.mark.parametrize("generator_class", [SequenceGenerator, StockGenerator])
@pytest.mark.parametrize("options", [{}, {"sampling_topk": 2}, {"sampling_topp": 0.9}], ids=str)
@pytest.mark.parametrize("min_len", [1, 6])
def test_a_drawn_hypothesis_with_nothing_left_ends(options, generator_class, min_len):
    if generator_class is StockGenerator and min_len == 6:
        pytest.skip("it takes the minimum length as it is")
    strategy = search.Sampling(DICTIONARY, **options)
    found = continued(DEAD_END, strategy, generator_class, beam_size=20, min_len=min_len, normalize_scores=False)
    assert all(len(hypotheses) == 20 for hypotheses in found)
    several = {hypothesis[:2] for hypotheses in found for hypothesis in hypotheses}
    assert several == {("w1 w3", 3), ("w2 w4 w5", 4)}


@pytest.mark.parametrize("options", [{}, {"sampling_topk": 2}, {"sampling_topp": 0.9}], ids=str)
@pytest.mark.parametrize("step", [0, 1])
def test_words_whose_probability_is_too_small_for_a_number_are_none(options, step):
    log_probs, scores = torch.full((1, 2, len(DICTIONARY)), -200.0), torch.full((1, 2, step), -3.0)
    for strategy in (
        search.Sampling(DICTIONARY, **options),
        as_ours(search.Sampling(DICTIONARY, **options), DICTIONARY),
    ):
        found, words, _ = strategy.step(step, log_probs.clone(), scores)
        assert words.tolist() == [[EOS, EOS]] and found.tolist() == [[-3.0 * step] * 2]


def test_suppressed_and_blocked_words_leave_nothing(models):
    """Of 24 entries one word is left, and it must not occur twice."""
    suppressed = [word for word in DICTIONARY.symbols[DICTIONARY.nspecial :] if word != "w7"] + ["<s>"]
    for strategy in (None, search.Sampling(DICTIONARY), search.DiverseBeamSearch(DICTIONARY, 2, 0.5)):
        for kind in ("kv", "el"):
            found = found_by(
                kind,
                models,
                strategy,
                beam_size=2,
                max_len_b=9,
                min_len=5,
                no_repeat_ngram_size=1,
                tokens_to_suppress=suppressed,
                unk_penalty=math.inf,
            )
            for hypotheses in found:
                assert [hypothesis["tokens"].tolist() for hypothesis in hypotheses][0] == [DICTIONARY.index("w7"), EOS]
                assert hypotheses[0]["score"].isfinite()


def test_no_word_is_allowed(models):
    strategy = search.PrefixConstrainedBeamSearch(DICTIONARY, lambda sentence, words: [7] if len(words) < 3 else [])
    for hypotheses in found_by("kv", models, strategy, beam_size=3, max_len_b=9):
        assert [hypothesis["tokens"].tolist() for hypothesis in hypotheses] == [[7, 7, EOS]]
        assert hypotheses[0]["score"].isfinite()


# --- without questions to a GPU


def random_log_probs(*shape):
    """Of which some are impossible."""
    scores = torch.randn(*shape) * 3
    scores[..., 1:].masked_fill_(torch.rand(*shape)[..., 1:] < 0.3, -math.inf)
    return scores.log_softmax(dim=-1)


@pytest.mark.parametrize("options", [{}, {"sampling_topk": 3}, {"sampling_topp": 0.7}], ids=str)
@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_numbers_that_fairseq_draws(options, step, dtype):
    """And as many: what is drawn next is the same, too."""
    theirs, ours = search.Sampling(DICTIONARY, **options), as_ours(search.Sampling(DICTIONARY, **options), DICTIONARY)
    assert type(ours) is Sampling
    for seed in range(30):
        torch.manual_seed(seed)
        log_probs, scores = random_log_probs(3, 4, len(DICTIONARY)).to(dtype), -torch.rand(3, 4, step, dtype=dtype)
        if step == 0:
            log_probs = log_probs[:, :1].expand(-1, 4, -1)
        found = ours.step(step, log_probs.clone(), scores), torch.rand(1)
        torch.manual_seed(seed)
        random_log_probs(3, 4, len(DICTIONARY)), torch.rand(3, 4, step, dtype=dtype)
        expected = theirs.step(step, log_probs.clone(), scores), torch.rand(1)
        for one, other in zip((*found[0], found[1]), (*expected[0], expected[1]), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"sampling_topk": 3}, {"sampling_topp": 0.7}], ids=str)
@pytest.mark.parametrize("name", ["fairseq's", "kv"])
def test_a_seed_of_a_search(models, name, options):
    """Its tokens are those after torch.manual_seed, and torch's own numbers go on as if nothing had been drawn."""
    generator_class, kind = GENERATORS[name]
    strategy = search.Sampling(DICTIONARY, **options)
    generator = generator_class([models[kind]], DICTIONARY, beam_size=3, max_len_b=8, search_strategy=strategy)
    sample = make_sample(DICTIONARY, make_sources(DICTIONARY, LENGTHS))
    torch.manual_seed(7)
    expected = generator.generate([models[kind]], sample)
    torch.manual_seed(1)
    follows = torch.rand(1)
    torch.manual_seed(1)
    for _ in range(2):
        with seeded(generator, 7):
            assert_same_hypotheses(generator.generate([models[kind]], sample), expected, tolerance=0)
    assert torch.rand(1) == follows


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_top_p_among_all_words(monkeypatch, top_p):
    """As on a GPU, of the same words with the same probabilities."""
    strategy = Sampling(DICTIONARY, sampling_topp=top_p)
    torch.manual_seed(1)
    log_probs = random_log_probs(5, 3, len(DICTIONARY))
    expected, words = strategy._sample_topp(log_probs.clone())
    monkeypatch.setattr(transfers, "is_asynchronous", lambda device: True)
    found, all_words = strategy._sample_topp(log_probs.clone())
    width = expected.size(2)
    assert torch.equal(found[:, :, :width], expected) and not found[:, :, width:].any()
    assert torch.equal(all_words[:, :, :width], words)
    # A single hypothesis gets the numbers that it gets among fewer words.
    for seed in range(20):
        one, scores = log_probs[:1, :1], torch.zeros(1, 1, 1)
        torch.manual_seed(seed)
        found = strategy.step(1, one.clone(), scores)
        with monkeypatch.context() as patch:
            patch.setattr(transfers, "is_asynchronous", lambda device: False)
            torch.manual_seed(seed)
            assert all(map(torch.equal, found, strategy.step(1, one.clone(), scores)))


@pytest.mark.parametrize("beam", [1, 4, 11])
@pytest.mark.parametrize("step", [0, 1, 3])
def test_siblings_are_those_of_fairseq(beam, step):
    theirs = search.DiverseSiblingsSearch(DICTIONARY, 0.7)
    ours = as_ours(theirs, DICTIONARY)
    assert type(ours) is DiverseSiblingsSearch
    for seed in range(20):
        torch.manual_seed(seed)
        log_probs = torch.randn(3, beam, len(DICTIONARY)).log_softmax(dim=2)
        scores = -torch.rand(3, beam, step).cumsum(dim=2)
        found, expected = (strategy.step(step, log_probs.clone(), scores) for strategy in (ours, theirs))
        assert all(map(torch.equal, found, expected))


def test_siblings_of_as_many_as_there_are_words(models):
    """fairseq asks for more words than there are."""
    strategy = search.DiverseSiblingsSearch(DICTIONARY, 0.0)
    expected = found_by("kv", models, search.BeamSearch(DICTIONARY), beam_size=14, max_len_b=5)
    found = found_by("kv", models, strategy, beam_size=14, max_len_b=5)
    assert_same_hypotheses(found, expected)


def test_strategies_of_plugins_stay():
    for kind, options in ((search.Sampling, ()), (search.DiverseBeamSearch, (2, 0.5))):
        strategy = type("Plugin", (kind,), {})(DICTIONARY, *options)
        assert as_ours(strategy, DICTIONARY) is strategy


# --- among few words


AMONG_FEW = {
    "groups": lambda: search.DiverseBeamSearch(DICTIONARY, 2, 0.7),
    "groups, of old": lambda: search.DiverseBeamSearch(DICTIONARY, 3, 1.5, 0.0),
    "groups of one": lambda: search.DiverseBeamSearch(DICTIONARY, 6, 3.0, 0.5),
    "one group": lambda: search.DiverseBeamSearch(DICTIONARY, 1, 0.7),
    "siblings": lambda: search.DiverseSiblingsSearch(DICTIONARY, 0.8),
    "sampling, top-k": lambda: search.Sampling(DICTIONARY, 7),
    "sampling, the best": lambda: search.Sampling(DICTIONARY, 1),
}


def select(strategy, step, log_probs, scores):
    """From as few words as it needs, any of equal ones, in any order."""
    vocabulary, generator = log_probs.size(2), torch.Generator().manual_seed(step)
    count = min(strategy.needed(log_probs.size(1)), vocabulary)
    words = torch.randperm(vocabulary, generator=generator)
    best, index = log_probs[:, :, words].sort(dim=2, descending=True, stable=True)
    order = torch.randperm(count, generator=generator)
    return strategy.select(step, best[:, :, order], words[index[:, :, order]], scores)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(AMONG_FEW)),
    seed=st.integers(0, 2**31),
    vocabulary=st.integers(20, 40) | st.integers(1000, 2000),
    excluded=st.floats(0, 1),
    case=st.sampled_from([(True, 0), (True, 2), (True, 10), (False, 0)]),
)
def test_few_words_suffice(name, seed, vocabulary, excluded, case):
    """For what fairseq selects, step by step. Some scores are equal if there are so many values in 1; 0: there is any.
    On a GPU any of equal words would do."""
    is_on_cpu, values = case
    torch.manual_seed(seed)
    theirs, ours = AMONG_FEW[name](), as_ours(AMONG_FEW[name](), DICTIONARY)
    assert type(ours) is not type(theirs)
    scores, totals = torch.zeros(3, 6, 0), torch.zeros(3, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfers, "is_asynchronous", lambda device: not is_on_cpu)
        for step in range(5):
            log_probs = torch.randn(3, 6, vocabulary) * 2
            log_probs[:, :, EOS] += 3  # so that groups end
            if values:
                log_probs = (log_probs * values).round() / values
            log_probs = log_probs.log_softmax(dim=2)
            if step == 0:
                log_probs = log_probs[:, :1].repeat(1, 6, 1)
            log_probs[:, :, torch.randperm(vocabulary)[: int(excluded * vocabulary)]] = -math.inf
            torch.manual_seed(step)
            found = select(ours, step, log_probs, scores)
            if found is None:
                assert is_on_cpu and values
                torch.manual_seed(step)
                found = ours.step(step, log_probs.clone(), scores)
            after = torch.rand(1)
            torch.manual_seed(step)
            expected = theirs.step(step, log_probs.clone(), scores)
            assert torch.equal(torch.rand(1), after)  # as many numbers are drawn
            torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-6)
            is_one = expected[0].isfinite()
            for one, other in zip(found[1:], expected[1:], strict=True):
                assert torch.equal(one[is_one], other[is_one])
            # Those that go on: where none does, a place is left over.
            totals = expected[0].masked_fill(expected[1].eq(EOS), -math.inf)[:, :6]
            totals = torch.where(totals.isfinite().any(dim=1, keepdim=True), totals, torch.zeros(()))
            scores = torch.cat((scores, totals.unsqueeze(2)), dim=2)


def test_groups_that_raise_words_need_all():
    for strength, discount in ((-1.0, 1.0), (1.0, -1.0)):
        strategy = as_ours(search.DiverseBeamSearch(DICTIONARY, 2, strength, discount), DICTIONARY)
        assert strategy.needed(4) is None


def test_top_p_needs_all_words():
    assert as_ours(search.Sampling(DICTIONARY, 3, 0.5), DICTIONARY).needed(4) is None


@pytest.mark.parametrize("top_k", [-1, 1, 3])
@pytest.mark.parametrize("step", [0, 1])
def test_few_words_whose_probabilities_are_too_small_for_a_number(top_k, step):
    strategy, count = as_ours(search.Sampling(DICTIONARY, top_k), DICTIONARY), 1 if top_k < 0 else top_k + 1
    best, scores = -200.0 - torch.arange(count).repeat(1, 2, 1), torch.full((1, 2, step), -3.0)
    best[0, 1] = -math.inf
    found, words, _ = strategy.select(step, best, torch.full((1, 2, count), 7), scores)
    assert words.tolist() == [[EOS, EOS]] and found.tolist() == [[-3.0 * step] * 2]


@pytest.mark.parametrize("options", [{}, {"min_len": 6}, {"no_repeat_ngram_size": 1}], ids=str)
def test_words_that_a_kernel_draws(models, as_on_gpu, kernel_draws, options):
    """Have their scores, and are such as may follow."""
    suppressed = ["w1", "w3", "w8"]
    strategy = search.Sampling(DICTIONARY)
    found = found_by("kv", models, strategy, beam_size=5, max_len_b=9, tokens_to_suppress=suppressed, **options)
    for source, hypotheses in zip(make_sources(DICTIONARY, LENGTHS), found, strict=True):
        assert len({tuple(hypothesis["tokens"].tolist()) for hypothesis in hypotheses}) > 1
        for hypothesis in hypotheses:
            words = hypothesis["tokens"].tolist()
            assert not {DICTIONARY.index(word) for word in suppressed} & set(words) and PAD not in words
            assert len(words) > options.get("min_len", 1)
            if "no_repeat_ngram_size" in options:
                assert len(set(words)) == len(words)
            with torch.no_grad():
                output = models["stock"](
                    torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([[EOS, *words[:-1]]])
                )
            expected = models["stock"].get_normalized_probs(output, log_probs=True)[0, range(len(words)), words]
            torch.testing.assert_close(hypothesis["positional_scores"], expected, rtol=1e-4, atol=1e-4)
