"""What of two runs differs, in words, and fingerprints that are none."""

import hashlib
import json

import pytest

from elseq.text_files.fingerprint import differences, digest_file, read_fingerprint

RUN = {"input": "1", "model": "2", "tokens": "3", "--beam": 5, "--truncate": False, "--apply-top-k": None}


@pytest.mark.parametrize(
    "former, words",
    [
        ({"input": "9", "tokens": "9"}, "the input was another"),
        ({"--beam": 4}, "--beam was 4 and not 5"),
        ({"--truncate": True}, "--truncate was given and not left out"),
        ({"--apply-top-k": 8}, "--apply-top-k was 8 and not left out"),
        ({"model": "9", "--beam": 4}, "the model was another, --beam was 4 and not 5"),
        ({"tokens": "9"}, "the subword vocabulary was another"),
    ],
)
def test_differences(former, words):
    assert differences(RUN | former, RUN) == words


def test_it_comes_back():
    assert read_fingerprint(json.dumps(RUN).encode()) == RUN


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff", b'{"a": []}', b'{"a": "\\u001b[2J"}', b'{"\\n": 1}', b"[" * 100_000]
)
def test_what_is_none(content):
    assert read_fingerprint(content) is None


def test_digest_of_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert digest_file(tmp_path / "file") == hashlib.sha256(b"content").hexdigest()
