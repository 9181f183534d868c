"""What elseq-convert prints, from configurations that are made up; conversions are in test_convert*.py."""

import shlex
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

from elseq.cli import conversions
from elseq.cli.conversions import _generation_command, _note_windows, _training_command, convert_average
from elseq.errors import UserError


@pytest.mark.parametrize(
    ("task", "told"), [({}, False), ({"source_window": None}, False), ({"source_window": 6}, True)]
)
def test_windows_that_are_lost_are_told(capsys, task, told):
    _note_windows(SimpleNamespace(task=Namespace(**task)))
    assert ("reads sources of one window" in capsys.readouterr().out) == told


@pytest.mark.parametrize("tokenizer", ["tokenizer.json", "vocab.json"])
def test_command_to_generate(tokenizer):
    converted = SimpleNamespace(
        checkpoint={"cfg": {"task": {"_name": "denoising"}}},
        task_arguments=["--source-start", "<s>"],
        files={tokenizer: b""},
        generation={"beam": 4, "no_early_stop": True},
    )
    command = _generation_command(converted, Path("my folder"))
    assert command.startswith('fairseq-generate DATA --user-dir "$(elseq-user-dir)" --path ')
    assert shlex.split(command)[4:] == [
        "--path", "my folder/model.pt", "--task", "elseq_translation", "--source-start", "<s>",
        "--bpe", "hugging_face", "--tokenizer-json", f"my folder/{tokenizer}", "--beam", "4", "--no-early-stop",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (None, "elseq_translation"),
        ({"_name": "language_modeling"}, "elseq_language_modeling"),
        (Namespace(_name="mine"), "mine"),
    ],
)
def test_command_to_train(monkeypatch, task, expected):
    monkeypatch.setattr(conversions, "training_options", lambda model: ["--arch", model["_name"]])
    command = shlex.split(_training_command({"task": task, "model": {"_name": "mine"}}, Path("out.pt")))
    assert command[command.index("--arch") + 1] == "mine"
    assert command[command.index("--task") + 1] == expected
    assert "--criterion" not in command
    assert command[-4:] == ["--finetune-from-model", "out.pt", "--save-dir", "out.training"]


def test_a_folder_of_checkpoints_that_does_not_exist(tmp_path):
    given = {"checkpoints": [tmp_path / "none"], "last": 2, "by_updates": False, "overwrite": False}
    with pytest.raises(UserError, match=f"^{tmp_path}/none does not exist: check the path$"):
        convert_average(Namespace(output=tmp_path / "out.pt", **given))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"by_updates": True}, "^--by-updates needs --last N: the number of checkpoints$"),
        ({"last": 3}, "^--last 3 needs the folder of one training: give it, or leave --last out$"),
    ],
)
def test_checkpoints_that_are_not_told(tmp_path, options, sentence):
    (tmp_path / "model.pt").touch()
    given = {"checkpoints": [tmp_path / "model.pt"], "last": None, "by_updates": False, "overwrite": False} | options
    with pytest.raises(UserError, match=sentence):
        convert_average(Namespace(output=tmp_path / "out.pt", **given))
