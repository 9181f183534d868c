"""Calibration text: what it is read from, what it records, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch

from elseq.cli.calibration import read_calibration
from elseq.errors import UserError
from elseq.generator import load_by
from elseq.options import Loading
from tests import helpers
from tests.tiny_models import pad_rows

SENTENCES = 12
DENOISING = ["--task=denoising", "--tokens-per-sample=64", "--max-update=2"]


@pytest.fixture(params=["translation", "bart", "language_model"])
def trained(request):
    return request.getfixturevalue(f"tiny_{request.param}")


def load(trained):
    return load_by(trained.checkpoint, Loading("kv", "cpu", data=trained.data))


def files(trained, split="valid"):
    if trained.is_language_model:
        return trained.raw / f"{split}.lm", None
    return tuple(trained.raw / f"{split}.{side}" for side in ("src", "tgt"))


def rows(samples, name):
    values = [{**sample["net_input"], **sample}[name] for sample in samples]
    return pad_rows([each[0].tolist() for each in values], 1)


@pytest.mark.few_cases(2)
def test_files_and_splits_are_the_same_text(trained):
    """With the symbols that training puts around texts; a split of a language model is cut as its training was."""
    generator = load(trained)
    written = read_calibration(generator, *files(trained), 1000, 1)
    generator.task.options.sample_break_mode = "eos"  # as in the training of the tiny language model
    split = read_calibration(generator, Path("valid"), None, 1000, 1)
    assert (written.name, split.name) == (files(trained)[0].name, "valid")
    assert len(written.samples) == len(split.samples) == 30
    names = ["src_tokens", "target"] + (["prev_output_tokens"] if files(trained)[1] else [])
    for name in names:
        assert torch.equal(rows(written.samples, name), rows(split.samples, name)), name
    assert written.tokens == split.tokens
    assert written.loss(generator.model) == pytest.approx(split.loss(generator.model), rel=1e-5)


def test_loss_is_that_of_the_scores(tiny_translation):
    generator = load(tiny_translation)
    calibration = read_calibration(generator, *files(tiny_translation), 1000, 1)
    lines = [path.read_text().splitlines() for path in files(tiny_translation)]
    scored = generator.score(*lines, progress=False)
    bits = -sum(sum(each.log_probs) for each in scored) / sum(len(each.tokens) for each in scored)
    assert calibration.loss(generator.model) * torch.log(torch.tensor(2.0)).item() == pytest.approx(bits, rel=1e-5)


def test_sentences_are_spread_over_the_text(trained):
    generator = load(trained)
    every = read_calibration(generator, *files(trained), 1000, 1)
    some = read_calibration(generator, *files(trained), SENTENCES, 1)
    chosen = [0, 3, 5, 8, 11, 13, 16, 18, 21, 24, 26, 29]
    assert torch.equal(rows(some.samples, "target"), rows([every.samples[index] for index in chosen], "target"))
    assert some.record() == {"text": every.name, "sentences": SENTENCES, "tokens": some.tokens}


def write(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_blank_lines_are_left_out(tiny_translation, tmp_path):
    source = write(tmp_path / "source", ["w1 w2", "", "w3", "w4 w5"])
    target = write(tmp_path / "target", ["w2 w1", "w1", " ", "w5 w4"])
    found = read_calibration(load(tiny_translation), source, target, 100, 1)
    assert [sample["target"].numel() for sample in found.samples] == [3, 3]


def test_long_sources_are_truncated(tiny_translation, tmp_path):
    source, target = write(tmp_path / "source", [" ".join(["w1"] * 500)]), write(tmp_path / "target", ["w1"])
    [sample] = read_calibration(load(tiny_translation), source, target, 100, 1).samples
    assert sample["net_input"]["src_tokens"].shape == (1, 64)


@pytest.mark.parametrize(
    ("sources", "targets", "needed", "sentence"),
    [
        ([], [], 1, "source is empty: give a file with one example per line"),
        (["", " "], ["", "w1"], 1, "calibration text source is empty: give some hundred sentences"),
        (["w1 w2"], ["w1", "w2"], 1, "source has 1 lines and .*target has 2: give one for each"),
        (["ein Hund"], ["w1 w2"], 1, "67% of its tokens are not in the model's dictionary; give text of the model's"),
        (["w1 w2"], ["a dog runs"], 1, "75% of its tokens are not in the model's dictionary"),
        (["w1 w2"], ["w3"], 32, "has 3 tokens and the heads of this model need 32 or more: give a longer text"),
        (["w1 w2"], [" ".join(["w1"] * 500)], 1, "line 1 of .*source has 501 tokens and the model generates 6"),
    ],
)
def test_text_that_cannot_be_used(tiny_translation, tmp_path, sources, targets, needed, sentence):
    source, target = write(tmp_path / "source", sources), write(tmp_path / "target", targets)
    with pytest.raises(UserError, match=sentence) as error:
        read_calibration(load(tiny_translation), source, target, 100, needed)
    assert "\n" not in str(error.value)


def test_what_does_not_go_together(tiny_translation, tiny_language_model, tmp_path):
    source = write(tmp_path / "source", ["w1"])
    with pytest.raises(UserError, match="--calibration-target is missing: name the file of the translations"):
        read_calibration(load(tiny_translation), source, None, 100, 1)
    with pytest.raises(UserError, match="--calibration-target is for models with an encoder: leave it out"):
        read_calibration(load(tiny_language_model), source, source, 100, 1)
    with pytest.raises(UserError, match="valid is no file, and --calibration-target is for a file"):
        read_calibration(load(tiny_translation), Path("valid"), source, 100, 1)


def test_neither_a_file_nor_a_split(trained):
    with pytest.raises(UserError) as error:
        read_calibration(load(trained), Path("nowhere.txt"), None, 100, 1)
    assert str(error.value) == (
        f"--calibration nowhere.txt: there is neither a file nor, in {trained.data}, a split of this name; give one of "
        "them"
    )


def test_split_for_a_checkpoint_of_denoising(language_model_data, raw_text, once, tmp_path):
    """Whose configuration refers to parts that are not there."""
    trained = once("denoising", lambda folder: helpers.train("bart_base", language_model_data, folder, *DENOISING))
    dictionary = ["--srcdict", language_model_data / "dict.txt", "--tgtdict", language_model_data / "dict.txt"]
    sides = ["-s", "src", "-t", "tgt", "--validpref", raw_text / "valid"]
    helpers.run_here(["fairseq-preprocess", "--destdir", tmp_path / "pairs", *sides, *dictionary])
    for data in (tmp_path / "pairs", language_model_data):
        shutil.copy(language_model_data / "dict.txt", tmp_path / "pairs" / "dict.txt")
        generator = load_by(trained / "checkpoint_last.pt", Loading("kv", "cpu", data=str(data)))
        if data == language_model_data:
            with pytest.raises(UserError, match="^--calibration valid: there is neither a file nor, in .*, a split of"):
                read_calibration(generator, Path("valid"), None, 1000, 1)
        else:
            assert len(read_calibration(generator, Path("valid"), None, 1000, 1).samples) == 30
