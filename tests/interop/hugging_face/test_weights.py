"""Weights as people hold them: what transformers ignores is ignored, and what it cannot load is refused by name."""

import json
import os
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from elseq.errors import UserError
from elseq.interop.hugging_face.conversion import from_hugging_face
from elseq.interop.hugging_face.folders import read_tensors
from tests.interop.hugging_face.families import test_bart, test_gpt2
from tests.interop.hugging_face.making import change, convert, make_bart, make_gpt2

transformers = pytest.importorskip("transformers")

FAMILIES = {
    "bart": (test_bart, transformers.BartForConditionalGeneration, make_bart),
    "gpt2": (test_gpt2, transformers.GPT2LMHeadModel, make_gpt2),
}
ONE = torch.ones(1)
VALUE_HEAD = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": ONE}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    for kind, (_, _, make) in FAMILIES.items():
        make(folder / kind)
    return folder


@pytest.fixture
def rewritten(originals, tmp_path):
    """A folder with other weights: those of the model, through a function."""

    def rewrite(kind, change_tensors):
        folder = tmp_path / "theirs"
        shutil.copytree(originals / kind, folder)
        tensors = change_tensors(load_file(folder / "model.safetensors"))
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return rewrite


def rename(tensors, rule):
    return {rule(name): tensor for name, tensor in tensors.items()}


@pytest.mark.few_cases(3)
@pytest.mark.parametrize(
    "kind, more, noted",
    [
        ("bart", {"model.encoder.version": ONE, "model.decoder.version": ONE, "encoder.version": ONE}, None),
        ("bart", {f"model.{side}.embed_positions._float_tensor": ONE for side in ("encoder", "decoder")}, None),
        ("bart", VALUE_HEAD, "v_head.summary.bias, v_head.summary.weight"),
        ("gpt2", {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64)}, None),
        ("gpt2", {"transformer.h.1.attn.masked_bias": torch.tensor(-1e4)}, None),
        ("gpt2", {"transformer.h.1.crossattention.bias": ONE}, None),
        ("gpt2", VALUE_HEAD, "v_head.summary.bias, v_head.summary.weight"),
        ("gpt2", {"summary.weight": ONE, "a": ONE, "b": ONE, "c": ONE, "d": ONE}, "a, b, c, d and 1 more"),
        ("gpt2", {"transformer.h.0.crossattention.c_attn.weight": ONE}, "h.0.crossattention.c_attn.weight"),
    ],
)
def test_what_transformers_ignores(rewritten, tmp_path, kind, more, noted):
    test, of_kind, _ = FAMILIES[kind]
    folder = rewritten(kind, lambda tensors: tensors | more)
    theirs = of_kind.from_pretrained(folder).eval()
    notes = [note for note in convert(folder, tmp_path / "ours").notes if "are left out" in note]
    assert [note.rpartition(": ")[2] for note in notes] == ([noted] if noted else [])
    test.assert_same_logits(theirs, tmp_path / "ours", ["auto"])


@pytest.mark.parametrize(
    "kind, rule",
    [
        ("bart", lambda name: f"model.{name}"),
        ("gpt2", lambda name: name.removeprefix("transformer.") if ".0." in name else name),
    ],
)
def test_names_that_transformers_takes(rewritten, tmp_path, kind, rule):
    test, of_kind, _ = FAMILIES[kind]
    folder = rewritten(kind, lambda tensors: rename(tensors, rule))
    convert(folder, tmp_path / "ours")
    test.assert_same_logits(of_kind.from_pretrained(folder).eval(), tmp_path / "ours", ["auto"])


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "pretrained_model.", "base_model.model."])
def test_wrappers(rewritten, kind, wrapper):
    """transformers finds none of the tensors there, and makes up all of them."""
    folder = rewritten(kind, lambda tensors: rename(tensors, lambda name: wrapper + name) | VALUE_HEAD)
    _, found = FAMILIES[kind][1].from_pretrained(folder, output_loading_info=True)
    assert len(found["missing_keys"]) > 20
    first = {"bart": "model.shared.weight", "gpt2": "transformer.wte.weight"}[kind]
    sentence = rf"lacks tensor {first.partition('.')[2]} and .*: it has {wrapper}{first} in its place, as a wrapper"
    with pytest.raises(UserError, match=sentence):
        from_hugging_face(folder)


def with_adapter(tensors):
    adapted = rename(tensors, lambda name: name.replace("c_attn.weight", "c_attn.base_layer.weight"))
    return adapted | {"transformer.h.0.attn.c_attn.lora_A.default.weight": torch.ones(2, 32)}


@pytest.mark.parametrize(
    "kind, change_tensors, sentence",
    [
        ("gpt2", with_adapter, "h.0.attn.c_attn.weight and 1 more: it has adapters, h.0.attn.c_attn.base_layer"),
        ("gpt2", lambda tensors: tensors | {"ln_f.bias": torch.zeros(32)}, "ln_f.bias twice, with and without"),
        ("bart", lambda tensors: tensors | {"encoder.layers.2.fc1.bias": ONE}, "its config.json has encoder_layers: 2"),
        ("gpt2", lambda tensors: tensors | {"h.7.ln_1.bias": ONE}, "unknown tensor h.7.ln_1.bias: .* has n_layer: 2"),
    ],
)
def test_what_cannot_be_loaded(rewritten, kind, change_tensors, sentence):
    folder = rewritten(kind, change_tensors)
    with pytest.raises(UserError, match=sentence) as error:
        from_hugging_face(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value, what", [(float("nan"), "NaN"), (-float("inf"), "infinite numbers")])
def test_numbers_that_are_none(rewritten, value, what):
    def damaged(tensors):
        tensors["transformer.h.1.mlp.c_fc.weight"][3, 4] = value
        return tensors

    with pytest.raises(UserError, match=rf"^h.1.mlp.c_fc.weight in \S+theirs has {what}: the model was damaged"):
        from_hugging_face(rewritten("gpt2", damaged))


# --- files


def in_parts(folder, parts):
    """The weights in files by their names, each with the beginnings of its tensors' names."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for part, beginning in parts.items():
        held = {name: tensor for name, tensor in tensors.items() if name.startswith(beginning)}
        (folder / part).parent.mkdir(exist_ok=True, parents=True)
        save_file(held, folder / part, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(held, part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_folder_of_the_hubs_cache(originals, tmp_path):
    """Its files are links to others, whose names are their hashes."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots" / "1").mkdir(parents=True)
    whole = tmp_path / "whole"
    shutil.copytree(originals / "gpt2", whole)
    in_parts(whole, {"model-1.safetensors": ("transformer.h.0",), "parts/2.safetensors": ("transformer",)})
    for number, path in enumerate(path for path in whole.rglob("*") if path.is_file()):
        shutil.copy(path, tmp_path / "blobs" / str(number))
        link = tmp_path / "snapshots" / "1" / path.relative_to(whole)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(os.path.relpath(tmp_path / "blobs" / str(number), link.parent))
    convert(tmp_path / "snapshots" / "1", tmp_path / "ours")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "snapshots" / "1").eval()
    test_gpt2.assert_same_logits(theirs, tmp_path / "ours", ["auto"])


@pytest.mark.parametrize("part", ["../model.safetensors", "/model.safetensors", "", ".", "a/../../b", "a\0b"])
def test_parts_that_are_elsewhere(tmp_path, part):
    save_file({"a": ONE}, tmp_path / "model.safetensors")
    folder = tmp_path / "theirs"
    folder.mkdir()
    save_file({"a": ONE}, folder / "b")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": part}}))
    with pytest.raises(UserError, match="names .*, which is no file of the folder: copy it again"):
        read_tensors(folder)


def test_a_tensor_in_two_parts(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    save_file({"a": ONE}, tmp_path / "1.safetensors")
    save_file({"a": ONE.clone(), "b": ONE}, tmp_path / "2.safetensors")
    assert set(read_tensors(tmp_path)) == {"a", "b"}
    save_file({"a": ONE + 1, "b": ONE}, tmp_path / "2.safetensors")
    with pytest.raises(UserError, match="has the tensor a twice, of two values: copy the model again"):
        read_tensors(tmp_path)


def test_adapters_alone(tmp_path):
    save_file({"a": ONE}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="no weights but those of an adapter, adapter_model.safetensors: merge it"):
        read_tensors(tmp_path)


def without_weights(originals, tmp_path):
    """The folder of a GPT-2 that lacks its weights, and these."""
    folder = tmp_path / "theirs"
    shutil.copytree(originals / "gpt2", folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return folder, tensors


@pytest.mark.parametrize(
    "tensor, sentence",
    [
        (torch.ones(1).expand(32), "pytorch_model.bin: .*one of its tensors repeats its numbers"),
        (torch.ones(32).to_sparse(), "ln_f.bias in .* is no plain tensor"),
        (torch.empty(32, device="meta"), "ln_f.bias in .* is no plain tensor"),
        (torch.quantize_per_tensor(torch.ones(32), 0.1, 0, torch.qint8), "ln_f.bias in .* is of qint8: give the model"),
        (torch.ones(32, dtype=torch.complex64), "ln_f.bias in .* is of complex64: give the model"),
        (torch.ones(32, dtype=torch.long), "ln_f.bias in .* is of int64: give the model"),
    ],
)
def test_tensors_of_other_kinds(originals, tmp_path, tensor, sentence):
    folder, tensors = without_weights(originals, tmp_path)
    torch.save(tensors | {"transformer.ln_f.bias": tensor}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=sentence):
        from_hugging_face(folder)


def test_parameters_are_tensors(originals, tmp_path):
    folder, tensors = without_weights(originals, tmp_path)
    torch.save({name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    change(folder / "config.json", transformers_version="2.0.0")
    model = from_hugging_face(folder).checkpoint["model"]
    assert not any(tensor.requires_grad or isinstance(tensor, torch.nn.Parameter) for tensor in model.values())


def test_archives_that_are_compressed(tmp_path):
    """What is mapped would be other numbers, and little bytes may unpack to many."""
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_DEFLATED) as new:
        for name, data in contents.items():
            new.writestr(name, data)
    assert path.stat().st_size < 10_000
    with pytest.raises(UserError, match="pytorch_model.bin: it is compressed, as torch never is"):
        read_tensors(tmp_path)


def test_one_tensor_under_all_names(originals, tmp_path):
    folder, tensors = without_weights(originals, tmp_path)
    numbers = torch.ones(max(tensor.numel() for tensor in tensors.values()))
    torch.save(
        {name: numbers[: tensor.numel()].view(tensor.shape) for name, tensor in tensors.items()},
        folder / "pytorch_model.bin",
    )
    with pytest.raises(UserError, match="is no plain tensor: save the model again"):
        convert(folder, tmp_path / "ours")
