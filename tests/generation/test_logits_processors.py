"""Against the rules as lists have them, a hypothesis at a time, and against fairseq's own blocking of n-grams."""

import math

import pytest
import torch
from fairseq.ngram_repeat_block import NGramRepeatBlock
from hypothesis import given, settings
from hypothesis import strategies as st

from elseq.generation.beams import Beams, Sentences
from elseq.generation.logits_processors import (
    MaximumLength,
    MinimumLength,
    NoRepeatNgrams,
    OnlyNumbers,
    Prefix,
    Step,
    Suppressed,
    UnknownPenalty,
    forbidden_tokens,
)

BOS, PAD, EOS, UNK = range(4)
VOCABULARY, SENTENCES, BEAM = 9, 3, 2
NUMBERS = st.sampled_from([math.nan, math.inf, -math.inf, *(-0.5 * number for number in range(12))])


def make_beams(words, prefix=None):
    """Hypotheses with these words, int64 [N, L]."""
    lengths = torch.arange(SENTENCES)
    rows = torch.tensor(words).view(SENTENCES * BEAM, -1)
    beams = Beams(EOS, rows.size(1) + 2, BEAM, PAD, Sentences([9] * SENTENCES, lengths, lengths, prefix))
    beams.tokens[:, 1 : rows.size(1) + 1] = rows
    return beams


def allowed(row, words, at_limit, prefix_word, penalty, suppressed, min_len, size):
    """Log-probability of each word that may follow one hypothesis."""
    numbers = {word: -math.inf if math.isnan(value) else value for word, value in enumerate(row) if word != PAD}
    numbers[UNK] -= penalty
    if at_limit or prefix_word != PAD:
        word = EOS if at_limit else prefix_word
        return {word: numbers[word]}
    seen = {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}
    repeated = {word for word in numbers if (*words, word)[-size:] in seen}
    early = {EOS} if len(words) < min_len else set()
    return {word: value for word, value in numbers.items() if word not in repeated | early | set(suppressed)}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_what_may_follow(data):
    def draw(strategy, length):
        return data.draw(st.lists(strategy, min_size=length, max_size=length))

    number, size, min_len = data.draw(st.tuples(st.integers(0, 6), st.integers(1, 3), st.integers(0, 4)))
    words = [draw(st.integers(UNK, UNK + 3), number) for _ in range(SENTENCES * BEAM)]
    rows = [draw(NUMBERS, VOCABULARY) for _ in words]
    at_limit = data.draw(st.none() | st.lists(st.booleans(), min_size=SENTENCES, max_size=SENTENCES))
    forced = data.draw(
        st.none() | st.lists(st.sampled_from([PAD, PAD, UNK, 5, 8]), min_size=SENTENCES, max_size=SENTENCES)
    )
    suppressed, penalty = data.draw(st.tuples(st.lists(st.integers(4, 8)), st.sampled_from([0.0, 2.0, -2.0, math.inf])))
    prefix = None
    if forced is not None:
        prefix = torch.full((SENTENCES, number + 1), PAD)
        prefix[:, number] = torch.tensor(forced)
    log_probs = torch.tensor(rows)
    step = Step(number, make_beams(words, prefix), None if at_limit is None else torch.tensor(at_limit))
    processors = (
        OnlyNumbers(PAD),
        UnknownPenalty(UNK, penalty),
        MaximumLength(EOS),
        Prefix(PAD, EOS),
        Suppressed(suppressed),
        MinimumLength(EOS, min_len),
        NoRepeatNgrams(size, PAD),
    )
    forbidden = forbidden_tokens(processors, step)
    does_more = penalty != 0 or at_limit is not None or forced is not None
    assert (forbidden is None) == does_more
    for process in processors:
        process(log_probs, step)
    if not does_more:
        numbers = torch.tensor(rows).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        numbers.scatter_(1, forbidden, -math.inf)
        assert numbers.equal(log_probs)
    for index, (row, found) in enumerate(zip(rows, log_probs.tolist(), strict=True)):
        sentence = index // BEAM
        ends, word = bool(at_limit and at_limit[sentence]), forced[sentence] if forced else PAD
        expected = allowed(row, words[index], ends, word, penalty, suppressed, min_len, size)
        expected = [expected.get(word, -math.inf) for word in range(VOCABULARY)]
        assert [str(value) for value in found] == [str(value) for value in expected]


@pytest.mark.parametrize("size", [2, 3])
def test_fairseq_blocks_the_same_ngrams(size):
    words = torch.randint(4, 6, (SENTENCES * BEAM, 8), generator=torch.Generator().manual_seed(1))
    beams = make_beams(words.tolist())
    found = torch.zeros(len(words), VOCABULARY)
    NoRepeatNgrams(size, PAD)(found, Step(8, beams, None))
    found[:, PAD] = 0  # never chosen: it may be blocked or not
    stock = NGramRepeatBlock(size, use_extension=False)
    expected = stock(beams.tokens[:, :9], torch.zeros(len(words), VOCABULARY), SENTENCES, BEAM, 8)
    assert torch.equal(found, expected) and expected.isinf().any()


def test_a_prefix_that_ends_a_sentence_leaves_its_first_hypothesis():
    """What is said of it is said of all."""
    words = torch.arange(4, 10).view(SENTENCES * BEAM, 1)
    beams = make_beams(words.tolist(), torch.tensor([[5, 6], [5, EOS], [5, PAD]]))
    log_probs = -torch.arange(1.0, SENTENCES * BEAM * VOCABULARY + 1).view(SENTENCES * BEAM, VOCABULARY)
    before = log_probs.clone()
    step = Step(1, beams, None)
    Prefix(PAD, EOS)(log_probs, step)
    assert step.settled.tolist() == [True] * 4 + [False] * 2
    assert beams.tokens[:, 1].tolist() == [4, 5, 6, 6, 8, 9]
    for row, forced, source in ((0, 6, 0), (1, 6, 1), (2, EOS, 2), (3, EOS, 2)):
        assert log_probs[row].isfinite().nonzero().tolist() == [[forced]]
        assert log_probs[row, forced] == before[source, forced]
    assert torch.equal(log_probs[4:], before[4:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_what_is_forced_is_not_forbidden(dtype):
    """A repeated token, the end before the minimum length, and a suppressed one, in rows that must have just these."""
    log_probs = torch.zeros(SENTENCES * BEAM, VOCABULARY, dtype=dtype)
    step = Step(2, make_beams([[4, 4]] * (SENTENCES * BEAM)), None)
    step.settle(torch.tensor([True, True, False, False, True, False]))
    for process in (NoRepeatNgrams(1, PAD), MinimumLength(EOS, 3), Suppressed([7])):
        process(log_probs, step)
    for row, is_settled in zip(log_probs, step.settled.tolist(), strict=True):
        found = set(row.isneginf().nonzero().flatten().tolist()) - {PAD}
        assert found == (set() if is_settled else {4, EOS, 7})
