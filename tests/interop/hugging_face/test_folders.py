"""Folders that cannot be read end in one sentence that names the file."""

import errno
import json
import os
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file

from elseq.errors import UserError
from elseq.interop.hugging_face.conversion import from_hugging_face
from elseq.interop.hugging_face.families import BART
from elseq.interop.hugging_face.folders import read_tensors, write
from tests.interop.hugging_face.making import BART_NAMES, BART_SIZES, change, save_tokenizer


@pytest.fixture
def folder(tmp_path):
    """A BART without transformers."""
    config = {"model_type": "bart", "vocab_size": len(BART_NAMES), **BART_SIZES}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shapes = BART.shapes(BART.defaults | config)
    save_file({name: torch.randn(shape) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    save_tokenizer(tmp_path, BART_NAMES)
    return tmp_path


def test_it_is_read(folder):
    assert set(from_hugging_face(folder).files) >= {"dict.txt", "dict.source.txt", "encoder.json", "vocab.bpe"}


@pytest.mark.parametrize("kind", ["longt5", "t5", "llama", None])
def test_other_families(folder, kind):
    change(folder / "config.json", model_type=kind)
    families = "bart or gpt2 or mbart or m2m_100 or marian or pegasus or blenderbot or blenderbot-small"
    with pytest.raises(UserError, match=f"is of the model_type {kind!r}: only {families} can be converted"):
        from_hugging_face(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
@pytest.mark.parametrize("is_pipe", [True, False])
def test_pipes_and_devices(folder, name, is_pipe):
    (folder / name).unlink(missing_ok=True)
    if is_pipe:
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    with pytest.raises(UserError, match=f"{name} is a pipe or a device"):
        from_hugging_face(folder)


def test_files_that_are_made_to_fill_the_memory(folder):
    with (folder / "config.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="config.json has 1,099,511,627,776 bytes, and such files have"):
        from_hugging_face(folder)
    (folder / "config.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="config.json is nested too deeply"):
        from_hugging_face(folder)


def test_weights_that_repeat_their_numbers(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**tensors, "more": torch.ones(1).expand(10**10)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin: it is damaged, or was made to fill the memory"):
        read_tensors(folder)


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("config.json", None, "config.json cannot be read .No such file or directory.: check the folder"),
        ("config.json", b"{'model_type'", "config.json is not JSON"),
        ("config.json", b"\xff\xfe", "config.json is not JSON"),
        ("config.json", b"3", "config.json holds no JSON object"),
        (
            "config.json",
            b'{"model_type": "\\ud800"}',
            r"config.json holds half a character \(the lone surrogate \\ud800\): copy",
        ),
        ("config.json", b"[" * 100_000, "config.json is nested too deeply"),
        ("generation_config.json", b'\xef\xbb\xbf{"max_length": 20}', "generation_config.json is not JSON"),
        ("generation_config.json", b"nothing", "generation_config.json is not JSON"),
        ("model.safetensors", None, "has no weights: give a folder with model.safetensors or pytorch_model.bin"),
        ("model.safetensors", b"", "model.safetensors is damaged or was cut off: copy it again"),
        ("model.safetensors", 1000, "model.safetensors is damaged or was cut off: copy it again"),
        ("vocab.json", None, "has no tokenizer"),
    ],
)
def test_damaged_files(folder, name, content, sentence):
    path = folder / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-content] if isinstance(content, int) else content)
    with pytest.raises(UserError, match=sentence) as error:
        from_hugging_face(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, settings, sentence",
    [
        ("generation_config.json", {"num_beams": "four"}, "num_beams: 'four', where a whole number of at least 1"),
        ("generation_config.json", {"length_penalty": "2.0x"}, "length_penalty: '2.0x', where a number is needed"),
        ("generation_config.json", {"max_length": [20]}, r"max_length: \[20\], where a whole number of at least 0"),
        ("generation_config.json", {"do_sample": "no"}, "do_sample: 'no', where true or false is needed"),
        ("config.json", {"num_beams": 0}, "num_beams: 0, where a whole number of at least 1 is needed"),
        ("generation_config.json", {"eos_token_id": 5}, "eos_token_id: 5, where fairseq has the end symbol, 2 in conf"),
        (
            "generation_config.json",
            {"decoder_start_token_id": 0},
            "decoder_start_token_id: 0, where fairseq has the end",
        ),
    ],
)
def test_settings_that_cannot_be_used(folder, name, settings, sentence):
    path = folder / name
    if not path.exists():
        path.write_text("{}")
    change(path, **settings)
    with pytest.raises(UserError, match=f"cannot be converted: {name} has {sentence}") as error:
        from_hugging_face(folder)
    assert "\n" not in str(error.value)


def test_forced_symbols_that_fairseq_has_not(folder):
    settings = {"forced_bos_token_id": 9, "forced_eos_token_id": 8, "max_length": 20, "eos_token_id": [2, 7]}
    settings |= {"decoder_start_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    converted = from_hugging_face(folder)
    assert converted.notes == [
        "eos_token_id [2, 7]: fairseq has 2 alone",
        "forced_bos_token_id 9 is left out: fairseq forces 0 alone",
        "forced_eos_token_id 8 is left out: fairseq forces 2 alone",
    ]
    assert converted.checkpoint["cfg"]["task"]["force_bos"] == "no"
    assert converted.generation["max_len_b"] == 19


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_quantized_weights(folder, kind):
    tensors = load_file(folder / "model.safetensors")
    name = "decoder.layers.0.fc1.weight"
    save_file(tensors | {name: tensors[name].to(kind)}, folder / "model.safetensors")
    kind = str(kind).removeprefix("torch.")
    with pytest.raises(UserError, match=f"{name} in .* is of {kind}: give the model in float32, float16 or bfloat16"):
        from_hugging_face(folder)


def test_not_a_folder(tmp_path):
    with pytest.raises(UserError, match="model.safetensors is not a folder: give that of a model"):
        from_hugging_face(tmp_path / "model.safetensors")


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    "content, sentence",
    [
        ({"a": Malicious()}, "holds more than tensors, or is damaged: give the model as model.safetensors"),
        ({"a": 1}, "does not hold named tensors"),
        ([torch.ones(1)], "does not hold named tensors"),
    ],
)
def test_pickles(tmp_path, capsys, content, sentence):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=sentence):
        read_tensors(tmp_path)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("size", [10, 2000, 5000, 100_000])
def test_pickle_that_was_cut_off(tmp_path, size):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(100_000)}, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match="pytorch_model.bin is damaged or was cut off"):
        read_tensors(tmp_path)


def test_parts(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "model-00001-of-00002.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match="00002-of-00002.safetensors, a part of the model, is missing"):
        read_tensors(tmp_path)
    save_file({"b": torch.ones(2)}, tmp_path / "model-00002-of-00002.safetensors")
    assert {name: len(tensor) for name, tensor in read_tensors(tmp_path).items()} == {"a": 1, "b": 2}
    index.write_text("{}")
    with pytest.raises(UserError, match="index.json has no weight_map"):
        read_tensors(tmp_path)


def test_a_full_disk_is_an_error_of_the_system(tmp_path):
    """A limit of files' sizes stands for it: the library itself has other errors."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OSError) as error:
            write(tmp_path, {}, {}, {"weight": torch.zeros(20_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (error.value.errno, error.value.strerror) == (errno.EFBIG, "File too large")
