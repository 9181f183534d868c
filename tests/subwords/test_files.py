"""The files of subword vocabularies, and others that are refused."""

import os

import pytest

from elseq.errors import UserError
from elseq.subwords.files import MOST_PIECES, check_ids, read_ids, read_merges, read_text


def test_numbers(tmp_path):
    path = tmp_path / "encoder.json"
    path.write_text('{"a": 0, "b": 7}')
    assert read_ids(path) == {"a": 0, "b": 7}


@pytest.mark.parametrize("content", ['{"a": -1}', '{"a": 1.0}', '{"a": true}', '{"a": "1"}', f'{{"a": {MOST_PIECES}}}'])
def test_numbers_that_are_none(tmp_path, content):
    path = tmp_path / "encoder.json"
    path.write_text(content)
    with pytest.raises(UserError, match="encoder.json does not give each piece a number"):
        read_ids(path)


def test_too_few_numbers(tmp_path):
    assert check_ids(tmp_path / "encoder.json", {}) == {}
    with pytest.raises(UserError, match="vocab.json does not give each piece a number"):
        check_ids(tmp_path / "vocab.json", {}, least=1)


@pytest.mark.parametrize("header", ["#version: 0.2\n", ""])
def test_merges(tmp_path, header):
    path = tmp_path / "merges.txt"
    path.write_text(f"{header}a b\n\n#version c\n")
    assert read_merges(path) == ["a b", "#version c"]  # in another line it is a pair like any other


def test_text_that_cannot_be_read(tmp_path):
    (tmp_path / "latin").write_bytes(b"\xe9")
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (("latin", "not valid UTF-8"), ("pipe", "is a pipe or a device"), ("none", "cannot be read")):
        with pytest.raises(UserError, match=f"{name} .*{reason}|{name} {reason}"):
            read_text(tmp_path / name)
