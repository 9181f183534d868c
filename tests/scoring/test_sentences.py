"""Where sentences end."""

import pytest

from elseq.scoring.sentences import split_sentences


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("", []),
        ("One.", ["One."]),
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("spaced out . and in lower case .", ["spaced out .", "and in lower case ."]),
        ('He said "well." She said "yes!" They left.', ['He said "well."', 'She said "yes!"', "They left."]),
        (
            "Mr. Bo met Dr. Jo in the U.S. capital. It cost $3.50.",
            ["Mr. Bo met Dr. Jo in the U.S. capital.", "It cost $3.50."],
        ),
        ("It is No. 1 there. They won.", ["It is No. 1 there.", "They won."]),
        ("J. K. Rowling wrote it.", ["J. K. Rowling wrote it."]),
        ("Wait... what? At 5.30 it rained.", ["Wait... what?", "At 5.30 it rained."]),
        ("First\u2028half. Second half.", ["First\u2028half.", "Second half."]),
    ],
)
def test_english(text, sentences):
    assert split_sentences(text) == sentences
