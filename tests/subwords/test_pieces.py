"""sentencepiece models against the library called plainly."""

import io
import json

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from elseq.errors import UserError
from elseq.subwords.finding import find_subwords
from elseq.subwords.pieces import PiecesWithIds, Sentencepiece


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


# --- beside vocab.json

SIDES = ("source", "target")


@pytest.fixture
def numbered(tmp_path):
    """A pair of models, as Marian's, of which the target's alone has some pieces."""
    train(tmp_path / "source.spm")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["der Fluss in der Stadt", "ein Schloss"] * 50),
        model_prefix=str(tmp_path / "target"),
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "target.model").rename(tmp_path / "target.spm")
    models = [sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / f"{side}.spm")) for side in SIDES]
    pieces = [model.id_to_piece(number) for model in models for number in range(model.get_piece_size())]
    names = list(dict.fromkeys(["</s>", "<unk>", ">>fr<<", *pieces, "<pad>"]))
    (tmp_path / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    symbols = {symbol: symbol for symbol in ("</s>", "<unk>", "<pad>", "<hl>")}
    (tmp_path / "fairseq_symbols.json").write_text(json.dumps(symbols))
    return tmp_path, *models


def test_symbols_are_found_before_pieces(numbered):
    folder, source, _ = numbered
    subwords = find_subwords([folder], (), False)
    parts = [source.encode(text, out_type=str) for text in ("the ", " river")]
    assert subwords.encode("the </s> river<pad>").split() == [*parts[0], "</s>", *parts[1], "<pad>"]
    parts = [source.encode(text, out_type=str) for text in ("the <", ">")]
    assert subwords.encode("the <</s>>").split() == [*parts[0], "</s>", *parts[1]]


def test_a_language_at_the_start_of_a_text(numbered):
    folder, source, _ = numbered
    subwords = PiecesWithIds(folder)
    pieces = source.encode(" the river", out_type=str)
    assert subwords.encode(">>fr<< the river").split() == [">>fr<<", *pieces]
    assert subwords.encode("the >>fr<<").split() == source.encode("the >>fr<<", out_type=str)


def test_the_target_decodes(numbered):
    folder, _, target = numbered
    subwords = PiecesWithIds(folder)
    text = "ein Fluss in der Stadt"
    pieces = target.encode(text, out_type=str)
    assert subwords.decode(" ".join(["<pad>", *pieces, "madeupword0001", "</s>"])) == text


def test_the_digest_is_of_all_files(numbered):
    folder, _, _ = numbered
    digests = {PiecesWithIds(folder).digest()}
    (folder / "fairseq_symbols.json").write_text("{}")
    digests.add(PiecesWithIds(folder).digest())
    source, target = ((folder / f"{side}.spm").read_bytes() for side in SIDES)
    for side, content in (("target", source), ("source", target)):
        (folder / f"{side}.spm").write_bytes(content)
        digests.add(PiecesWithIds(folder).digest())
    assert len(digests) == 4


@pytest.mark.parametrize("name", ["target.spm", "vocab.json"])
def test_files_that_are_missing(numbered, name):
    folder, _, _ = numbered
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        PiecesWithIds(folder)


TARGET_TEXT = "ein Fluss in der Stadt"


@pytest.mark.parametrize("has_own", [False, True])
def test_targets(numbered, has_own):
    """The target's model encodes them, and target_vocab.json gives their pieces other numbers."""
    folder, source, target = numbered
    names = [target.id_to_piece(number) for number in range(target.get_piece_size())]
    if has_own:
        (folder / "target_vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    subwords = PiecesWithIds(folder)
    targets = subwords.of_targets
    assert subwords.encode(TARGET_TEXT).split() == source.encode(TARGET_TEXT, out_type=str)
    assert targets.encode(f">>fr<<{TARGET_TEXT}").split() == [">>fr<<", *target.encode(TARGET_TEXT, out_type=str)]
    assert targets.of_targets is targets
    assert targets.decode(targets.encode(TARGET_TEXT)) == subwords.decode(targets.encode(TARGET_TEXT)) == TARGET_TEXT
    assert (targets.ids == subwords.ids) is not has_own
    assert [targets.token(number) for number in range(3, len(names))] == names[3:] or not has_own
    files = {"source.spm", "target.spm", "vocab.json", *(["target_vocab.json"] if has_own else [])}
    assert {path.name for path in subwords.files} == files


def test_the_digest_is_of_the_vocabulary_of_targets(numbered):
    folder, _, target = numbered
    digests = {PiecesWithIds(folder).digest()}
    for first in (0, 1):
        pieces = {target.id_to_piece(number): first + number for number in range(target.get_piece_size())}
        (folder / "target_vocab.json").write_text(json.dumps(pieces))
        digests.add(PiecesWithIds(folder).digest())
    assert len(digests) == 3


def test_one_model_for_both_sides(path):
    subwords = Sentencepiece(path)
    assert subwords.of_targets is subwords
