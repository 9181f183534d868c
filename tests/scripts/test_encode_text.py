"""Encoding against sentencepiece and fairseq's GPT-2 BPE called plainly."""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import sentencepiece
from fairseq.data import encoders
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode
from hypothesis import given, settings
from hypothesis import strategies as st

from elseq.errors import UserError
from tests import helpers
from tests.interop.hugging_face.making import GPT2_NAMES, convert, make_gpt2

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))  # scripts import their neighbours

import encode_text  # noqa: E402

ODD_LINES = [
    "",
    " ",
    "  two  spaces   three\tand a tab ",
    "It's what they'd've said: we'll see 's 'S ''s",
    "price: $3.50 (½ of €7) — “naïve” café\u0301",
    "emoji 👩‍👩‍👧 and 中文 and עברית and ไทย",
    "no-break\u00a0space, ideographic\u3000space, line\u2028separator, next\x85line, form\x0cfeed, nul\x00, cr\rcr",
    "zero\u200bwidth \ufeff bom \ud7ff \U0010ffff",
    "a" * 300,
]
SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")
WORDS = ["the", "river", "a", "city", "king", "of", "in", "was", "what", "year", "who", "and", "France", "war", "did"]


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split, size in (("train", 700), ("valid", 40), ("test", 30)):
        for side, step in (("source", 7), ("target", 3)):
            lines = [" ".join(WORDS[(i * step + j * j) % len(WORDS)] for j in range(i % 13)) for i in range(size)]
            (folder / f"{split}.{side}").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def bpe_folder(tmp_path_factory):
    """A BPE in the files of GPT-2, with few merges."""
    folder = tmp_path_factory.mktemp("bpe")
    merges = ["t h", "Ġ th", "Ġth e", "i n", "Ġ a", "e r", "Ã ©", "' s", "a a", "aa aa", "Ġ Ġ"]
    symbols = [*bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in merges)]
    (folder / "encoder.json").write_text(json.dumps({symbol: number for number, symbol in enumerate(symbols)}))
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return folder


def fairseq_bpe(folder):
    paths = {"gpt2_encoder_json": str(folder / "encoder.json"), "gpt2_vocab_bpe": str(folder / "vocab.bpe")}
    return encoders.build_bpe(Namespace(bpe="gpt2", **paths))


def lines_of(path):
    return path.read_bytes().decode().split("\n")[:-1]


def test_trained_here_as_sentencepiece_does_it(tmp_path, corpus, capsys):
    encode_text.main([str(corpus), str(tmp_path / "out"), "--vocabulary-size=60", "--workers=2"])
    files = [f"train.{side}" for side in ("source", "target")]
    sentencepiece.SentencePieceTrainer.train(
        input=[str(corpus / name) for name in files],
        model_prefix=str(tmp_path / "expected"),
        vocab_size=60,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=1,
    )
    expected = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "expected.model"))
    names = {f"{split}.{side}" for split in ("train", "valid", "test") for side in ("source", "target")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {"sentencepiece.model"}
    for name in names:
        text = [" ".join(expected.encode(line, out_type=str)) for line in lines_of(corpus / name)]
        assert lines_of(tmp_path / "out" / name) == text
    assert capsys.readouterr().out == f"pieces: a vocabulary of {expected.get_piece_size()}\n"


def test_given_model(tmp_path, corpus):
    encode_text.main([str(corpus), str(tmp_path / "first"), "--vocabulary-size=60"])
    model = tmp_path / "first" / "sentencepiece.model"
    encode_text.main([str(corpus), str(tmp_path / "second"), "--sentencepiece", str(model)])
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / n).iterdir()} for n in ("first", "second"))
    assert first.pop("sentencepiece.model")
    assert first == second


def test_symbols_are_never_divided(tmp_path, corpus):
    (corpus / "train.source").write_text("the river [SEP] the city\n" * 700)
    encode_text.main([str(corpus), str(tmp_path / "out"), "--vocabulary-size=60", "--symbol=[SEP]"])
    assert "[SEP]" in lines_of(tmp_path / "out" / "train.source")[0].split(" ")


@pytest.mark.parametrize("workers", [1, 3])
def test_gpt2_bpe_as_fairseq_has_it(tmp_path, bpe_folder, workers):
    """Odd text, in more batches than one, in order."""
    (tmp_path / "corpus").mkdir()
    lines = [f"{line}{number}" if number % 3 else line for number in range(70) for line in ODD_LINES]
    (tmp_path / "corpus" / "test.source").write_bytes("".join(f"{line}\n" for line in lines).encode())
    options = ["--gpt2-bpe", str(bpe_folder), f"--workers={workers}"]
    encode_text.main([str(tmp_path / "corpus"), str(tmp_path / "out"), *options])
    bpe = fairseq_bpe(bpe_folder)
    encoded = lines_of(tmp_path / "out" / "test.source")
    assert encoded == [bpe.encode(line) for line in lines]
    assert [bpe.decode(line) for line in encoded] == lines


@pytest.mark.skipif(not (helpers.DATA / "gpt2_bpe").exists(), reason="the GPT-2 BPE is not there (ELSEQ_DATA)")
def test_real_gpt2_bpe(tmp_path, capsys):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "test.source").write_text("".join(f"{line}\n" for line in ODD_LINES), newline="")
    encode_text.main([str(tmp_path / "corpus"), str(tmp_path / "out"), "--gpt2-bpe", str(helpers.DATA / "gpt2_bpe")])
    bpe = fairseq_bpe(helpers.DATA / "gpt2_bpe")
    assert lines_of(tmp_path / "out" / "test.source") == [bpe.encode(line) for line in ODD_LINES]
    assert bpe.encode("Hello world!") == "15496 995 0"
    assert capsys.readouterr().out == "pieces: a vocabulary of 50257\n"


def test_sources_are_cut_and_targets_are_not(tmp_path, corpus, bpe_folder, capsys):
    for name, options in (("whole", []), ("cut", ["--truncate-source=20"])):
        encode_text.main([str(corpus), str(tmp_path / name), "--gpt2-bpe", str(bpe_folder), *options])
    for path in (tmp_path / "whole").iterdir():
        whole = [line.split(" ") for line in lines_of(path)]
        limit = 20 if path.suffix == ".source" else None
        assert [line.split(" ") for line in lines_of(tmp_path / "cut" / path.name)] == [line[:limit] for line in whole]
    lengths = [len(line.split()) for line in lines_of(tmp_path / "whole" / "valid.source")]
    over = [length - 20 for length in lengths if length > 20]
    assert over
    report = f"valid.source: {len(over)} of 40 lines cut to 20 subwords, {sum(over)} subwords dropped\n"
    assert report in capsys.readouterr().out


def test_line_ends(tmp_path, bpe_folder):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "test.source").write_bytes(b"the\r\n\r\nin")
    encode_text.main([str(tmp_path / "corpus"), str(tmp_path / "out"), "--gpt2-bpe", str(bpe_folder)])
    bpe = fairseq_bpe(bpe_folder)
    assert lines_of(tmp_path / "out" / "test.source") == [bpe.encode("the"), "", bpe.encode("in")]


def test_bad_input(tmp_path, corpus, bpe_folder):
    def refused(*arguments):
        with pytest.raises(UserError) as error:
            encode_text.main(list(map(str, arguments)))
        return str(error.value)

    out = tmp_path / "out"
    assert "there is no file *.source or *.target in" in refused(tmp_path / "none", out)
    assert "is the folder that is read from" in refused(corpus, corpus)
    assert "train.source cannot be made (File exists)" in refused(corpus, corpus / "train.source")
    assert "encoder.json is missing; --gpt2-bpe takes a folder" in refused(corpus, out, "--gpt2-bpe", tmp_path)
    assert "model is missing; give a sentencepiece model" in refused(corpus, out, "--sentencepiece", tmp_path / "model")
    (tmp_path / "model").write_text("no model")
    assert "model is no sentencepiece model" in refused(corpus, out, "--sentencepiece", tmp_path / "model")
    assert "no vocabulary of 5 can be trained on" in refused(corpus, out, "--vocabulary-size=5")
    (corpus / "valid.source").write_bytes(b"a\nb\xff\n")
    assert "line 2 of" in refused(corpus, out) and "is not valid UTF-8" in refused(corpus, out)
    (corpus / "valid.source").write_text("a\n")
    assert "valid.source has 1 lines and" in (sentence := refused(corpus, out)) and "valid.target has 40" in sentence
    (corpus / "valid.source").write_text("")
    assert "valid.source is empty" in refused(corpus, out)
    (corpus / "valid.source").unlink()
    (corpus / "train.target").unlink()
    assert "train.target is missing; a sentencepiece model is trained on it" in refused(corpus, out)
    (bpe_folder.parent / "broken").mkdir()
    (bpe_folder.parent / "broken" / "encoder.json").write_text("{")
    (bpe_folder.parent / "broken" / "vocab.bpe").write_text("")
    assert "encoder.json is not JSON (Expecting" in refused(corpus, out, "--gpt2-bpe", bpe_folder.parent / "broken")
    (bpe_folder.parent / "broken" / "encoder.json").write_text((bpe_folder / "encoder.json").read_text())
    for nothing in ("", "#version: 0.2\n"):
        (bpe_folder.parent / "broken" / "vocab.bpe").write_text(nothing)
        sentence = refused(corpus, out, "--gpt2-bpe", bpe_folder.parent / "broken")
        assert sentence.endswith("vocab.bpe has no pair of pieces to join: copy it again")
    (bpe_folder.parent / "broken" / "vocab.bpe").write_text((bpe_folder / "vocab.bpe").read_text())
    whole = json.loads((bpe_folder / "encoder.json").read_text())
    for content, sentence in (
        ([], "encoder.json holds no JSON object: copy it again"),
        ({}, "encoder.json has no number for '!', a piece of vocab.bpe: copy both again"),
        (whole | {"Ġthe": "many"}, "encoder.json does not give each piece a number: copy it again"),
    ):
        (bpe_folder.parent / "broken" / "encoder.json").write_text(json.dumps(content))
        assert sentence in refused(corpus, out, "--gpt2-bpe", bpe_folder.parent / "broken")
    both = ("--sentencepiece", tmp_path / "model", "--gpt2-bpe", bpe_folder)
    assert refused(corpus, out, *both) == "--sentencepiece and --gpt2-bpe are two vocabularies: give one of them"
    for option in ("--truncate-source", "--workers", "--vocabulary-size"):
        assert refused(corpus, out, option, "0") == f"{option} '0' is not a whole number above 0"
    assert not list(out.glob("*"))


def test_no_input_is_written(tmp_path, bpe_folder):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "out").mkdir()
    for name in ("a.source", "b.source"):
        (tmp_path / "corpus" / name).write_text("the river\n")
    (tmp_path / "out" / "b.source").symlink_to(tmp_path / "corpus" / "b.source")
    with pytest.raises(UserError, match="out/b.source is an input: give another file$"):
        encode_text.main([str(tmp_path / "corpus"), str(tmp_path / "out"), "--gpt2-bpe", str(bpe_folder)])
    assert (tmp_path / "corpus" / "b.source").read_text() == "the river\n"
    assert not (tmp_path / "out" / "a.source").exists()


def test_interrupted(tmp_path, bpe_folder):
    """No file has its final name before it is whole, the processes end, and another run does all of it."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.source").write_text("the river\n")
    (tmp_path / "corpus" / "b.source").write_text("".join(f"{i} the king of {i}\n" for i in range(400_000)))
    command = [sys.executable, ROOT / "scripts" / "encode_text.py", tmp_path / "corpus", tmp_path / "out"]
    command += ["--gpt2-bpe", bpe_folder, "--workers=2"]
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}  # some shells ignore it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, **heard)
    while not any(path.stat().st_size for path in (tmp_path / "out").glob("b.source.*.tmp")):  # the workers are there
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.source"]


@pytest.fixture(scope="module")
def of_transformers(bpe_folder):
    """A tokenizer of transformers with the same pieces and fairseq's symbols."""
    transformers = pytest.importorskip("transformers")
    merges = (bpe_folder / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), SYMBOLS, strict=True))
    vocabulary = json.loads((bpe_folder / "encoder.json").read_text())
    return transformers.GPT2Tokenizer(vocab=vocabulary, merges=[tuple(merge.split()) for merge in merges], **names)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(SYMBOLS) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"))))
def test_any_text_with_symbols_in_it(bpe_folder, of_transformers, parts):
    line = "".join(parts)
    expected = [
        token if token in SYMBOLS else str(number)
        for token, number in zip(of_transformers.tokenize(line), of_transformers(line)["input_ids"], strict=True)
    ]
    assert encode_text.read_vocabulary("gpt2_bpe", bpe_folder).encode(line).split() == expected


def test_long_lines_count(tmp_path, corpus):
    """sentencepiece leaves out lines of more than 4,192 bytes if it is not told otherwise."""
    with (corpus / "train.source").open("a") as file:
        file.write("zebras " * 1000 + "\n")
    with (corpus / "train.target").open("a") as file:
        file.write("zebras\n")
    encode_text.main([str(corpus), str(tmp_path / "out"), "--vocabulary-size=100"])
    assert lines_of(tmp_path / "out" / "train.target")[-1] == "▁zebras"


def test_a_tokenizer_of_hugging_face(tmp_path, corpus):
    pytest.importorskip("transformers")
    make_gpt2(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    (corpus / "test.source").write_text("the<|endoftext|> in\n" * 30)
    options = ["--tokenizer-json", str(tmp_path / "ours" / "tokenizer.json")]
    encode_text.main([str(corpus), str(tmp_path / "out"), *options])
    th, e, of = (str(GPT2_NAMES.index(name)) for name in ("th", "e", "Ġin"))
    assert lines_of(tmp_path / "out" / "test.source")[0].split() == [th, e, "</s>", of]


def test_a_vocabulary_for_each_side(tmp_path):
    pytest.importorskip("transformers")
    from tests.interop.hugging_face.families.test_marian import KINDS, make

    make(tmp_path / "theirs", KINDS[1])
    convert(tmp_path / "theirs", tmp_path / "ours")
    line = "der lazy fuchs"
    (tmp_path / "corpus").mkdir()
    for side in encode_text.SIDES:
        (tmp_path / "corpus" / f"test.{side}").write_text(f"{line}\n")
    options = ["--tokenizer-json", str(tmp_path / "ours" / "vocab.json")]
    encode_text.main([str(tmp_path / "corpus"), str(tmp_path / "out"), *options])
    for side in encode_text.SIDES:
        model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "theirs" / f"{side}.spm"))
        assert lines_of(tmp_path / "out" / f"test.{side}") == [" ".join(model.encode(line, out_type=str))]
