import json
import math
from argparse import Namespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elseq.errors import UserError
from elseq.generator import TextGenerator
from elseq.text_files.formats import JSONL, Format, InputFormat, in_one_line
from elseq.text_files.reading import InputLines
from tests.tiny_models import make_dictionary

TEXT_FORMAT, JSONL_FORMAT = Format(), Format(JSONL)
ALL = Format(JSONL, with_source=True, with_tokens=True)
PLAIN, JSON = InputFormat(), InputFormat(JSONL)


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


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """The output for a line of a file."""
    path = tmp_path_factory.mktemp("input") / "input"

    def write(form, generator, found=FOUND, lines=("one", "zwei"), index=1, of=PLAIN):
        path.write_text("".join(f"{each}\n" for each in lines), encoding="utf-8")
        read = [{name: each[name] for name in form.read} for each in found]
        return form.line(generator, InputLines(path, of), index, read)

    return write


def test_text(write, generator):
    assert write(TEXT_FORMAT, generator) == "w0 w3"


@pytest.mark.parametrize("with_source", [False, True])
@pytest.mark.parametrize("with_tokens", [False, True])
def test_jsonl(write, generator, with_source, with_tokens):
    first, second = {"text": "w0 w3", "score": -0.5}, {"text": "", "score": -2.0}
    if with_tokens:
        first |= {"tokens": ["w0", "w3", "</s>"], "log_probs": [-0.25, -0.75, -0.5]}
        second |= {"tokens": ["</s>"], "log_probs": [-2.0]}
    expected = {"id": 1} | ({"source": "zwei"} if with_source else {}) | {"hypotheses": [first, second]}
    found = json.loads(write(Format(JSONL, with_source, with_tokens), generator))
    assert found == expected
    assert list(found) == list(expected)  # in this order
    assert [list(each) for each in found["hypotheses"]] == [list(first), list(second)]


def test_a_blank_line(write, generator):
    assert TEXT_FORMAT.keeps_blank_lines and not JSONL_FORMAT.keeps_blank_lines
    assert json.loads(write(ALL, None, [], ["", " "])) == {"id": 1, "source": " ", "hypotheses": []}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_json_has_no_such_number(write, generator, number):
    written = write(ALL, generator, [hypothesis([1], number, [number, -1.0])])
    [found] = json.loads(written, parse_constant=pytest.fail)["hypotheses"]
    assert found["score"] is None and found["log_probs"] == [None, -1.0]


@pytest.mark.parametrize(
    "fields, form, expected",
    [
        ({"text": "zwei"}, JSONL_FORMAT, {"id": 1}),
        ({"text": "zwei", "lang": "de", "tags": [1, 0.1, None]}, ALL, {"id": 1, "lang": "de", "tags": [1, 0.1, None]}),
        ({"id": "a-7", "text": "zwei", "id2": 3}, JSONL_FORMAT, {"id": "a-7", "id2": 3}),  # its own
        ({"source": "web", "text": "zwei"}, JSONL_FORMAT, {"id": 1, "source": "web"}),
    ],
    ids=str,
)
def test_other_fields_of_the_input(write, generator, fields, form, expected):
    lines = ['{"text": "one"}', json.dumps(fields)]
    assert write(TEXT_FORMAT, generator, lines=lines, of=JSON) == "w0 w3"
    found = json.loads(write(form, generator, lines=lines, of=JSON))
    own = {name: found.pop(name) for name in form.own_fields}
    assert found == expected and list(found) == list(expected)
    assert len(own["hypotheses"]) == 2 and own.get("source", "zwei") == "zwei"


def test_the_text_may_have_the_name_of_a_field_of_the_output(write, generator):
    for name in ("id", "source", "hypotheses"):
        lines = [json.dumps({name: text}) for text in ("one", "zwei")]
        found = json.loads(write(ALL, generator, lines=lines, of=InputFormat(JSONL, name)))
        assert (found["id"], found["source"], len(found["hypotheses"])) == (1, "zwei", 2)


ANY_TEXT = st.text(st.characters())  # half a character, too, which UTF-8 cannot hold
SIMPLE = st.none() | st.booleans() | st.integers() | ANY_TEXT | st.floats(allow_nan=False, allow_infinity=False)


@given(st.recursive(SIMPLE, lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner), max_leaves=10))
def test_any_field_comes_back(write, generator, value):
    line = json.dumps({"text": "zwei", "value": value})
    written = write(JSONL_FORMAT, generator, lines=[line], index=0, of=JSON)
    assert json.loads(written.encode("utf-8"))["value"] == json.loads(line)["value"]
    assert not {"\n", "\r"} & set(written)


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text(write, text):
    """A journal keeps a line of UTF-8 without a line end; text is not escaped to ASCII."""
    for form in (TEXT_FORMAT, JSONL_FORMAT):
        written = write(form, speaker(lambda tokens: text))
        assert not {"\n", "\r"} & set(written)
        written.encode("utf-8")
    assert json.loads(written)["hypotheses"][0]["text"] == text
    assert not any(letter.isprintable() and not letter.isascii() and letter not in written for letter in text)


def test_numbers_are_kept_exactly(write, generator):
    """As float32 they are short, and as the double that JSON means they are the same."""
    numbers = (-torch.rand(50)).tolist()
    written = write(ALL, generator, [hypothesis([1] * 49, number, numbers) for number in numbers])
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
def test_what_is_read_of_a_hypothesis(form, names):
    """Nothing that would hold a batch's memory, such as the attention."""
    assert set(form.read) == names


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
