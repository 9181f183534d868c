"""sentencepiece models against the library called plainly."""

import io

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from elseq.errors import UserError
from elseq.subwords.pieces import Sentencepiece


def train(path, **options):
    model = io.BytesIO()
    lines = ["the river in the city", "a king of France was there", "naive cafe"] * 50
    fixed = {"vocab_size": 330, "model_type": "bpe", "byte_fallback": True, "hard_vocab_limit": False}
    symbols = {"user_defined_symbols": ["<hl>"], "control_symbols": ["<ctl>"], "minloglevel": 2}
    trainer = sentencepiece.SentencePieceTrainer
    trainer.train(sentence_iterator=iter(lines), model_writer=model, **fixed, **symbols, **options)
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(
    scope="module",
    params=[{}, {"add_dummy_prefix": False}, {"remove_extra_whitespaces": False}],
    ids=lambda it: str(it),
)
def path(request, tmp_path_factory):
    return train(tmp_path_factory.mktemp("pieces") / "a.model", **request.param)


PARTS = st.sampled_from(["<hl>", " ", "👩‍👩‍👧", "é"]) | st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(PARTS).map("".join))
def test_as_sentencepiece_has_it(path, text):
    subwords, processor = Sentencepiece(path), sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = processor.encode(text, out_type=str)
    assert subwords.encode(text).split() == [piece for piece in pieces if not piece.isspace()]
    assert subwords.decode(" ".join(pieces)) == processor.decode(pieces)


@given(st.text("river iny", max_size=12), st.integers(0, 12))
def test_continuations(path, text, place):
    """Cut anywhere between two pieces, a text has the same rest in words again."""
    subwords = Sentencepiece(path)
    rest = subwords.decode_continuation(" ".join(subwords.pieces(text)[place:]))
    assert subwords.decode_continuation(subwords.encode_continuation(rest)) == rest


def test_what_is_no_piece_says_nothing(path):
    subwords = Sentencepiece(path)
    pieces = subwords.encode("the river")
    assert subwords.decode(f"madeupword0008 <unk> <ctl> <s> {pieces} <<unk>>") == "the river"
    assert subwords.decode("") == ""


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="is missing; give a sentencepiece model"):
        Sentencepiece(tmp_path / "a.model")
    (tmp_path / "a.model").write_text("nothing")
    with pytest.raises(UserError, match="a.model is no sentencepiece model: ") as error:
        Sentencepiece(tmp_path / "a.model")
    assert "\n" not in str(error.value)
