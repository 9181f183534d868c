"""--user-dir of all commands, and elseq-user-dir, which prints what fairseq's takes, wherever it is called."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import elseq
from elseq.benchmark import measure, runs
from elseq.errors import UserError
from tests import helpers
from tests.measuring import take_turns_here

ARCHITECTURE = """
from fairseq.models import register_model_architecture
from fairseq.models.transformer import base_architecture


@register_model_architecture("transformer", "{name}_big")
def big(args):
    args.decoder_attention_heads = getattr(args, "decoder_attention_heads", 4)
    base_architecture(args)
"""
MODEL = """
from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import TransformerModel, base_architecture


@register_model("{name}")
class OfAReader(TransformerModel):
    encoder = property(lambda self: self.reader)

    def __init__(self, args, encoder, decoder):
        super().__init__(args, encoder, decoder)
        self.reader = self._modules.pop("encoder")


register_model_architecture("{name}", "{name}_big")(base_architecture)
"""
LACKING = "is unknown, and its configuration lacks --decoder-attention-heads, without which it cannot be decoded"


@pytest.fixture
def save_plugin(tmp_path, tiny_translation, request, monkeypatch):
    """Makes the folder of a plugin with an architecture, and a checkpoint of that."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    folder = tmp_path / f"plugin_of_{re.sub(r'[^a-z]', '_', request.node.name)}"

    def save(code, change=lambda state: None):
        folder.mkdir()
        (folder / "__init__.py").write_text(code.format(name=folder.name))
        state = torch.load(tiny_translation.checkpoint)
        model = state["cfg"]["model"]
        model.arch = model._name = f"{folder.name}_big"
        change(state)
        torch.save(state, tmp_path / "model.pt")
        for name in tiny_translation.data.glob("dict*"):
            (tmp_path / name.name).write_bytes(name.read_bytes())
        return folder, tmp_path / "model.pt"

    yield save
    sys.modules.pop(folder.name, None)


@pytest.fixture
def plugin(save_plugin):
    """The number of heads is the plugin's; a checkpoint that has it decodes without the plugin."""
    return save_plugin(ARCHITECTURE, lambda state: delattr(state["cfg"]["model"], "decoder_attention_heads"))


def test_python(plugin, tiny_translation):
    folder, checkpoint = plugin
    with pytest.raises(UserError, match=f"the architecture '{folder.name}_big' {LACKING}.* by --user-dir"):
        elseq.load(checkpoint)
    with pytest.raises(UserError, match="^user_dir .*/nowhere does not exist: give the folder of a plugin$"):
        elseq.load(checkpoint, user_dir=folder / "nowhere")
    found = elseq.load(checkpoint, user_dir=folder).generate(["w1 w2"])
    assert found == elseq.load(tiny_translation.checkpoint).generate(["w1 w2"])


def test_a_model_class_with_parameters_of_its_own(save_plugin, tiny_translation):
    def rename(state):
        state["model"] = {re.sub("^encoder", "reader", name): each for name, each in state["model"].items()}

    folder, checkpoint = save_plugin(MODEL, rename)
    with pytest.raises(
        UserError, match=f"the architecture '{folder.name}_big' is unknown: name the folder of the plug"
    ):
        elseq.load(checkpoint)
    model = elseq.load(checkpoint, user_dir=folder)
    assert "reader.layers.0.fc1.weight" in model.model.state_dict()
    assert model.generate(["w1 w2"]) == elseq.load(tiny_translation.checkpoint).generate(["w1 w2"])


def test_a_plain_transformer_needs_no_plugin(save_plugin, tiny_translation, tmp_path):
    folder, checkpoint = save_plugin(ARCHITECTURE)
    command = ["elseq-generate", "--model", checkpoint, "--output", tmp_path / "output"]
    logged = helpers.run_here(command, b"w1 w2\nw3 w4 w5\n").stderr
    assert logged.count(f"the architecture '{folder.name}_big' is not registered: decoded as transformer,") == 1
    expected = elseq.load(tiny_translation.checkpoint).generate(["w1 w2", "w3 w4 w5"])
    assert (tmp_path / "output").read_text().splitlines() == expected
    assert folder.name not in sys.modules


@pytest.mark.parametrize("command", ["generate", "heads", "to-fairseq", "to-hf", "benchmark"])
def test_commands(plugin, tiny_translation, tmp_path, monkeypatch, command):
    take_turns_here(monkeypatch, runs, measure.measure)
    folder, checkpoint = plugin
    other = tmp_path / f"{folder.name}_other"
    other.mkdir()
    (other / "__init__.py").write_text("")
    command = {
        "generate": ["elseq-generate", "--model", checkpoint],
        "heads": ["elseq-convert", "heads", checkpoint, "--num-kv-heads=1"],
        "to-fairseq": ["elseq-convert", "to-fairseq", checkpoint, "--output", tmp_path / "plain.pt"],
        "to-hf": ["elseq-convert", "to-hf", checkpoint, "--output", tmp_path / "folder"],
        "benchmark": [
            "elseq-benchmark",
            checkpoint,
            "--repeats=1",
            "--batch-sizes=1",
            "--beams=1",
            "--source-length=5",
        ],
    }[command]
    if command[0] == "elseq-benchmark":
        command += [
            "--data",
            tiny_translation.data,
            "--output",
            tmp_path / "benchmark",
            "--modes=kv",
            "--output-length=3",
        ]
    if command[0] == "elseq-generate":
        command += ["--output", tmp_path / "output"]
    result = helpers.run_here(command, b"w1 w2\n", check=False)
    assert (result.returncode, LACKING in result.stderr) == (1, True)
    result = helpers.run_here([*command, "--user-dir", f"{folder}:{other}"], b"w1 w2\n", check=False)
    if "to-hf" in command:
        assert "BART" in result.stderr and "unknown" not in result.stderr  # which it is not
    else:
        assert result.returncode == 0, result.stderr
    assert sys.modules.pop(other.name)


def test_folders_for_fairseq(plugin, tiny_translation, tmp_path, monkeypatch):
    folder, checkpoint = plugin
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    made = helpers.run_here(["elseq-user-dir", folder]).stdout.strip()
    assert Path(made).parents[2] == tmp_path / "cache" and Path(made).is_dir()
    command = ["fairseq-generate", tiny_translation.data, "--path", checkpoint, "--cpu", "--num-workers=0"]
    command += ["--task=elseq_translation", "--decode-attention=el", "--user-dir", made]
    assert helpers.run(command, check=True).stdout.count(b"\nH-") == 21


def test_folders_that_do_not_exist_or_cannot_be_made(tmp_path, monkeypatch):
    def error(*folders):
        ended = helpers.run_here(["elseq-user-dir", *folders], check=False)
        assert ended.returncode == 1
        return ended.stderr

    assert error(tmp_path / "nowhere") == f"elseq: error: {tmp_path}/nowhere is no folder: give those of plugins\n"
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    reason = r"cannot be made \(Not a directory\): set XDG_CACHE_HOME to another folder"
    sentence = f"/dev/null/elseq/user_dirs/elseq_{tmp_path.name}_.{{8}} {reason}"
    assert re.fullmatch(f"elseq: error: {sentence}\n", error(tmp_path))


def test_prints_the_folder_of_the_package_and_nothing_else(tmp_path):
    command = Path(sys.executable).with_name("elseq-user-dir")
    printed = subprocess.run([command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert printed == f"{Path(elseq.__file__).parent}\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_standard_output(unbuffered):
    command = Path(sys.executable).with_name("elseq-user-dir")
    with open("/dev/full", "wb") as full:
        ended = subprocess.run([command], env={**os.environ, "PYTHONUNBUFFERED": unbuffered}, stdout=full, stderr=-1)
    assert ended.returncode == 1
    reason = b"the standard output cannot be written (No space left on device): send it to another place"
    assert ended.stderr == b"elseq: error: " + reason + b"\n"
