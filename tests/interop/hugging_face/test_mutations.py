"""Folders that were damaged, or made to do damage: each ends in a model or one sentence, soon, in little memory."""

import collections
import copy
import json
import os
import random
import resource
import shutil
import signal
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import elseq
from elseq.cli import convert
from elseq.errors import UserError
from elseq.interop.hugging_face.families import BART, GPT2
from tests.interop.hugging_face.making import BART_NAMES, BART_SIZES, GPT2_NAMES, GPT2_SIZES, save_tokenizer

SEEDS = [range(8), pytest.param(range(8, 24), marks=pytest.mark.slow)]  # of changes to each file
SECONDS = 20
BYTES = 2**30
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, 10**30, 10**400, 0.5, -0.0, 1e308, 1e-320),
    *(float("nan"), float("inf"), -float("inf"), "", "text", "0", "\0", "\ud800", "../../etc", "<s>", "x" * 10_000),
    *([], [1], [None], [[]], ["a", "b"], {}, {"a": 1}, {"": {}}, {"__float__": "NaN"}, ["</s>"] * 1000),
]
TEXTS = {
    "empty": b"",
    "list": b"[]",
    "number": b"1e999",
    "null": b"null",
    "not a number": b"NaN",
    "nested": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "digits": b'{"vocab_size": ' + b"9" * 100_000 + b"}",
    "nothing": b"\0" * 1000,
    "line ends": b"\r\n" * 1000,
}


def make_folder(folder, kind):
    """A model of either family without transformers, with all files that one may have."""
    family, names, sizes = {"bart": (BART, BART_NAMES, BART_SIZES), "gpt2": (GPT2, GPT2_NAMES, GPT2_SIZES)}[kind]
    end = 2 if kind == "bart" else len(names) - 1
    symbols = {"bos_token_id": 0 if kind == "bart" else end, "eos_token_id": end}
    symbols |= {"decoder_start_token_id": 2, "forced_eos_token_id": 2, "pad_token_id": 1} if kind == "bart" else {}
    config = {"model_type": kind, "vocab_size": len(names), "dtype": "float32", **sizes, **symbols}
    config |= {"task_specific_params": {"summarization": {"num_beams": 4}}, "num_hidden_layers": 2}
    settings = {"num_beams": 2, "early_stopping": True, "length_penalty": 2.0, "max_length": 20, "do_sample": False}
    torch.manual_seed(1)
    tensors = {name: torch.randn(shape) for name, shape in family.shapes(family.defaults | config).items()}
    token = {"content": "<mask>", "special": True, "lstrip": True, "rstrip": False}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    save_tokenizer(folder, names)
    added = {"added_tokens_decoder": {"7": token}} if kind == "bart" else {}
    contents = {
        "config.json": config,
        "generation_config.json": settings | symbols,
        "tokenizer_config.json": {"add_prefix_space": False, "model_max_length": 64, **added},
        "special_tokens_map.json": {"eos_token": names[end], "unk_token": {"content": names[end], "lstrip": False}},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    return {kind: make_folder(folder / kind, kind) for kind in ("bart", "gpt2")}


# --- what is done to a file


def places(content, place=()):
    """Where a value can be put into nested lists and objects."""
    found = [(*place, key) for key in (content if isinstance(content, dict) else range(len(content)))]
    children = [(place, content[place[-1]]) for place in found]
    return found + [it for place, child in children if isinstance(child, dict | list) for it in places(child, place)]


def with_values(content, draw, times=1):
    """JSON of which some values are others, gone, or there twice."""
    content = copy.deepcopy(content)
    for _ in range(times):
        *way, last = draw.choice(places(content))
        inner = content
        for key in way:
            inner = inner[key]
        if draw.random() < 0.2:
            del inner[last]
        else:
            inner[last] = copy.deepcopy(draw.choice(VALUES))
    text = json.dumps(content)
    if draw.random() < 0.1 and isinstance(content, dict) and content:  # the last one counts
        text = f"{text[:-1]}, {json.dumps(draw.choice(list(content)))}: {json.dumps(draw.choice(VALUES))}}}"
    return text.encode()


def with_bytes(data, draw):
    """Of which some bytes are others, or the end is gone, or a part is there twice."""
    data, kind = bytearray(data), draw.randrange(4)
    if not data:
        return b"?"
    place = draw.randrange(min(len(data), draw.choice([16, 200, 2000, 10**9])))
    if kind == 0:
        return bytes(data[:place])
    if kind == 1:
        return bytes(data[:place] + data[max(0, place - 40) :])
    for _ in range(draw.choice([1, 1, 3, 20])):
        data[min(len(data) - 1, place + draw.randrange(20))] = draw.randrange(256)
    return bytes(data)


def with_another_kind_of_file(path, draw):
    path.unlink()
    kind = draw.choice(["pipe", "folder", "link to itself", "link to nothing", "link to a device"])
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"link to itself": path, "link to nothing": "none"}.get(kind, "/dev/zero"))
    return kind


def change_json(folder, name, draw):
    path = folder / name
    data = path.read_bytes()
    kind = draw.random()
    if kind < 0.6:
        path.write_bytes(with_values(json.loads(data), draw, draw.choice([1, 1, 1, 2, 5])))
    elif kind < 0.7:
        path.write_bytes(draw.choice(list(TEXTS.values())))
    elif kind < 0.8:
        path.write_bytes(data.decode().encode(draw.choice(["utf-8-sig", "utf-16", "utf-32"])))
    elif kind < 0.9:
        path.write_bytes(with_bytes(data, draw))
    else:
        with_another_kind_of_file(path, draw)


def change_merges(folder, name, draw):
    path = folder / name
    if draw.random() < 0.8:
        path.write_bytes(draw.choice([with_bytes(path.read_bytes(), draw), draw.choice(list(TEXTS.values()))]))
    else:
        with_another_kind_of_file(path, draw)


def with_other_tensors(header, draw):
    """A header that holds, and says something else of the same bytes."""
    name = draw.choice(list(header))
    tensor, kind = header[name], draw.randrange(4)
    if kind == 0:
        tensor["dtype"] = draw.choice(["I32", "U32"])
    elif kind == 1:
        tensor |= {"dtype": draw.choice(["F16", "BF16", "I16"]), "shape": [*tensor["shape"], 2]}
    elif kind == 2:
        tensor["shape"] = draw.choice([tensor["shape"][::-1], [1, *tensor["shape"]], [10**9, 10**9, 0]])
    else:
        header[draw.choice(["", "model.", "module." + name, name * 100, "h.99999999999.ln_1.bias"])] = header.pop(name)
    return header | draw.choice([{}, {"__metadata__": {"format": "tf"}}])


def change_safetensors(folder, name, draw):
    path = folder / name
    data = path.read_bytes()
    kind = draw.random()
    size = int.from_bytes(data[:8], "little")
    if kind < 0.6:
        header = json.loads(data[8 : 8 + size])
        header = json.dumps(with_other_tensors(header, draw)).encode() if kind < 0.3 else with_values(header, draw)
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    elif kind < 0.7:
        size = draw.choice([0, 1, size - 1, size + 1, 10**6, 2**63, 2**64 - 1])
        path.write_bytes(size.to_bytes(8, "little") + data[8:])
    elif kind < 0.9:
        path.write_bytes(with_bytes(data, draw))
    else:
        with_another_kind_of_file(path, draw)


TENSORS = {
    "meta": lambda tensor: tensor.to("meta"),
    "sparse": lambda tensor: tensor.to_sparse(),
    "sparse rows": lambda tensor: tensor.to_sparse_csr() if tensor.dim() == 2 else tensor.to_sparse(),
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    "expanded": lambda tensor: torch.ones(1).expand(tensor.shape),
    "very much expanded": lambda tensor: torch.ones(1).expand(10**9, 10**6),
    "whole": lambda tensor: tensor.long(),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "small": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "double": lambda tensor: tensor.double(),
    "half": lambda tensor: tensor.half(),
    "true": lambda tensor: tensor > 0,
    "NaN": lambda tensor: tensor * float("nan"),
    "turned": lambda tensor: tensor.clone().t() if tensor.dim() == 2 else tensor.flip(0),
    "scalar": lambda tensor: torch.tensor(1.0),
    "none": lambda tensor: torch.empty(0),
    "more": lambda tensor: tensor[None, None],
    "parameter": lambda tensor: torch.nn.Parameter(tensor),
    "packed": lambda tensor: torch.nn.utils.rnn.pack_sequence([tensor]),
    "list": lambda tensor: [tensor],
    "text": lambda tensor: "tensor",
    "nothing": lambda tensor: None,
}
OBJECTS = [
    lambda tensors: {"state_dict": tensors},
    lambda tensors: {"model": tensors, "epoch": 3},
    lambda tensors: list(tensors.items()),
    lambda tensors: dict(enumerate(tensors.values())),
    lambda tensors: {},
    lambda tensors: None,
    lambda tensors: collections.OrderedDict(tensors),
    lambda tensors: {**tensors, 7: torch.ones(1)},
    lambda tensors: {**tensors, "": torch.ones(1), "model.": torch.ones(1), ".": torch.ones(1)},
    lambda tensors: {name.upper(): tensor for name, tensor in tensors.items()},
    lambda tensors: {name + "\n\0": tensor for name, tensor in tensors.items()},
    lambda tensors: dict.fromkeys(tensors, next(iter(tensors.values()))),
]


def change_pickle(folder, name, draw):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    kind, is_old = draw.random(), draw.random() < 0.3
    if kind < 0.4:
        name = draw.choice(list(tensors))
        tensors[name] = draw.choice(list(TENSORS.values()))(tensors[name])
    elif kind < 0.55:
        tensors = draw.choice(OBJECTS)(tensors)
    torch.save(tensors, path, _use_new_zipfile_serialization=not is_old)
    if kind >= 0.95:
        with_another_kind_of_file(path, draw)
    elif kind >= 0.9 and not is_old:  # what little bytes may unpack to
        with zipfile.ZipFile(path) as old:
            contents = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_DEFLATED) as new:
            for name, data in contents.items():
                new.writestr(name, data)
    elif kind >= 0.55:
        path.write_bytes(with_bytes(path.read_bytes(), draw))


def change_index(folder, name, draw):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "part.safetensors")
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, "part.safetensors")}))
    change_json(folder, name, draw)


def change_tokenizer(folder, name, draw):
    """tokenizer.json, alone or beside the other files."""
    rows = json.loads((folder / "vocab.json").read_text())
    merges = [line.split(" ") for line in (folder / "merges.txt").read_text().splitlines()[1:]]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    end = "</s>" if "</s>" in rows else "<|endoftext|>"
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": rows[end], "content": end, **flags}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "vocab": rows, "merges": merges},
    }
    (folder / name).write_text(json.dumps(content))
    if draw.random() < 0.7:
        (folder / "vocab.json").unlink()
        (folder / "merges.txt").unlink()
    change_json(folder, name, draw)


CHANGES = {
    "config.json": change_json,
    "generation_config.json": change_json,
    "tokenizer_config.json": change_json,
    "special_tokens_map.json": change_json,
    "vocab.json": change_json,
    "merges.txt": change_merges,
    "tokenizer.json": change_tokenizer,
    "model.safetensors": change_safetensors,
    "pytorch_model.bin": change_pickle,
    "model.safetensors.index.json": change_index,
}


# --- what comes of it


class TooSlow(BaseException):
    pass


def ended(folder, output, monkeypatch):
    """Convert a folder, and load what is written, within the limits; returns the sentence, or None for a result."""

    def stop(*_):
        raise TooSlow

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    monkeypatch.setattr(sys, "argv", ["elseq-convert", "from-hf", str(folder), "--output", str(output)])
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, limits[1]))
    try:
        convert.main()
        elseq.load(output, device="cpu")
    except UserError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    return None


@pytest.mark.parametrize("seeds", SEEDS, ids=str)
@pytest.mark.parametrize("name", CHANGES)
def test_each_ends_in_a_result_or_a_sentence(originals, tmp_path, monkeypatch, capsys, name, seeds):
    for seed in seeds:
        draw = random.Random(f"{name} {seed}")
        folder, output = tmp_path / f"theirs{seed}", tmp_path / f"ours{seed}"
        shutil.copytree(originals[draw.choice(list(originals))], folder)
        CHANGES[name](folder, name, draw)
        sentence = ended(folder, output, monkeypatch)
        if sentence is not None:
            assert "\n" not in sentence and 20 < len(sentence) < 1000, (seed, sentence)
            assert not output.exists(), seed
    capsys.readouterr()
