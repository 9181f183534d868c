"""Texts that continue others, by vocabularies that strip white space, add it, or join pieces over it."""

import pytest

from elseq.subwords.base import Subwords


class Marked(Subwords):
    """Letters. As in sentencepiece, ▁ is white space; `encode` puts it before a text and `decode` strips it."""

    def encode(self, text):
        return " ".join("▁" + text.replace(" ", "▁")) if text else ""

    def decode(self, words):
        return words.replace(" ", "").replace("▁", " ").removeprefix(" ")


class Joined(Marked):
    """One piece for two equal letters, also where they are of two texts."""

    def encode(self, text):
        return super().encode(text).replace("a a", "aa").replace(". .", "..")


class Lossy(Marked):
    """Nothing but lower case."""

    def encode(self, text):
        return super().encode(text.lower())


def test_targets_have_the_same_vocabulary():
    subwords = Marked()
    assert subwords.of_targets is subwords


def test_white_space_before_a_continuation_is_kept():
    assert Marked().decode("▁ b c") == "bc"
    assert Marked().decode_continuation("▁ b c") == " bc"
    assert Marked().decode_continuation("b c") == "bc"


@pytest.mark.parametrize("text", ["bc", " bc", "b c", "ab", "a", ".b", " ", ""])
@pytest.mark.parametrize("subwords", [Marked(), Joined()])
def test_there_and_back(subwords, text):
    words = subwords.encode_continuation(text)
    assert subwords.decode_continuation(words) == text


def test_where_no_words_give_the_text_again():
    assert Lossy().encode_continuation("Bc") == Lossy().encode("Bc") == "▁ b c"


@pytest.mark.parametrize("call", [lambda each: each.encode("a"), lambda each: each.decode("a"), Subwords.digest])
def test_what_a_vocabulary_says_itself(call):
    with pytest.raises(NotImplementedError):
        call(Subwords())
