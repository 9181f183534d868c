"""Against the alignment as lists have it, word by word; the search with it is compared to fairseq's in test_search."""

import itertools

import pytest
import torch

from elseq.generation.alignment import align
from tests.tiny_models import make_dictionary

DICTIONARY = make_dictionary(20)
BOS, PAD, EOS = DICTIONARY.bos(), DICTIONARY.pad(), DICTIONARY.eos()
SOURCES = [[BOS, 5, 6, 7, EOS], [PAD, PAD, 8, 9, EOS]]
HYPOTHESES = [[[10, 11, EOS], [EOS]], [[12, 13, 14, 15, EOS]]]


class Aligning:
    """A model that is trained to align: its attention to a word depends on the word and on its place."""

    full_context_alignment = True

    def __call__(self, source, lengths, previous):
        assert lengths.tolist() == [5, 5, 3]
        places = torch.arange(previous.size(1)).unsqueeze(1)
        weights = (source.unsqueeze(1) * 7 + previous.unsqueeze(2) * 5 + places) % 11
        return None, {"attn": [weights + torch.arange(source.size(1)) / 100]}  # no two of a word the same


def weights_of(sentence, words):
    """[S, T], no two of a word the same."""
    shuffled = torch.randperm(len(SOURCES[sentence]) * len(words)).float() + 1
    return (shuffled / shuffled.sum()).view(-1, len(words))


@pytest.fixture
def hypotheses():
    torch.manual_seed(1)
    return [
        [{"tokens": torch.tensor(words), "attention": weights_of(sentence, words)} for words in found]
        for sentence, found in enumerate(HYPOTHESES)
    ]


def set_alignment(hypotheses, models, kind, left=False):
    net_input = {"src_tokens": torch.tensor(SOURCES), "src_lengths": torch.tensor([5, 3])}
    align(hypotheses, net_input, models, kind, DICTIONARY, left)
    for sentence, found in enumerate(hypotheses):
        yield from ((SOURCES[sentence], hypothesis) for hypothesis in found)


def hardest(source, words, attention):
    """The most attended word of the source for each word of the hypothesis, both numbered without other symbols."""
    positions = [position for position, word in enumerate(source) if word not in (BOS, PAD, EOS)]
    return [
        (max(range(len(positions)), key=lambda number: attention[positions[number]][place]), place)
        for place, word in enumerate(words)
        if word != EOS
    ]


def test_the_most_attended_word(hypotheses):
    for source, hypothesis in set_alignment(hypotheses, [object()], "hard"):
        expected = hardest(source, hypothesis["tokens"].tolist(), hypothesis["attention"].tolist())
        assert hypothesis["alignment"] == expected


def test_all_weights(hypotheses):
    """As text, for each word of the hypothesis and the end."""
    for source, hypothesis in set_alignment(hypotheses, [object()], "soft"):
        kept = [row for row, word in zip(hypothesis["attention"].tolist(), source, strict=True) if word > PAD]
        assert hypothesis["alignment"] == [[f"{weight:.6f}" for weight in column] for column in zip(*kept, strict=True)]


@pytest.mark.parametrize("left", [False, True])
def test_a_model_that_is_trained_to_align_reads_the_whole_hypothesis(hypotheses, left):
    longest = max(map(len, itertools.chain(*HYPOTHESES)))
    for source, hypothesis in set_alignment(hypotheses, [Aligning(), Aligning()], "hard", left):
        words = hypothesis["tokens"].tolist()
        first = longest - len(words) if left else 0
        previous = [EOS, *words[:-1]]
        attention = [
            [(word * 7 + before * 5 + first + place) % 11 + position / 100 for place, before in enumerate(previous)]
            for position, word in enumerate(source)
        ]
        assert hypothesis["alignment"] == hardest(source, words, attention)
