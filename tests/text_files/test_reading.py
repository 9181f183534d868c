import io
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elseq.errors import UserError
from elseq.text_files.reading import InputLines, Sources, encode_lines


def read(tmp_path, content):
    (tmp_path / "input").write_bytes(content)
    return InputLines(str(tmp_path / "input"))


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


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\n")))
    lines = InputLines("-")
    assert list(lines) == ["a", "b"]
    assert lines.name(1) == "line 2 of the standard input"


def test_closed_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="^the standard input is closed: give it a text, or --input FILE$"):
        InputLines("-")


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
        InputLines(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"^--input .* cannot be read \(Is a directory\)"):
        InputLines(str(tmp_path))


@given(texts=st.lists(st.none() | st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5), max_size=20))
def test_tokens_are_kept(texts):
    sources = Sources()
    for tokens in texts:
        sources.append(None if tokens is None else torch.tensor(tokens))
    assert len(sources) == len(texts)
    assert list(sources.lengths) == [len(tokens or []) for tokens in texts]
    for index, tokens in enumerate(texts):
        assert sources[index].tolist() == (tokens or [])
        assert sources[index].dtype == torch.long
    assert sources.count(7) == sum((tokens or []).count(7) for tokens in texts)


def test_digest_of_tokens():
    def digest(*texts):
        sources = Sources()
        for tokens in texts:
            sources.append(torch.tensor(tokens))
        return sources.digest()

    assert digest([1, 2], [3]) == digest([1, 2], [3])
    assert len({digest([1, 2], [3]), digest([1], [2, 3]), digest([1, 2, 3]), digest([1, 2], [4])}) == 4


def test_encoding(tmp_path):
    lines = read(tmp_path, b"a b\n \t\nc d e\n")
    sources = encode_lines(lines, lambda text, name: (torch.arange(len(text.split())), name.startswith("line 3 of")))
    assert list(sources.lengths) == [2, 0, 3]
    assert list(sources.truncated) == [2]
