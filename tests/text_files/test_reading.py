import io
import sys
from pathlib import Path

import pytest

from elseq.errors import UserError
from elseq.text_files.formats import JSONL, TEXT, InputFormat
from elseq.text_files.reading import InputLines

PLAIN, JSON = InputFormat(), InputFormat(JSONL)


def read(tmp_path, content, form=PLAIN, reserved=()):
    (tmp_path / "input").write_bytes(content)
    return InputLines(tmp_path / "input", form, reserved)


@pytest.mark.parametrize(
    "content, lines",
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"a\r\n\r\nb\r\n", ["a", "", "b"]),
        (b"\n\n", ["", ""]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", ["a", "\ufeffb"]),
        ("a\fb\vc\x1cd\x85e\u2028f\u2029g\rh\n".encode(), ["a\fb\vc\x1cd\x85e\u2028f\u2029g\rh"]),
    ],
    ids=repr,
)
def test_lines(tmp_path, content, lines):
    found = read(tmp_path, content)
    assert list(found) == lines
    assert len(found) == len(lines)
    assert [found[index] for index in range(len(lines))] == lines
    assert [found.fields(index) for index in range(len(lines))] == [{}] * len(lines)


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\n")))
    lines = InputLines(None)
    assert list(lines) == ["a", "b"]
    assert lines.name(1) == "line 2 of the standard input"


def test_closed_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="^the standard input is closed: give it a text, or --input FILE$"):
        InputLines(None)


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "input is empty: give a file with one text per line$"),
        (b"a\nb\n\xff\n", "^line 3 of .*input is not valid UTF-8: convert the file with iconv$"),
        ("ü\nö\n".encode("latin-1"), "^line 1 of "),
    ],
    ids=repr,
)
def test_bad_content(tmp_path, content, sentence):
    with pytest.raises(UserError, match=sentence):
        read(tmp_path, content)


def test_what_is_no_file(tmp_path):
    with pytest.raises(
        UserError, match=r"^--input .*none cannot be read \(No such file or directory\): check the path$"
    ):
        InputLines(tmp_path / "none")
    with pytest.raises(UserError, match=r"^--input .* cannot be read \(Is a directory\)"):
        InputLines(tmp_path)


def test_json_lines(tmp_path):
    content = (
        '\ufeff{"text": "a\\nb", "id": 7}\r\n {"text": "", "x": [1.50]}\n{"n": null, "text": "\u2028\\ud83d\\ude00"}'
    )
    lines = read(tmp_path, content.encode(), JSON)
    assert list(lines) == ["a\nb", "", "\u2028\N{GRINNING FACE}"]
    assert list(map(lines.fields, range(3))) == [{"id": 7}, {"x": [1.5]}, {"n": None}]
    other = read(tmp_path, b'{"text": 3, "": "a"}\n', InputFormat(JSONL, ""))
    assert list(other) == ["a"] and other.fields(0) == {"text": 3}


@pytest.mark.parametrize(
    "name, form, expected",
    [
        ("a.jsonl", InputFormat(), (JSONL, "text")),
        ("a.jsonl", InputFormat(TEXT), (TEXT, "text")),
        ("a.jsonl", InputFormat(input_field="b"), (JSONL, "b")),
        ("a.json", InputFormat(), (TEXT, "text")),
        (".jsonl/a", InputFormat(), (TEXT, "text")),
        (None, InputFormat(), (TEXT, "text")),
        (None, InputFormat(JSONL, "b"), (JSONL, "b")),
    ],
    ids=str,
)
def test_which_format(name, form, expected):
    found = form.of(None if name is None else Path(name))
    assert (found.input_format, found.input_field) == expected
    options = {} if expected[0] == TEXT else {"--input-format": JSONL, "--input-field": repr(expected[1])}
    assert found.deciding() == options


@pytest.mark.parametrize(
    "form, sentence",
    [
        (InputFormat(input_field="b"), "^input_field needs --input-format jsonl: a line of text has no fields$"),
        (InputFormat(TEXT, "text"), "^input_field needs --input-format jsonl"),
        (InputFormat("json"), "^input_format json is unknown; choose one of text, jsonl$"),
        (InputFormat(source_lang_field="a"), "^source_lang_field needs --input-format jsonl: a line of text has no "),
        (InputFormat(JSONL, target_lang_field="text"), "^target_lang_field text is the field of the text: name anothe"),
        (InputFormat(JSONL, "b", "b"), "^source_lang_field b is the field of the text: name another$"),
    ],
    ids=str,
)
def test_impossible_formats(form, sentence):
    with pytest.raises(UserError, match=sentence):
        form.of(Path("a"))


def test_languages(tmp_path):
    content = b'{"text": "a", "from": "de", "to": "fr"}\n{"text": "b", "to": "en"}\n{"text": "c", "from": ""}\n'
    lines = read(tmp_path, content, InputFormat(JSONL, source_lang_field="from", target_lang_field="to"))
    assert lines.languages(0, (None, None)) == ("de", "fr")
    assert lines.languages(1, ("cs", "it")) == ("cs", "en")
    assert lines.form.deciding() == {
        "--input-format": JSONL,
        "--input-field": "'text'",
        "--source-lang-field": "'from'",
        "--target-lang-field": "'to'",
    }
    with pytest.raises(UserError, match="^line 2 of .* has no field 'from': give it the code of a language, or "):
        lines.languages(1, (None, "it"))
    with pytest.raises(UserError, match="^the field 'from' of line 3 of .* is no code of a language: give one$"):
        lines.languages(2, ("cs", "it"))
    assert lines.languages(1, ("", "it")) == ("", "en")  # no field says it, and the option is refused as such
    one = read(tmp_path, content, InputFormat(JSONL, target_lang_field="to"))
    assert one.languages(0, (None, "it")) == (None, "fr")
    assert one.languages(2, ("cs", "it")) == ("cs", "it")


GOOD = '{"text": "a"}'


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("", r"is no JSON \(Expecting value at column 1\): give a JSON object on each line, or --input-format text$"),
        ("der Text", r"is no JSON \(Expecting value at column 1\): "),
        ('{"text": "a"', r"is no JSON \(Expecting ',' delimiter at column 13\): "),
        ('{"text": "a', r"is no JSON \(Unterminated string starting at column 10\): "),
        ('{"text": "a\tb"}', r"is no JSON \(Invalid control character at column 12\): "),
        (GOOD + GOOD, r"is no JSON \(Extra data at column 14\): "),
        ("{'text': 'a'}", r"is no JSON \(Expecting property name enclosed in double quotes at column 2\): "),
        ('{"text": "a", "x": NaN}', r"is no JSON \(NaN is no number\): "),
        ('{"text": "a", "x": -Infinity}', r"is no JSON \(-Infinity is no number\): "),
        ('{"text": "a", "x": 1e400}', r"is no JSON \(1e400 is too large a number\): "),
        (f'{{"text": "a", "x": {"1" * 5000}}}', r"is no JSON \(a number has 5000 digits\): "),
        ("[" * 100_000, r"is no JSON \(it is nested too deeply\): "),
        ('["a"]', "is no JSON object: give one with the field 'text'$"),
        ('"text"', "is no JSON object: give one with the field 'text'$"),
        ("null", "is no JSON object: "),
        ("{}", r"has no field 'text' \(but none\): name the field of the text as --input-field$"),
        ('{"id": 3, "Text": "a"}', r"has no field 'text' \(but 'id', 'Text'\): name the field of"),
    ],
    ids=lambda it: it[:20],
)
def test_what_is_no_line_of_json(tmp_path, line, sentence):
    with pytest.raises(UserError, match=f"^line 2 of {tmp_path}/input {sentence}") as error:
        read(tmp_path, f"{GOOD}\n{line}\n{GOOD}\n".encode(), JSON)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "value, sentence",
    [
        ("null", "is no string: give the text as one$"),
        ("3", "is no string: "),
        ('["a"]', "is no string: "),
        ('{"text": "a"}', "is no string: "),
        ('"a\\ud800b"', r"holds half a character \(the lone surrogate \\ud800\): write it in full$"),
    ],
    ids=str,
)
def test_what_is_no_text(tmp_path, value, sentence):
    with pytest.raises(UserError, match=f"^the field 'text' of line 1 of {tmp_path}/input {sentence}"):
        read(tmp_path, f'{{"text": {value}}}\n'.encode(), JSON)


def test_fields_that_the_output_has(tmp_path):
    content = f'{GOOD}\n{{"text": "a", "source": "b"}}\n'.encode()
    read(tmp_path, content, JSON, ["hypotheses"])
    with pytest.raises(
        UserError, match="^line 2 of .*/input has a field 'source', as the output has: rename one of the"
    ):
        read(tmp_path, content, JSON, ["hypotheses", "source"])
