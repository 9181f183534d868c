"""Against the same hypotheses kept in lists."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elseq.generation.beams import Beams, Candidates, Sentences

PAD, EOS = 1, 2
SENTENCES, LENGTH = 3, 6


def make_beams(beam, prefix=None):
    lengths = torch.arange(SENTENCES) + 5
    return Beams(EOS, LENGTH, beam, PAD, Sentences([3, 4, 5], lengths, 10 * lengths, prefix))


class Lists:
    """One sentence: the words and the scores of each of its hypotheses."""

    def __init__(self, beam):
        self.hypotheses = [([], []) for _ in range(beam)]
        self.left_over = [False] * beam

    def go_on(self, candidates):
        """Pairs of score and word, and the hypothesis that each continues; an end among them only marks a place."""
        beam = len(self.hypotheses)
        ends = [score > -math.inf and word == EOS for score, word, _ in candidates]
        last = [end or (place < beam and self.left_over[place]) for place, end in enumerate(ends)]
        places = sorted(range(len(candidates)), key=lambda place: (last[place], place))[:beam]
        is_stuck = all(score == -math.inf for score, _, _ in candidates)
        before, self.left_over = self.hypotheses, [last[place] for place in places]
        self.hypotheses = []
        for row, place in enumerate(places):
            score, word, parent = candidates[place]
            words, scores = before[row if is_stuck else parent]
            self.hypotheses.append(([*words, word], [*scores, -math.inf if ends[place] else score]))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, LENGTH - 1), st.integers(0, 2**31))
def test_the_best_that_do_not_end_go_on(beam, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    beams, expected, sentences = make_beams(beam), {index: Lists(beam) for index in range(SENTENCES)}, [0, 1, 2]
    for step in range(steps):
        shape = len(sentences), 2 * beam
        words = torch.randint(2, 5, shape, generator=generator)  # the end is frequent
        parents = torch.randint(0, beam, shape, generator=generator)
        scores = -torch.rand(shape, generator=generator).cumsum(1)
        scores.masked_fill_(torch.rand(shape, generator=generator) < 0.2, -math.inf)
        scores.masked_fill_(torch.rand(len(sentences), 1, generator=generator) < 0.1, -math.inf)
        candidates = Candidates.of(scores, words, parents, EOS)
        for index, *rows in zip(sentences, scores.tolist(), words.tolist(), parents.tolist(), strict=True):
            expected[index].go_on(list(zip(*rows, strict=True)))
        if step == 2:  # the first one leaves
            sentences = sentences[1:]
            remaining = beams.keep([1, 2])
            assert remaining.rows.tolist() == list(range(beam, 3 * beam))
            candidates = candidates.select(remaining.places)
        order, _ = beams.go_on(step, candidates)
        assert len(order) == len(sentences) * beam
    assert beams.sentences.numbers == sentences
    assert beams.sentences.limits == [3 + index for index in sentences]
    assert beams.sentences.sample_ids.tolist() == [50 + 10 * index for index in sentences]
    hypotheses = [hypothesis for index in sentences for hypothesis in expected[index].hypotheses]
    assert beams.tokens[:, : steps + 1].tolist() == [[EOS, *words] for words, _ in hypotheses]
    assert beams.scores[:, :steps].tolist() == [scores for _, scores in hypotheses]


def test_copies_of_the_first_hypothesis():
    beams = make_beams(2)
    beams.tokens[:, 1] = torch.arange(6)
    beams.scores[:, 0] = -torch.arange(6.0)
    beams.record_attention(1, torch.arange(12.0).view(6, 2))
    beams.copy_first(torch.tensor([False, True, False]))
    assert beams.attention[:, :, 2].tolist() == [[0, 1], [2, 3], [4, 5], [4, 5], [8, 9], [10, 11]]
    assert beams.tokens[:, 1].tolist() == [0, 1, 2, 2, 4, 5]
    assert beams.scores[:, 0].tolist() == [0, -1, -2, -2, -4, -5]


def test_attention_moves_with_its_hypothesis():
    beams = make_beams(2)
    beams.record_attention(0, torch.arange(12.0).view(6, 2))
    words, parents = torch.tensor([[5, 6, 7, 8]] * 3), torch.tensor([[1, 1, 0, 0]] * 3)
    beams.go_on(0, Candidates.of(torch.zeros(3, 4), words, parents, EOS))
    assert beams.attention[:, :, 1].tolist() == [[2, 3]] * 2 + [[6, 7]] * 2 + [[10, 11]] * 2


def test_words_of_a_prefix():
    beams = make_beams(1, torch.tensor([[7, 8], [9, PAD], [PAD, PAD]]))
    assert [beams.sentences.prefix_at(step).tolist() for step in (0, 1)] == [[7, 9, PAD], [8, PAD, PAD]]
    assert beams.sentences.prefix_at(2) is None and make_beams(1).sentences.prefix_at(0) is None
