"""GPT-2's byte-level BPE against a brute-force one, and against the files of two vocabularies."""

import json

import pytest
from fairseq.data.encoders.gpt2_bpe_utils import Encoder, bytes_to_unicode
from hypothesis import given
from hypothesis import strategies as st

from elseq.errors import UserError
from elseq.subwords.gpt2 import FILES, read_gpt2
from elseq.subwords.tokens import END_OF_TEXT, SPECIAL_SYMBOLS

MERGES = ["t h", "Ġ th", "Ġth e", "i n", "Ġ a", "e r", "Ġ in"]
PIECES = [*bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in MERGES), END_OF_TEXT]
NUMBERS = {piece: number for number, piece in enumerate(PIECES)}


def write(folder, numbers=NUMBERS, merges=MERGES):
    (folder / "encoder.json").write_text(json.dumps(numbers))
    (folder / "vocab.bpe").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return folder


def read(folder, **options):
    return read_gpt2(*(folder / name for name in FILES), **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("gpt2"))


TEXTS = st.text(st.sampled_from("then ai\n\t'sé–😀ø1") | st.characters(exclude_categories=["Cs"]))


@given(text=TEXTS.filter(lambda text: not any(symbol in text for symbol in SPECIAL_SYMBOLS)))  # of these see below
def test_as_fairseqs_own(folder, text):
    own = Encoder(NUMBERS, [tuple(merge.split()) for merge in MERGES])
    tokens = read(folder)
    assert tokens.encode(text).split() == [str(number) for number in own.encode(text)]
    assert tokens.decode(tokens.encode(text)) == text


def test_special_symbols(folder):
    plain, masked = read(folder), read(folder, symbols=["<mask>"])
    assert plain.encode("a</s>in").split() == [str(NUMBERS["a"]), "</s>", str(NUMBERS["in"])]
    assert masked.encode("a <mask>").split() == [str(NUMBERS["a"]), "<mask>"]  # with the space before it
    assert "<mask>" not in plain.encode("a <mask>")
    of_language_model = read(folder, is_language_model=True)
    assert of_language_model.encode(f"a{END_OF_TEXT}") == f"{NUMBERS['a']} </s>"
    assert "</s>" not in plain.encode(f"a{END_OF_TEXT}")


@pytest.mark.parametrize(
    "numbers, merges, sentence",
    [
        (NUMBERS, [], "vocab.bpe has no pair of pieces to join"),
        (NUMBERS, ["t h e"], "vocab.bpe has the line 't h e', which is no pair of pieces"),
        (NUMBERS, ["e n"], "encoder.json has no number for 'en', a piece of vocab.bpe"),
        ({**NUMBERS, "a": "one"}, MERGES, "encoder.json does not give each piece a number"),
        ({piece: NUMBERS[piece] for piece in PIECES if piece != "q"}, MERGES, "encoder.json has no number for 'q'"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, numbers, merges, sentence):
    with pytest.raises(UserError, match=sentence):
        read(write(tmp_path, numbers, merges))
