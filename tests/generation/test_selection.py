"""Against the candidates found one by one."""

import math

import pytest
import torch

from elseq import native
from elseq.generation.beam_search import BeamSearch
from elseq.generation.beams import Beams, Sentences
from elseq.generation.logits_processors import MinimumLength, NoRepeatNgrams, OnlyNumbers, Step, Suppressed
from elseq.generation.next_tokens import NextTokens
from elseq.generation.selection import Selection
from tests.tiny_models import make_dictionary

DICTIONARY = make_dictionary(30)
PAD, EOS = DICTIONARY.pad(), DICTIONARY.eos()
SENTENCES, BEAM, STEP = 3, 4, 3
SUPPRESSED = [5, 9]


def make_beams():
    """Hypotheses of a few tokens, so that they repeat themselves."""
    limits = [9] * SENTENCES
    beams = Beams(EOS, 10, BEAM, PAD, Sentences(limits, torch.tensor(limits), torch.arange(SENTENCES)))
    beams.tokens[:, 1 : STEP + 1] = torch.randint(6, 8, (SENTENCES * BEAM, STEP))
    beams.scores[:, :STEP] = -torch.rand(SENTENCES * BEAM, STEP).cumsum(1)
    return beams


def may_follow(tokens, token, min_len):
    """tokens: of the hypothesis."""
    if token in (PAD, *SUPPRESSED) or (token == EOS and len(tokens) < min_len):
        return False
    return (tokens[-1], token) not in zip(tokens, tokens[1:], strict=False)


def expected_candidates(beams, log_probs, min_len):
    """Of each sentence the best: triples of score, token and hypothesis."""
    for sentence in range(SENTENCES):
        found = []
        for hypothesis in range(BEAM):
            row = sentence * BEAM + hypothesis
            tokens = beams.tokens[row, 1 : STEP + 1].tolist()
            for token, log_prob in enumerate(log_probs[row].tolist()):
                if may_follow(tokens, token, min_len):
                    found.append((beams.scores[row, STEP - 1].item() + log_prob, token, hypothesis))
        yield sorted(found, reverse=True)[: 2 * BEAM]


@pytest.mark.parametrize("min_len", [0, STEP + 1])
@pytest.mark.parametrize("from_all", [False, True], ids=["few tokens of each", "all tokens"])
def test_the_candidates_of_a_step(monkeypatch, min_len, from_all):
    if not from_all and native.library() is None:
        pytest.skip("needs the kernels")
    beams, logits = make_beams(), torch.randn(SENTENCES * BEAM, len(DICTIONARY)).mul_(3)
    log_probs = torch.log_softmax(logits.double(), dim=1)
    processors = [OnlyNumbers(PAD), Suppressed(SUPPRESSED), MinimumLength(EOS, min_len), NoRepeatNgrams(2, PAD)]
    next_tokens = NextTokens(log_probs.float()) if from_all else NextTokens(logits=logits.clone())
    monkeypatch.setattr(BeamSearch, "find" if from_all else "step", None)  # one of the two ways is taken
    candidates, is_nan = Selection(BeamSearch(DICTIONARY), processors, EOS).candidates(
        Step(STEP, beams, None), next_tokens
    )
    for sentence, expected in enumerate(expected_candidates(beams, log_probs, min_len)):
        scores, tokens, hypotheses = zip(*expected, strict=True)
        torch.testing.assert_close(candidates.scores[sentence], torch.tensor(scores))
        assert candidates.tokens[sentence].tolist() == list(tokens)
        assert candidates.hypotheses[sentence].tolist() == list(hypotheses)
        assert candidates.ending[sentence].tolist() == [token == EOS for token in tokens]
    assert not is_nan and not candidates.is_stuck.any()


@pytest.mark.parametrize("from_all", [False, True], ids=["few tokens of each", "all tokens"])
def test_what_is_no_number_is_told_and_not_chosen(from_all):
    if not from_all and native.library() is None:
        pytest.skip("needs the kernels")
    beams, logits = make_beams(), torch.randn(SENTENCES * BEAM, len(DICTIONARY))
    logits[BEAM] = math.nan  # the first hypothesis of the second sentence
    next_tokens = NextTokens(torch.log_softmax(logits, dim=1)) if from_all else NextTokens(logits=logits)
    candidates, is_nan = Selection(BeamSearch(DICTIONARY), [OnlyNumbers(PAD)], EOS).candidates(
        Step(STEP, beams, None), next_tokens
    )
    assert is_nan and 0 not in candidates.hypotheses[1] and not candidates.scores.isnan().any()
