"""Files of as many examples, and their sentences."""

from pathlib import Path

import pytest

from elseq.errors import UserError
from elseq.scoring.inputs import check_equal_lengths, into_sentences


def test_equal_lengths():
    check_equal_lengths({Path("a"): ["x", "y"], Path("b"): ("z", "")})
    check_equal_lengths({Path("a"): []})


def test_unequal_lengths():
    files = {Path("references"): ["x"] * 1200, Path("equal"): ["x"] * 1200, Path("other"): ["x"] * 1199}
    with pytest.raises(UserError, match="^other has 1,199 examples and references has 1,200: each line of one belongs"):
        check_equal_lengths(files)


def test_sentences_by_a_mark():
    lines = ["It rained. <q> Nobody knew .<q>", "one. two.", ""]
    assert into_sentences(lines, "<q>") == [["It rained.", "Nobody knew .", ""], ["one. two."], [""]]


def test_sentences_by_punctuation():
    lines = ["It rained in the U.S. all day. Nobody knew! Why?", "", "No end"]
    assert into_sentences(lines, None) == [
        ["It rained in the U.S. all day.", "Nobody knew!", "Why?"],
        [],
        ["No end"],
    ]
