"""Which of the files beside a model are taken; what they say is compared with the libraries."""

import io

import pytest
import sentencepiece
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from elseq.errors import UserError
from elseq.options import BPE
from elseq.subwords.codes import kind_of_codes
from elseq.subwords.finding import find_codes, find_subwords, read_subwords
from tests.subwords import test_gpt2

TEXT = "the inner thing"


def write_tokenizer(folder):
    tokenizer = Tokenizer(WordLevel({"<unk>": 0, TEXT: 1}, unk_token="<unk>"))
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(tokenizer.encode(TEXT).ids[0])


def write_sentencepiece(folder, name="spm.model"):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 20), model_writer=model, vocab_size=14, minloglevel=2
    )
    (folder / name).write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return " ".join(processor.encode(TEXT, out_type=str))


def write_gpt2(folder):
    return test_gpt2.read(test_gpt2.write(folder)).encode(TEXT)


@pytest.mark.parametrize("first, second", [(1, 2), (0, 2)])
def test_the_order_in_a_folder(tmp_path, first, second):
    kinds = [write_tokenizer, write_gpt2, write_sentencepiece]
    assert find_subwords([tmp_path], [], False) is None
    expected = kinds[second](tmp_path)
    assert find_subwords([tmp_path], [], False).encode(TEXT) == expected
    expected = kinds[first](tmp_path)
    assert find_subwords([tmp_path], [], False).encode(TEXT) == expected


def test_a_tokenizer_with_encoder_json(tmp_path):
    write_gpt2(tmp_path)
    write_tokenizer(tmp_path)
    assert find_subwords([tmp_path], [], False).path == tmp_path / "tokenizer.json"


def test_the_first_folder_that_has_files(tmp_path):
    folders = [tmp_path / name for name in ("empty", "one", "other")]
    for folder in folders:
        folder.mkdir()
    expected = write_sentencepiece(folders[1])
    write_tokenizer(folders[2])
    assert find_subwords(folders, [], False).encode(TEXT) == expected


def test_two_models(tmp_path):
    write_sentencepiece(tmp_path)
    write_sentencepiece(tmp_path, "other.model")
    with pytest.raises(UserError, match="holds several sentencepiece models; leave one there"):
        find_subwords([tmp_path], [], False)


@pytest.mark.parametrize("there, missing", [("encoder.json", "vocab.bpe"), ("vocab.bpe", "encoder.json")])
def test_half_of_gpt2(tmp_path, there, missing):
    write_gpt2(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=f"has {there} but no {missing}"):
        find_subwords([tmp_path], [], False)


def test_words_of_another_tokenizer(tmp_path):
    write_tokenizer(tmp_path)
    assert find_subwords([tmp_path], ["1", "word"], False) is not None
    with pytest.raises(UserError, match="none of its tokens is the word 7 of the dictionary"):
        find_subwords([tmp_path], ["1", "7"], False)


@pytest.mark.parametrize("name", ["codes", "bpecodes", "bpe.codes", "code", "codes.bpe"])
@pytest.mark.parametrize("line, kind", [("t h", "subword_nmt"), ("t h</w> 7", "fastbpe")])
def test_codes(tmp_path, name, line, kind):
    path = tmp_path / "data" / name
    path.parent.mkdir()
    assert find_codes([tmp_path, path.parent]) is None
    path.write_text("no codes, but a text\n")
    assert find_codes([tmp_path, path.parent]) is None
    path.write_text(f"{line}\n")
    assert find_codes([tmp_path, path.parent]) == (kind, path) == (kind_of_codes(path), path)


@pytest.mark.parametrize(
    "kind, write, names",
    [
        ("sentencepiece", write_sentencepiece, ["spm.model"]),
        ("gpt2", write_gpt2, ["encoder.json", "vocab.bpe"]),
        ("hugging_face", write_tokenizer, ["tokenizer.json"]),
    ],
)
def test_files_that_are_named(tmp_path, kind, write, names):
    expected = write(tmp_path)
    assert len(BPE[kind]) == len(names)
    assert read_subwords(kind, [tmp_path / name for name in names], [], False).encode(TEXT) == expected


def test_a_tokenizer_of_another_model(tmp_path):
    write_tokenizer(tmp_path)
    with pytest.raises(UserError, match="tokenizer.json is not the model's tokenizer, or encoder.json is missing"):
        read_subwords("hugging_face", [tmp_path / "tokenizer.json"], ["7"], False)
