"""Against fairseq's own collecting of finished hypotheses."""

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator as StockGenerator

from elseq.generation.hypotheses import FinishedHypotheses
from tests.tiny_models import make_dictionary, make_models

DICTIONARY = make_dictionary(5)
SENTENCES, BEAM, STEPS, SOURCE = 3, 2, 5, 4


@pytest.mark.parametrize("penalty", [None, 0.0, 1.0, 1.7])
@pytest.mark.parametrize("match_source_len", [False, True])
def test_they_are_those_of_fairseq(penalty, match_source_len):
    stock = make_models("transformer", DICTIONARY)["stock"]
    normal = {} if penalty is None else {"len_penalty": penalty}
    generator = StockGenerator(
        [stock], DICTIONARY, normalize_scores=penalty is not None, match_source_len=match_source_len, **normal
    )
    torch.manual_seed(1)
    rows = SENTENCES * BEAM
    tokens = torch.randint(4, len(DICTIONARY), (rows, STEPS + 2))
    scores = -torch.rand(rows, STEPS + 1).cumsum(1)
    attention = torch.rand(rows, SOURCE, STEPS + 2)
    lengths = torch.tensor([1, 3, 9])
    ours = FinishedHypotheses(SENTENCES, BEAM, DICTIONARY.eos(), penalty)
    theirs, done = [[] for _ in range(SENTENCES)], [False] * SENTENCES
    for step, ending in ((1, [0, 4]), (3, [1, 2, 3]), (4, [4, 5])):  # the third sentence has one too many
        ending = torch.tensor(ending)
        totals, sentence = -torch.rand(len(ending)) - step, ending // BEAM
        ours.add(
            sentence.tolist(),
            tokens[ending, : step + 1],
            scores[ending, :step],
            totals,
            attention[ending, :, 1 : step + 2],
            rejected=step > lengths[sentence] if match_source_len else None,
        )
        # It would leave out the finished sentences and renumber the others: all stay unfinished.
        generator.finalize_hypos(
            step, ending, totals.clone(), tokens, scores.clone(), theirs, done.copy(), BEAM, attention, lengths, 99
        )
    assert [ours.count(sentence) for sentence in range(SENTENCES)] == [BEAM] * SENTENCES
    for here, there in zip(ours.ranked(), theirs, strict=True):
        there = sorted(there, key=lambda hypothesis: -hypothesis["score"].item())
        for hypothesis, other in zip(here, there, strict=True):
            for name in ("tokens", "attention", "alignment"):
                assert torch.equal(hypothesis[name], other[name])
            for name in ("score", "positional_scores"):
                torch.testing.assert_close(hypothesis[name], other[name])


def test_none_are_no_hypotheses():
    assert FinishedHypotheses(2, 3, 2, 1.0).ranked() == [[], []]
