"""The same text has the same rows on both sides, whatever form the tokenizer has."""

import json

import pytest

from elseq.errors import UserError
from elseq.interop.hugging_face import vocabulary
from elseq.interop.hugging_face.vocabulary import END_OF_TEXT, SPECIAL_SYMBOLS
from tests import helpers
from tests.interop.hugging_face.making import (
    BART_NAMES,
    GPT2_NAMES,
    LETTERS,
    MERGES,
    PIECES,
    TEXTS,
    convert,
    gpt2_rows,
    load,
    make_bart,
    make_gpt2,
    save_tokenizer,
)

GPT2_BPE = helpers.DATA / "gpt2_bpe"


OF_HUGGING_FACE = ("tokenizer.json", "tokenizer_config.json", "fairseq_symbols.json")


def as_tokenizer_json(folder, transformers, kind):
    """As transformers 5 saves a tokenizer: everything in one file."""
    tokenizer = getattr(transformers, kind).from_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    tokenizer.save_pretrained(folder)
    assert (folder / "tokenizer.json").exists() and not (folder / "vocab.json").exists()


def rows_of(loaded, text):
    words = loaded.task.source_dictionary.encode_line(loaded.bpe.encode(text), add_if_not_exist=False)
    return words.tolist()[:-1]


@pytest.mark.parametrize("form", ["two files", "one file"])
def test_bart(tmp_path, form):
    transformers = pytest.importorskip("transformers")
    make_bart(tmp_path / "theirs")
    tokenizer = transformers.BartTokenizer.from_pretrained(tmp_path / "theirs")
    if form == "one file":
        as_tokenizer_json(tmp_path / "theirs", transformers, "BartTokenizer")
    convert(tmp_path / "theirs", tmp_path / "ours")
    loaded = load(tmp_path / "ours")
    for text in TEXTS:
        expected = tokenizer(text)["input_ids"]
        assert [0, *rows_of(loaded, text), 2] == expected
        assert loaded.bpe.decode(loaded.task.target_dictionary.string(expected[1:])) == text
    assert loaded.task.source_dictionary.index("<mask>") == BART_NAMES.index("<mask>")


@pytest.mark.parametrize("form", ["two files", "one file"])
def test_gpt2_with_an_added_token(tmp_path, form):
    transformers = pytest.importorskip("transformers")
    added = "<|long pause|>"
    theirs = make_gpt2(tmp_path / "theirs", [*GPT2_NAMES, added])
    save_tokenizer(tmp_path / "theirs", GPT2_NAMES)
    (tmp_path / "theirs" / "added_tokens.json").write_text(json.dumps({added: len(GPT2_NAMES)}))
    tokenizer = transformers.GPT2Tokenizer.from_pretrained(tmp_path / "theirs")
    if form == "one file":
        tokenizer.add_tokens([added])
        tokenizer.save_pretrained(tmp_path / "theirs")
        for name in ("vocab.json", "merges.txt", "added_tokens.json"):
            (tmp_path / "theirs" / name).unlink(missing_ok=True)
    convert(tmp_path / "theirs", tmp_path / "ours")
    loaded, rows = load(tmp_path / "ours"), gpt2_rows(theirs)
    for text in TEXTS:
        assert rows_of(loaded, text) == rows[tokenizer(text)["input_ids"]].tolist()
    said = loaded.task.target_dictionary.string(rows[[len(GPT2_NAMES)]])
    assert loaded.bpe.decode(said) == added


def test_more_or_fewer_rows_than_words(tmp_path):
    make_bart(tmp_path / "more", vocab_size=len(BART_NAMES) + 3)
    converted = convert(tmp_path / "more", tmp_path / "more_ours")
    assert "3 rows of the embedding are of no word in the vocabulary" in converted.notes
    assert converted.files["dict.txt"].endswith("<mask> 0\nmadeupword0001 0\nmadeupword0002 0\nmadeupword0003 0\n")
    make_bart(tmp_path / "fewer", vocab_size=len(BART_NAMES) - 1)  # bart-large-cnn is without <mask>
    converted = convert(tmp_path / "fewer", tmp_path / "fewer_ours")
    assert "1 words of the vocabulary have no row in the embedding" in converted.notes
    assert converted.files["dict.txt"].endswith("madeupword0000 0\n")
    for folder in ("more_ours", "fewer_ours"):
        assert load(tmp_path / folder).generate(TEXTS, max_len_b=3)


def test_fairseqs_own_files(tmp_path):
    make_bart(tmp_path / "theirs")
    first = convert(tmp_path / "theirs", tmp_path / "ours")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "theirs" / name).unlink()
    for name in OF_HUGGING_FACE:
        (tmp_path / "ours" / name).unlink()
    with pytest.raises(UserError, match="has no tokenizer .*: name its folder, or one with fairseq's dict.txt"):
        convert(tmp_path / "theirs", tmp_path / "again")
    assert convert(tmp_path / "theirs", tmp_path / "again", data=tmp_path / "ours").files == first.files


@pytest.mark.parametrize("rows", [1, 4])
def test_fairseqs_dictionary_lacks_the_mask(tmp_path, rows):
    """It is the row after those of the dictionary, if there is just one more."""
    make_bart(tmp_path / "theirs", vocab_size=len(BART_NAMES) - 1 + rows)
    convert(tmp_path / "theirs", tmp_path / "ours")
    dictionary = tmp_path / "ours" / "dict.txt"
    words = dictionary.read_text().split(" 0\n")[: len(BART_NAMES) - len(SPECIAL_SYMBOLS) - 1]
    dictionary.write_text("".join(f"{word} 0\n" for word in words))
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "theirs" / name).unlink()
    for name in OF_HUGGING_FACE:
        (tmp_path / "ours" / name).unlink()
    converted = convert(tmp_path / "theirs", tmp_path / "again", data=tmp_path / "ours")
    names = ["<mask>"] if rows == 1 else [f"madeupword{number:04d}" for number in range(1, 1 + rows)]
    assert converted.files["dict.txt"] == "".join(f"{word} 0\n" for word in [*words, *names])
    assert any("of no word in the vocabulary" in note for note in converted.notes) == (rows > 1)


@pytest.mark.parametrize(
    "names, sentence",
    [
        (GPT2_NAMES, "its <s> is missing, and config.json has bos_token_id: 0: name the folder of the model's own"),
        ([*SPECIAL_SYMBOLS[::-1], *BART_NAMES[4:]], "its <s> is number 3, and config.json has bos_token_id: 0"),
        (["<s>", "</s>", "<pad>", *BART_NAMES[3:]], "its <pad> is number 2, and config.json has pad_token_id: 1"),
    ],
)
def test_tokenizer_of_another_model(tmp_path, names, sentence):
    make_bart(tmp_path / "theirs")
    (tmp_path / "other").mkdir()
    save_tokenizer(tmp_path / "other", names)
    with pytest.raises(UserError, match=f"tokenizer in {tmp_path / 'other'} is of another model, since {sentence}"):
        convert(tmp_path / "theirs", tmp_path / "ours", data=tmp_path / "other")


@pytest.mark.skipif(not GPT2_BPE.exists(), reason="ELSEQ_DATA has no gpt2_bpe")
def test_fairseqs_numbers():
    """BART's vocab.json, put together from fairseq's files, gives these files again."""
    numbers = json.loads((GPT2_BPE / "encoder.json").read_text())
    words = [line.split(" ")[0] for line in (GPT2_BPE / "dict.txt").read_text(encoding="utf-8").splitlines()]
    found = vocabulary.read_vocabulary(GPT2_BPE, "BartTokenizer", by_dictionary=True)
    assert len(found.rows) == 50264
    assert vocabulary.gpt2_ids(found) == numbers
    names = found.names(50264)
    assert names[:6] == [*SPECIAL_SYMBOLS, ".", "Ġthe"]
    files = vocabulary.fairseq_files(found, list(range(50264)), True, ["dict.txt"])
    assert files["dict.txt"].split(" 0\n")[:-1] == words
    assert json.loads(files["encoder.json"]) == numbers and "vocab.bpe" in files
    of_gpt2 = vocabulary.read_vocabulary(GPT2_BPE, "GPT2Tokenizer", by_dictionary=False)
    assert of_gpt2.rows == numbers and of_gpt2.rows[END_OF_TEXT] == 50256 and len(of_gpt2.merges) == 50000


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("vocab.json", "{", "vocab.json is not JSON"),
        ("vocab.json", "[]", "vocab.json holds no JSON object"),
        ("vocab.json", '{"a": "b"}', "vocab.json does not give each piece a number"),
        ("vocab.json", '{"a": 1, "b": 1}', "vocab.json gives two pieces the same number"),
        (
            "merges.txt",
            "",
            "7 of 7 pieces of .*vocab.json, such as 'th', are made by no merge beside it: the merges were",
        ),
        ("merges.txt", "#version: 0.2\nt h\nĠ th\n", "5 of 7 pieces of .* are made by no merge"),
        ("merges.txt", "\n".join(MERGES[:-1]), "1 of 7 pieces of .*, such as 'Ġin', are made by no merge"),
        ("merges.txt", "\n".join([*MERGES, "a b c"]), "a merge beside .* is no pair of pieces"),
        (
            "merges.txt",
            "\n".join([*MERGES, "e n"]),
            "vocab.json lacks 'en', a piece of the merge 'e n' beside it: they",
        ),
        ("merges.txt", "\n".join([*MERGES, "Ġa nd"]), "vocab.json lacks 'nd', a piece of the merge 'Ġa nd' beside it"),
    ],
)
def test_damaged_files(tmp_path, name, content, sentence):
    save_tokenizer(tmp_path, BART_NAMES)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=sentence):
        vocabulary.read_vocabulary(tmp_path, "BartTokenizer", by_dictionary=True)


def test_two_tokenizers_in_a_folder(tmp_path):
    save_tokenizer(tmp_path, GPT2_NAMES)
    model = {"type": "BPE", "vocab": {name: row for row, name in enumerate(GPT2_NAMES)}, "merges": MERGES}
    tokenizer = {
        "model": model,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert (
        vocabulary.read_vocabulary(tmp_path, "GPT2Tokenizer", by_dictionary=False).rows == tokenizer["model"]["vocab"]
    )
    tokenizer["model"]["vocab"] |= {"Ġin": 0, GPT2_NAMES[0]: GPT2_NAMES.index("Ġin")}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="has two tokenizers: .* has the number .* remove the one that is another mod"):
        vocabulary.read_vocabulary(tmp_path, "GPT2Tokenizer", by_dictionary=False)


def test_gpt2_with_the_tokenizer_of_another_of_its_size(tmp_path):
    """Known by what ends a text, if nothing else."""
    make_gpt2(tmp_path / "theirs")
    (tmp_path / "other").mkdir()
    save_tokenizer(tmp_path / "other", [END_OF_TEXT, *PIECES])
    end = len(PIECES)
    sentence = f"is of another model, since number {end}, with which by config.json a text ends .*, is 'Ġin': name the"
    with pytest.raises(UserError, match=sentence):
        convert(tmp_path / "theirs", tmp_path / "ours", data=tmp_path / "other")


@pytest.mark.parametrize("name", ["Ċ", "Ġ#"])
def test_a_text_may_end_with_a_piece(tmp_path, name):
    """As people finetune a GPT-2 to stop at a line end, or at ###."""
    merges = [*MERGES, "Ġ #"]
    names = [*PIECES, "Ġ#", END_OF_TEXT]
    make_gpt2(tmp_path / "theirs", names, eos_token_id=names.index(name))
    save_tokenizer(tmp_path / "theirs", names, merges)
    convert(tmp_path / "theirs", tmp_path / "ours")


def test_a_few_pieces_without_a_merge(tmp_path):
    """Written into a vocabulary by hand, in a way that nobody else knows of."""
    pairs = [f"{first} {second}" for first in LETTERS[:20] for second in LETTERS[:20]]
    names = [*LETTERS, *(pair.replace(" ", "") for pair in pairs), "covid", "[PAD]", END_OF_TEXT]
    make_gpt2(tmp_path / "theirs", names)
    save_tokenizer(tmp_path / "theirs", names, pairs)
    converted = convert(tmp_path / "theirs", tmp_path / "ours")
    assert "no merge makes 'covid', so that no text has it in its tokens" in converted.notes
    save_tokenizer(tmp_path / "theirs", names, pairs[:-4])
    with pytest.raises(
        UserError, match="5 of 401 pieces of .*vocab.json, such as 'covid', are made by no merge beside"
    ):
        convert(tmp_path / "theirs", tmp_path / "again")


def test_a_dictionary_that_lacks_pieces(tmp_path):
    """What transformers is given can be loaded, and reads the same text."""
    transformers = pytest.importorskip("transformers")
    names = [name for name in BART_NAMES if name not in ("Ġthe", "er")]
    for name, text in vocabulary.hugging_face_files(names, MERGES, {}).items():
        (tmp_path / name).write_text(text)
    tokenizer = transformers.BartTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_a_tokenizer_that_is_none(tmp_path):
    content = {"model": {"type": "Unigram"}, "pre_tokenizer": {"type": "Metaspace"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="tokenizer.json is no tokenizer of Hugging Face's library .Missing vocab"):
        vocabulary.read_vocabulary(tmp_path, "BartTokenizer", by_dictionary=True)


def test_merges_need_no_header(tmp_path):
    save_tokenizer(tmp_path, BART_NAMES)
    (tmp_path / "merges.txt").write_text("\n".join(MERGES))
    assert vocabulary.read_vocabulary(tmp_path, "BartTokenizer", by_dictionary=True).merges == MERGES
