"""One description of the options: what each door offers follows from it."""

import inspect
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

import elseq
from elseq.cli import generate
from elseq.errors import UserError, as_option
from elseq.generator import TextGenerator
from elseq.loading import Checkpoint, checkpoint_path
from elseq.options import Batching, Loading
from elseq.text_files.formats import InputFormat
from tests import helpers

ROOT = Path(__file__).resolve().parents[1]


def names(kind):
    return [each.name for each in fields(kind)]


def test_keywords_of_python():
    path, *keywords = inspect.signature(elseq.load).parameters
    assert keywords == names(Loading)
    assert all(
        parameter.default == each.default
        for each, parameter in zip(
            fields(Loading), list(inspect.signature(elseq.load).parameters.values())[1:], strict=True
        )
    )
    assert set(names(Batching)) <= set(inspect.signature(TextGenerator.generate).parameters)


def test_options_of_the_command():
    args = vars(generate._parse(["--model", "model.pt"]))
    for each in [*fields(Loading), *fields(Batching)]:
        if each.name != "seed":  # a run that goes on another day needs one
            assert args[each.name] == each.default, each.name


def test_settings_of_sweeps():
    settings = yaml.safe_load((ROOT / "hydra_conf" / "generate.yaml").read_text())
    groups = [group for each in settings["defaults"] if isinstance(each, dict) for group in each]
    elsewhere = {"attention": "decode", "data": "task", "bpe": "bpe"}
    for name in [*names(Loading), *names(Batching), *names(InputFormat)]:
        assert name in settings or elsewhere.get(name) in [*settings, *groups], name


@pytest.mark.parametrize("name", ["attention", "apply_top_k", "apply_top_k_in", "apply_ffn_top_k"])
def test_what_decides_the_output_is_in_the_fingerprint(name):
    assert as_option(name) in Loading().deciding()


def test_equal_dictionaries_are_one(tiny_translation, tmp_path):
    checkpoint = Checkpoint.read(tiny_translation.checkpoint)
    files = checkpoint.dictionaries(tiny_translation.data)
    assert files[0] != files[1] and files[0].read_bytes() == files[1].read_bytes()
    task = checkpoint.build_task(tiny_translation.data, files, "auto")
    assert task.source_dictionary is task.target_dictionary
    words = files[1].read_text().splitlines(keepends=True)
    (tmp_path / "other.txt").write_text("".join(words[::-1]))
    task = checkpoint.build_task(tiny_translation.data, (files[0], tmp_path / "other.txt"), "auto")
    assert task.source_dictionary.symbols[4:] == task.target_dictionary.symbols[:3:-1]


def test_a_bart_is_known_by_its_training(tiny_bart, tiny_translation):
    for trained, value in ((tiny_bart, True), (tiny_translation, False)):
        checkpoint = Checkpoint.read(trained.checkpoint)
        task = checkpoint.build_task(trained.data, checkpoint.dictionaries(trained.data), "auto")
        assert task.prepend_source_bos is task.force_bos is value


def test_stock_s_architecture_of_one_of_ours(translation_data, tmp_path):
    path = helpers.train("el_transformer", translation_data, tmp_path, "--max-update=1")
    checkpoint = Checkpoint.read(path)
    stock = checkpoint.as_stock()
    assert (checkpoint.cfg.model._name, stock.cfg.model.arch) == ("el_transformer", "transformer")
    assert stock.as_stock() is stock


def test_a_model_that_stock_does_not_have(tiny_multi_query):
    with pytest.raises(UserError, match="key/value heads for 4 heads, which stock fairseq does not have"):
        Checkpoint.read(tiny_multi_query.checkpoint).as_stock()


def test_a_hugging_face_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"^{tmp_path} is a model of .*`elseq-convert from-hf {tmp_path} --output DIR`"):
        elseq.load(tmp_path)
    (tmp_path / "model.pt").touch()
    assert checkpoint_path(tmp_path) == tmp_path / "model.pt"
