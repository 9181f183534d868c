"""Codes against the programs that they are of; fastBPE's own where its package is installed."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elseq.errors import UserError
from elseq.subwords.codes import Codes, kind_of_codes

apply_bpe = pytest.importorskip("subword_nmt.apply_bpe")

PAIRS = ["t h", "th e</w>", "i n</w>", "e r", "er </w>", "a a", "aa aa", "é t", "o f</w>"]
WORDS = ["the", "in", "of", "other", "aaaaa", "été", "@@", "a@@b", "👩", "中文", "x" * 30]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same codes as each program writes them."""
    folder = tmp_path_factory.mktemp("codes")
    (folder / "subword_nmt").write_text("\n".join(["#version: 0.2", *PAIRS, ""]))
    (folder / "fastbpe").write_text("".join(f"{pair} {90 - number}\n" for number, pair in enumerate(PAIRS)))
    (folder / "old").write_text("\n".join([*PAIRS, ""]))
    return folder


@given(st.lists(st.sampled_from(WORDS) | st.text("theinofaé 中@\t\u3000\u2028\xa0", max_size=12)).map(" ".join))
def test_they_cut_alike(files, text):
    """Of the text as fairseq-interactive reads it: without white space around it."""
    expected = apply_bpe.BPE(io.StringIO((files / "subword_nmt").read_text())).process_line(text.strip()).split()
    for kind in ("subword_nmt", "fastbpe"):
        codes = Codes(kind, files / kind)
        assert codes.encode(text).split() == expected
        if "@@" not in text and not re.search(r"[^\S ]", text):  # the dictionary parts pieces at other white space
            assert codes.decode(" ".join(expected)) == " ".join(text.split())


@given(st.lists(st.sampled_from(WORDS) | st.text("theinofaé 中@", max_size=12)).map(" ".join))
def test_as_fastbpe(files, text):
    fastbpe = pytest.importorskip("fastBPE").fastBPE(str(files / "fastbpe"))
    assert Codes("fastbpe", files / "fastbpe").encode(text).split() == fastbpe.apply([text])[0].split()


def test_the_first_version_of_the_format(files):
    expected = apply_bpe.BPE(io.StringIO((files / "old").read_text()))
    assert Codes("subword_nmt", files / "old").encode("the other in") == expected.process_line("the other in")


def test_which_program_made_a_file(files, tmp_path):
    assert kind_of_codes(files / "fastbpe") == "fastbpe"
    assert kind_of_codes(files / "subword_nmt") == kind_of_codes(files / "old") == "subword_nmt"
    (tmp_path / "text").write_text("this is no file of codes\n")
    assert kind_of_codes(tmp_path / "text") is kind_of_codes(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    "kind, content, sentence",
    [
        ("subword_nmt", "t h\na b c\n", "holds no codes of subword_nmt: line 2 is 'a b c' and not two pieces$"),
        ("subword_nmt", "#version: 7\nt h\n", "has the unknown version '7': give codes of subword-nmt"),
        ("fastbpe", "t h\n", "holds no codes of fastbpe: line 1 is 't h' and not two pieces and a number"),
        ("fastbpe", "", "holds no codes of fastbpe: line 1 is '' and not"),
        (
            "subword_nmt",
            "#version: 0.2\n",
            "holds no codes of subword_nmt: it ends after line 1, the version of the format",
        ),
        ("fastbpe", None, "cannot be read .No such file or directory.: check"),
        ("bpe", "t h\n", "^bpe 'bpe' is unknown; choose one of subword_nmt, fastbpe$"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, kind, content, sentence):
    if content is not None:
        (tmp_path / "codes").write_text(content)
    with pytest.raises(UserError, match=sentence):
        Codes(kind, tmp_path / "codes")


def test_digests(files, tmp_path):
    (tmp_path / "fewer").write_text("t h 3\n")
    digests = {Codes("fastbpe", path).digest() for path in (files / "fastbpe", tmp_path / "fewer")}
    assert len(digests) == 2
