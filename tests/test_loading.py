"""One description of the options: what each door offers follows from it."""

import inspect
import os
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml

import elseq
from elseq.cli import generate
from elseq.errors import UserError, as_option
from elseq.generator import TextGenerator
from elseq.loading import Checkpoint, checkpoint_path
from elseq.options import Batching, Loading
from elseq.tasks import translation
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


def test_a_beginning_that_is_given(tiny_bart, tiny_language_model, caplog):
    checkpoint = Checkpoint.read(tiny_bart.checkpoint)

    def task(**options):
        return checkpoint.task_by(Loading(**options), tiny_bart.data)[0]

    translation._tell_of_bos.cache_clear()
    with caplog.at_level("INFO"):
        for value in ("no", False):
            found = task(prepend_source_bos=value, force_bos=value)
            assert found.prepend_source_bos is found.force_bos is False
    assert "begin with <s>" not in caplog.text
    with caplog.at_level("INFO"):
        found = task(force_bos="no")
    assert found.prepend_source_bos and not found.force_bos
    assert "set the options prepend-source-bos and force-bos to no" in caplog.text
    with pytest.raises(UserError, match="^force_bos is for a model of the task translation: leave it out$"):
        Checkpoint.read(tiny_language_model.checkpoint).task_by(Loading(force_bos="yes"), tiny_language_model.data)


def test_stock_s_architecture_of_one_of_ours(translation_data, tmp_path):
    path = helpers.train("el_transformer", translation_data, tmp_path, "--max-update=1")
    checkpoint = Checkpoint.read(path)
    stock = checkpoint.as_stock()
    assert (checkpoint.cfg.model._name, stock.cfg.model.arch) == ("el_transformer", "transformer")
    assert stock.as_stock() is stock


def test_a_model_that_stock_does_not_have(tiny_multi_query):
    with pytest.raises(UserError, match="key/value heads for 4 heads, which stock fairseq does not have"):
        Checkpoint.read(tiny_multi_query.checkpoint).as_stock()


# --- the parameters of a model


def built(trained, path=None, attention="kv", **options):
    checkpoint = Checkpoint.read(path or trained.checkpoint)
    task, _ = checkpoint.task_by(Loading(attention), trained.data)
    return checkpoint.build_model(task, **options)


def saved(trained, path, change, **options):
    """A checkpoint whose tensors were changed."""
    state = torch.load(trained.checkpoint, weights_only=False)
    state["model"] = change(state["model"])
    torch.save(state, path, **options)
    return state["model"]


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("is_archive", [True, False])  # or torch's older format, which is read as a whole
def test_parameters_have_the_type_that_is_asked_for(tiny_translation, tmp_path, stored, dtype, is_archive):
    path, options = tmp_path / "model.pt", {"_use_new_zipfile_serialization": is_archive}
    tensors = saved(
        tiny_translation, path, lambda model: {name: each.to(stored) for name, each in model.items()}, **options
    )
    expected = getattr(torch, dtype or "float32")
    for only_decodes in (True, False):
        model = built(tiny_translation, path, dtype=dtype, only_decodes=only_decodes)
        for name, parameter in model.named_parameters():
            assert parameter.dtype == expected and parameter.equal(tensors[name].to(expected)), name
        assert {each.dtype for each in model.buffers() if each.is_floating_point()} <= {expected}


def test_tied_parameters_that_are_stored_apart(tiny_bart, tmp_path):
    """As a training on a GPU stores them. fairseq copies one after the other, so the last one counts."""
    path, names = tmp_path / "model.pt", [f"{side}.embed_tokens.weight" for side in ("encoder", "decoder")]
    names.append("decoder.output_projection.weight")
    tensors = saved(
        tiny_bart,
        path,
        lambda model: {**model, **{name: model[name] + number for number, name in enumerate(names)}},
    )
    model = built(tiny_bart, path)
    weights = [model.get_parameter(name) for name in names]
    assert weights[0] is weights[1] is weights[2]
    assert weights[0].equal(tensors[names[-1]]) and not weights[0].equal(tensors[names[0]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_parameters_that_are_parts_of_one_tensor(tiny_translation, tmp_path, dtype):
    """Each is read for itself, whether its numbers are adjacent or not."""
    path = tmp_path / "model.pt"

    def in_one(model):
        whole, start, parts = torch.cat([each.t().flatten() for each in model.values()]), 0, {}
        for name, each in model.items():
            parts[name] = whole[start : start + each.numel()].view(each.t().shape).t()
            start += each.numel()
        return parts

    saved(tiny_translation, path, in_one)
    expected = built(tiny_translation, dtype=dtype)
    for name, parameter in built(tiny_translation, path, dtype=dtype).named_parameters():
        assert parameter.equal(expected.get_parameter(name)) and parameter.is_contiguous()
        assert parameter.untyped_storage().nbytes() == parameter.nbytes


@pytest.mark.parametrize("attention", ["kv", "el", "auto"])
@pytest.mark.parametrize("family", ["translation", "bart", "language_model"])
def test_int8_weights_are_made_while_a_model_is_read(request, family, attention):
    trained = request.getfixturevalue(f"tiny_{family}")
    texts = ["w1 w2 w3", "w5 w4 w3 w2 w1"]
    model = elseq.load(trained.checkpoint, attention, data=trained.data, dtype="int8", device="cpu")
    layers = {name: each for name, each in model.model.named_modules() if hasattr(each, "decoding")}
    assert layers
    for name, layer in layers.items():
        # el multiplies by these weights in another order, and auto may choose it
        is_read_by_methods = name.startswith("decoder.") and name.endswith(("k_proj", "v_proj"))
        assert layer.decoding.is_released is not is_read_by_methods, name
    model.model.prepared.fresh_parameters = None  # nothing needs the file any more
    found = model.generate(texts, beam=2)
    late = elseq.load(trained.checkpoint, attention, data=trained.data, device="cpu")  # quantized in the search
    late.model.decoder.decode_dtype = "int8"
    assert late.generate(texts, beam=2) == found


def test_int8_weights_do_not_replace_those_of_a_model_that_may_be_trained(tiny_translation):
    model = built(tiny_translation, dtype="int8")
    expected = built(tiny_translation)
    assert all(each.equal(expected.get_parameter(name)) for name, each in model.named_parameters())


def test_weights_of_int8_are_read_once_more(tiny_translation, tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    shutil.copy(tiny_translation.checkpoint, path)
    monkeypatch.chdir(tmp_path)
    model = elseq.load("model.pt", data=tiny_translation.data, dtype="int8", device="cpu")
    monkeypatch.chdir("/")
    expected = built(tiny_translation).state_dict()
    found = model.model.state_dict()
    assert found.keys() == expected.keys() and all(each.equal(expected[name]) for name, each in found.items())


def test_weights_of_int8_that_have_changed_by_less_than_it_tells_apart(tiny_translation, tmp_path):
    path, name = tmp_path / "model.pt", "encoder.layers.0.fc1.weight"
    shutil.copy(tiny_translation.checkpoint, path)
    model = elseq.load(path, data=tiny_translation.data, dtype="int8", device="cpu")
    saved(tiny_translation, path, lambda model: {**model, name: model[name] * (1 + 1e-7)})
    with pytest.raises(UserError, match=f"^{path} has changed since the model was loaded.*: load the model again$"):
        model.model.state_dict()


def test_a_file_that_changes_while_it_is_loaded(tiny_translation, tmp_path):
    path = tmp_path / "model.pt"
    shutil.copy(tiny_translation.checkpoint, path)
    checkpoint = Checkpoint.read(path)
    task, _ = checkpoint.task_by(Loading("kv"), tiny_translation.data)
    os.utime(path, (0, 0))
    with pytest.raises(UserError, match=f"^checkpoint {path} was changed while it was read"):
        checkpoint.build_model(task)


def test_a_hugging_face_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"^{tmp_path} is a model of .*`elseq-convert from-hf {tmp_path} --output DIR`"):
        elseq.load(tmp_path)
    (tmp_path / "model.pt").touch()
    assert checkpoint_path(tmp_path) == tmp_path / "model.pt"
