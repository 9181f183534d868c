"""--user-dir of all commands, and elseq-user-dir, which prints what fairseq's takes, wherever it is called."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import elseq
from elseq.errors import UserError
from tests import helpers

SCRIPT = Path(__file__).parents[2] / "scripts" / "elseq-user-dir"
PLUGIN = """
from fairseq.models import register_model_architecture
from fairseq.models.transformer import base_architecture

register_model_architecture("transformer", "{name}_big")(base_architecture)
"""


@pytest.fixture
def plugin(tmp_path, tiny_translation, request, monkeypatch):
    """The folder of a plugin with an architecture, and a checkpoint of that."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    folder = tmp_path / f"plugin_of_{re.sub(r'[^a-z]', '_', request.node.name)}"
    folder.mkdir()
    (folder / "__init__.py").write_text(PLUGIN.format(name=folder.name))
    state = torch.load(tiny_translation.checkpoint)
    model = state["cfg"]["model"]
    model.arch = model._name = f"{folder.name}_big"
    torch.save(state, tmp_path / "model.pt")
    for name in tiny_translation.data.glob("dict*"):
        (tmp_path / name.name).write_bytes(name.read_bytes())
    yield folder, tmp_path / "model.pt"
    sys.modules.pop(folder.name, None)


def test_python(plugin, tiny_translation):
    folder, checkpoint = plugin
    with pytest.raises(
        UserError, match=f"the architecture '{folder.name}_big' is unknown: name the folder of the plug"
    ):
        elseq.load(checkpoint)
    with pytest.raises(UserError, match="^user_dir .*/nowhere does not exist: give the folder of a plugin$"):
        elseq.load(checkpoint, user_dir=folder / "nowhere")
    found = elseq.load(checkpoint, user_dir=folder).generate(["w1 w2"])
    assert found == elseq.load(tiny_translation.checkpoint).generate(["w1 w2"])


@pytest.mark.parametrize("command", ["generate", "heads", "to-fairseq", "to-hf", "benchmark"])
def test_commands(plugin, tiny_translation, tmp_path, command):
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
    assert (result.returncode, "is unknown: name the folder of the plugin" in result.stderr) == (1, True)
    result = helpers.run_here([*command, "--user-dir", f"{folder}:{other}"], b"w1 w2\n", check=False)
    if "to-hf" in command:
        assert "BART" in result.stderr and "unknown" not in result.stderr  # which it is not
    else:
        assert result.returncode == 0, result.stderr
    assert sys.modules.pop(other.name)


def test_folders_for_fairseq(plugin, tiny_translation, tmp_path):
    folder, checkpoint = plugin
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    call = [sys.executable, SCRIPT, folder]
    made = subprocess.run(call, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(made).is_relative_to(tmp_path / "cache") and Path(made).is_dir()
    command = ["fairseq-generate", tiny_translation.data, "--path", checkpoint, "--cpu", "--num-workers=0"]
    command += ["--task=elseq_translation", "--decode-attention=el", "--user-dir", made]
    assert helpers.run(command, check=True).stdout.count(b"\nH-") == 21
    ended = subprocess.run([sys.executable, SCRIPT, tmp_path / "nowhere"], capture_output=True, text=True)
    assert ended.returncode == 1
    assert re.fullmatch("elseq-user-dir: error: .*/nowhere is no folder: give those of plugins\n", ended.stderr)


def test_prints_the_folder_of_the_package_and_nothing_else(tmp_path):
    command = Path(sys.executable).with_name("elseq-user-dir")
    printed = subprocess.run([command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert printed == f"{Path(elseq.__file__).parent}\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_standard_output(unbuffered):
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [sys.executable, SCRIPT], env={**os.environ, "PYTHONUNBUFFERED": unbuffered}, stdout=full, stderr=-1
        )
    assert ended.returncode == 1
    expected = b"elseq-user-dir: error: the standard output cannot be written (No space left on device)\n"
    assert ended.stderr == expected
