"""elseq-convert to and from other programs: the folders it writes, what it prints, and what it leaves alone."""

import json
import re
import shlex
import sys

import pytest
import torch
from safetensors.torch import save_file

import elseq
from elseq.cli import conversions, convert
from elseq.errors import UserError
from elseq.interop.hugging_face.families import FAMILIES
from tests import helpers
from tests.interop.hugging_face.making import BART_NAMES, BART_SIZES, GPT2_NAMES, GPT2_SIZES, save_tokenizer

SENTENCES = b"the inner the\na thin air\n"


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command; returns what it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["elseq-convert", *map(str, arguments)])
        convert.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def theirs(tmp_path):
    """Makes a folder of Hugging Face's, without its library."""

    def make(kind):
        folder, family = tmp_path / "theirs", FAMILIES[kind]
        names, sizes = (BART_NAMES, BART_SIZES) if kind == "bart" else (GPT2_NAMES, GPT2_SIZES)
        end = {} if kind == "bart" else {"eos_token_id": len(names) - 1, "bos_token_id": len(names) - 1}
        config = {"model_type": kind, "vocab_size": len(names), **sizes, **end}
        torch.manual_seed(1)
        tensors = {name: torch.randn(shape) for name, shape in family.shapes(family.defaults | config).items()}
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "model.safetensors")
        save_tokenizer(folder, names)
        return folder

    return make


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["bart", "gpt2"])
def test_from_hugging_face(run, theirs, tmp_path, kind):
    printed = run("from-hf", theirs(kind), "--output", tmp_path / "ours")
    expected = ["dict.txt", "encoder.json", "fairseq_symbols.json", "model.pt", "tokenizer.json"]
    expected += ["tokenizer_config.json", "vocab.bpe"]
    assert files(tmp_path / "ours") == sorted(expected + ["dict.source.txt", "dict.target.txt"] * (kind == "bart"))
    generated = elseq.load(tmp_path / "ours", device="cpu").generate(["the inner the"], max_len_b=5)
    assert isinstance(generated[0], str)

    # the command that it prints, but for fairseq-interactive, which needs no data set
    command = printed.splitlines()[-1].replace('"$(elseq-user-dir)"', str(helpers.USER_DIR))
    command = command.replace("fairseq-generate DATA", f"fairseq-interactive {tmp_path / 'ours'}")
    ended = helpers.run_here([*shlex.split(command), "--max-len-b=5", "--cpu"], input=SENTENCES)
    assert len(re.findall(r"^D-\d", ended.stdout, flags=re.MULTILINE)) == 2
    assert any(option in command for option in ("--force-bos no", "elseq_language_modeling"))


@pytest.mark.parametrize("kind", ["bart", "gpt2"])
def test_stock_fairseq_decodes_it(run, theirs, tmp_path, kind):
    """By its own task, modules and search."""
    run("from-hf", theirs(kind), "--output", tmp_path / "ours")
    languages = ["-s", "source", "-t", "target"] if kind == "bart" else ["--task=language_modeling"]
    command = ["fairseq-interactive", tmp_path / "ours", "--path", tmp_path / "ours" / "model.pt", *languages]
    files = [f"--gpt2-encoder-json={tmp_path / 'ours' / 'encoder.json'}"]
    files += [f"--gpt2-vocab-bpe={tmp_path / 'ours' / 'vocab.bpe'}"]
    ended = helpers.run_here([*command, "--bpe=gpt2", *files, "--beam=1", "--max-len-b=30", "--cpu"], input=SENTENCES)
    assert len(re.findall(r"^D-\d", ended.stdout, flags=re.MULTILINE)) == 2


def test_there_and_back(run, theirs, tmp_path):
    folder = theirs("bart")
    run("from-hf", folder, "--output", tmp_path / "ours")
    assert run("to-hf", tmp_path / "ours", "--output", tmp_path / "again") == f"written: {tmp_path / 'again'}\n"
    expected = ["config.json", "generation_config.json", "merges.txt", "model.safetensors"]
    assert files(tmp_path / "again") == [*expected, "tokenizer.json", "tokenizer_config.json", "vocab.json"]
    run("from-hf", tmp_path / "again", "--output", tmp_path / "twice")
    first, second = (torch.load(tmp_path / name / "model.pt")["model"] for name in ("ours", "twice"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_to_fairseq(run, tiny_translation, tmp_path):
    printed = run("to-fairseq", tiny_translation.checkpoint, "--output", tmp_path / "stock.pt")
    assert printed == f"written: {tmp_path / 'stock.pt'}\n"
    options = ["fairseq-generate", tiny_translation.data, "--beam=2", "--max-len-b=15", "--cpu", "--num-workers=0"]
    found, expected = (
        re.findall(r"^H-.*", helpers.run_here([*options, "--path", path]).stdout, flags=re.MULTILINE)
        for path in (tmp_path / "stock.pt", tiny_translation.checkpoint)
    )
    assert len(found) == 21 and sorted(found) == sorted(expected)


def test_to_ctranslate2(run, tiny_translation, tmp_path):
    pytest.importorskip("ctranslate2")
    arguments = [tiny_translation.checkpoint, "--data", tiny_translation.data, "--quantization=int8"]
    run("to-ctranslate2", *arguments, "--output", tmp_path / "model")
    assert files(tmp_path / "model") == ["config.json", "model.bin", "shared_vocabulary.json"]
    run("to-ctranslate2", *arguments, "--output", tmp_path / "model", "--overwrite")
    with pytest.raises(UserError, match="argument --quantization: invalid choice: 'int3'"):
        run("to-ctranslate2", *arguments, "--output", tmp_path / "other", "--quantization=int3")


# --- what is there stays


def test_outputs_that_are_there(run, theirs, tmp_path, tiny_translation):
    folder, output = theirs("bart"), tmp_path / "ours"
    output.mkdir()  # an empty folder is no loss
    run("from-hf", folder, "--output", output)
    with pytest.raises(UserError, match="ours exists already: give another --output, or --overwrite"):
        run("from-hf", folder, "--output", output)
    run("from-hf", folder, "--output", output, "--overwrite")
    with pytest.raises(UserError, match="theirs holds what is to be converted: give another folder"):
        run("from-hf", folder, "--output", folder, "--overwrite")
    with pytest.raises(UserError, match="holds what is to be converted"):
        run("to-hf", output, "--output", output, "--overwrite")
    with pytest.raises(UserError, match="model.pt is a file: give the name of a folder"):
        run("from-hf", folder, "--output", output / "model.pt")
    (output / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds other files too, such as thesis.tex: give another folder"):
        run("from-hf", folder, "--output", output, "--overwrite")
    with pytest.raises(UserError, match=r"--output \S+ours is a folder: give the name of a file"):
        run("to-fairseq", tiny_translation.checkpoint, "--output", output, "--overwrite")
    assert (output / "thesis.tex").exists() and (output / "model.pt").exists() and (folder / "config.json").exists()


@pytest.mark.parametrize("before", [False, True])
def test_interruptions_leave_what_was_there(run, theirs, monkeypatch, tmp_path, before):
    folder, output = theirs("bart"), tmp_path / "ours"
    if before:
        run("from-hf", folder, "--output", output)
    expected = {path.name: path.read_bytes() for path in output.iterdir()} if before else None

    def interrupted(checkpoint, path):
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(conversions, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("from-hf", folder, "--output", output, "--overwrite")
    assert output.exists() == before
    assert not before or {path.name: path.read_bytes() for path in output.iterdir()} == expected
    assert files(tmp_path) == ["ours", "theirs"] if before else ["theirs"]


def test_folders_that_cannot_be_written(run, theirs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="ours cannot be written .Not a directory.: give another --output"):
        run("from-hf", theirs("bart"), "--output", tmp_path / "file" / "ours")


# --- bad input


def test_models_that_stay_here(run, tiny_multi_query, tiny_language_model, tmp_path):
    output = ["--output", tmp_path / "out"]
    for command in ("to-hf", "to-ctranslate2", "to-fairseq"):
        with pytest.raises(UserError, match=r"^checkpoint \S+: the model has 1 key/value heads for 4 heads") as error:
            run(command, tiny_multi_query.checkpoint, *output)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="Hugging Face's GPT-2 cannot be this model, which has --"):
        run("to-hf", tiny_language_model.checkpoint, *output)
    with pytest.raises(UserError, match=r"^--data \S+ holds no dictionary \(dict\*.txt\); name another folder$"):
        run("to-hf", tiny_language_model.checkpoint, *output, "--data", tmp_path)
    assert not (tmp_path / "out").exists()


def test_multilingual_checkpoints(run, tiny_translation, tmp_path):
    state = torch.load(tiny_translation.checkpoint)
    state["cfg"]["task"]["_name"] = "translation_multi_simple_epoch"
    torch.save(state, tmp_path / "multi.pt")
    for command in ("to-hf", "to-ctranslate2"):
        with pytest.raises(UserError, match="multi.pt: only the task translation_multi_simple_epoch knows the symbols"):
            run(command, tmp_path / "multi.pt", "--output", tmp_path / "out")


@pytest.mark.parametrize("command", ["from-hf", "to-hf", "to-ctranslate2", "to-fairseq"])
def test_missing_input(run, tmp_path, command):
    with pytest.raises(
        UserError, match="none.* (is not a folder: give that of a model, with its config.json$|cannot be read)"
    ) as error:
        run(command, tmp_path / "none", "--output", tmp_path / "out")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="the following arguments are required: --output; see elseq-convert"):
        run(command, tmp_path / "none")
