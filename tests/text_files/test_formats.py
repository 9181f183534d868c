import json
import math
from argparse import Namespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elseq.errors import UserError
from elseq.generator import TextGenerator
from elseq.text_files.formats import JSONL, Format, in_one_line
from tests.tiny_models import make_dictionary

TEXT_FORMAT, JSONL_FORMAT = Format(), Format(JSONL)
ALL = Format(JSONL, with_source=True, with_tokens=True)


@pytest.fixture(scope="module")
def generator():
    """Tokens to text as without subwords."""
    return speaker(make_dictionary(6).string)


def speaker(text):
    """A generator without a model, with a function from tokens to text."""
    speaker = TextGenerator.__new__(TextGenerator)
    speaker.task, speaker.text = Namespace(target_dictionary=make_dictionary(6)), text
    return speaker


def hypothesis(words, score, log_probs):
    """As a search returns it: with more than a line needs."""
    tokens = torch.tensor([*(4 + word for word in words), 2])
    found = {"tokens": tokens, "score": torch.tensor(score), "positional_scores": torch.tensor(log_probs)}
    return found | {"attention": torch.empty(0), "alignment": torch.empty(0)}


FOUND = [hypothesis([0, 3], -0.5, [-0.25, -0.75, -0.5]), hypothesis([], -2.0, [-2.0])]


def line(form, generator, found=FOUND, texts=("one", "zwei"), index=1):
    return form.line(generator, texts, index, list(map(form.kept, found)))


def test_text(generator):
    assert line(TEXT_FORMAT, generator) == "w0 w3"


@pytest.mark.parametrize("with_source", [False, True])
@pytest.mark.parametrize("with_tokens", [False, True])
def test_jsonl(generator, with_source, with_tokens):
    first, second = {"text": "w0 w3", "score": -0.5}, {"text": "", "score": -2.0}
    if with_tokens:
        first |= {"tokens": ["w0", "w3", "</s>"], "log_probs": [-0.25, -0.75, -0.5]}
        second |= {"tokens": ["</s>"], "log_probs": [-2.0]}
    expected = {"id": 1} | ({"source": "zwei"} if with_source else {}) | {"hypotheses": [first, second]}
    found = json.loads(line(Format(JSONL, with_source, with_tokens), generator))
    assert found == expected
    assert list(found) == list(expected)  # in this order
    assert [list(each) for each in found["hypotheses"]] == [list(first), list(second)]


def test_a_blank_line(generator):
    assert TEXT_FORMAT.keeps_blank_lines and not JSONL_FORMAT.keeps_blank_lines
    assert json.loads(line(ALL, None, [], ["", " "])) == {"id": 1, "source": " ", "hypotheses": []}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_json_has_no_such_number(generator, number):
    written = line(ALL, generator, [hypothesis([1], number, [number, -1.0])])
    [found] = json.loads(written, parse_constant=pytest.fail)["hypotheses"]
    assert found["score"] is None and found["log_probs"] == [None, -1.0]


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text(text):
    """A journal keeps a line of UTF-8 without a line end; text is not escaped to ASCII."""
    for form in (TEXT_FORMAT, JSONL_FORMAT):
        written = line(form, speaker(lambda tokens: text))
        assert not {"\n", "\r"} & set(written)
        written.encode("utf-8")
    assert json.loads(written)["hypotheses"][0]["text"] == text
    assert not any(letter.isprintable() and not letter.isascii() and letter not in written for letter in text)


def test_numbers_are_kept_exactly(generator):
    """As float32 they are short, and as the double that JSON means they are the same."""
    numbers = (-torch.rand(50)).tolist()
    written = line(ALL, generator, [hypothesis([1] * 49, number, numbers) for number in numbers])
    found = json.loads(written)["hypotheses"]
    assert [each["score"] for each in found] == numbers
    assert all(each["log_probs"] == numbers for each in found)


@pytest.mark.parametrize(
    "form, names",
    [
        (TEXT_FORMAT, {"tokens"}),
        (JSONL_FORMAT, {"tokens", "score", "positional_scores"}),
        (ALL, {"tokens", "score", "positional_scores"}),
    ],
    ids=["text", "jsonl", "all"],
)
def test_what_is_kept_of_a_hypothesis(form, names):
    """Nothing that would hold a batch's memory, such as the attention."""
    kept = form.kept(FOUND[0])
    assert set(kept) == names
    assert all(tensor.device.type == "cpu" for tensor in kept.values())


@pytest.mark.parametrize(
    "form, nbest, sentence",
    [
        (TEXT_FORMAT, 2, "^nbest 2 needs --format jsonl: text has one hypothesis for each line$"),
        (Format(with_source=True), 1, "^--with-source needs --format jsonl: text holds hypotheses only$"),
        (Format(with_tokens=True), 1, "^--with-tokens needs --format jsonl: text holds hypotheses only$"),
    ],
    ids=["nbest", "with_source", "with_tokens"],
)
def test_what_needs_jsonl(form, nbest, sentence):
    with pytest.raises(UserError, match=sentence):
        form.check(nbest)


def test_what_is_possible():
    TEXT_FORMAT.check(1)
    for form in (JSONL_FORMAT, ALL):
        form.check(1)
        form.check(4)


def test_what_decides_the_output():
    assert TEXT_FORMAT.deciding() == {}
    assert JSONL_FORMAT.deciding() == {"--format": "jsonl", "--with-source": False, "--with-tokens": False}
    assert ALL.deciding() == {"--format": "jsonl", "--with-source": True, "--with-tokens": True}


@pytest.mark.parametrize(
    "text, expected", [("a\nb\r\nc\rd", "a b c d"), ("\n", " "), ("a\u2028b\x85c", "a\u2028b\x85c"), ("", "")]
)
def test_line_ends_in_text(text, expected):
    assert in_one_line(text) == expected
