import logging
import re
import sys
import warnings
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils, options, utils
from hydra._internal import utils as hydra_utils
from omegaconf import OmegaConf
from omegaconf.errors import ValidationError

import elseq
from elseq import compat
from elseq.compat import commands
from elseq.errors import UserError
from tests import helpers


def test_repairs_are_applied_once():
    before = utils.import_user_module
    compat.apply()
    assert utils.import_user_module is before


def test_importing_elseq_leaves_logging_alone():
    program = "import elseq, logging; print(logging.root.handlers, logging.root.level)"
    result = helpers.run(["python", "-c", program])
    assert result.stdout == b"[] 30\n"
    assert result.stderr == b""


# --- --user-dir


@pytest.fixture
def other_copy(tmp_path):
    (tmp_path / "elseq").mkdir()
    (tmp_path / "elseq" / "__init__.py").write_text("raise AssertionError('imported')")
    return tmp_path / "elseq"


def test_elseq_is_accepted_from_anywhere(other_copy, monkeypatch, caplog):
    commands._warn_once.cache_clear()
    monkeypatch.chdir(other_copy.parent.parent)
    with caplog.at_level(logging.WARNING):
        for user_dir in (helpers.USER_DIR, f"{helpers.USER_DIR}/", "elseq", None):  # "elseq": not here
            utils.import_user_module(Namespace(user_dir=user_dir and str(user_dir)))
        assert caplog.messages == []
        for _ in range(2):
            utils.import_user_module(Namespace(user_dir=str(other_copy)))
    imported = Path(elseq.__file__).parent
    assert caplog.messages == [f"--user-dir {other_copy} is not used: elseq was already imported from {imported}"]


def test_other_copy_without_the_repair(other_copy, without):
    without(utils, "import_user_module")
    with pytest.raises(ImportError, match="not globally unique"):
        utils.import_user_module(Namespace(user_dir=str(other_copy)))


def test_other_plugins_are_imported(tmp_path, monkeypatch):
    (tmp_path / "plugin_of_a_test").mkdir()
    (tmp_path / "plugin_of_a_test" / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", sys.path[:])
    utils.import_user_module(Namespace(user_dir=str(tmp_path / "plugin_of_a_test")))
    assert sys.modules.pop("plugin_of_a_test")
    with pytest.raises(FileNotFoundError):
        utils.import_user_module(Namespace(user_dir=str(tmp_path / "no_plugin")))


# --- fairseq-validate


def test_validation_needs_no_task(tiny_translation, without):
    command = ["fairseq-validate", tiny_translation.data, "--path", tiny_translation.checkpoint, "--cpu"]
    command += ["--max-tokens=500", "--num-workers=0"]
    assert "valid on 'valid' subset | loss" in helpers.run_here(command).stdout
    without(options, "parse_args_and_arch")
    with pytest.raises(KeyError):
        helpers.run_here(command)


def test_validation_of_our_models_under_stock(tiny_multi_query, without, tmp_path):
    state = checkpoint_utils.load_checkpoint_to_cpu(str(tiny_multi_query.checkpoint))
    state[
        "cfg"
    ].model._name = "elseq_transformer"  # as --arch elseq_transformer: its options are checked when it is built
    torch.save({**state, "cfg": OmegaConf.to_container(state["cfg"])}, tmp_path / "model.pt")
    command = ["fairseq-validate", tiny_multi_query.data, "--path", tmp_path / "model.pt", "--cpu"]
    command += ["--max-tokens=500", "--num-workers=0", "--task=elseq_translation"]
    losses = {
        loss
        for mode in ("stock", "el")
        for loss in re.findall(
            r"valid on 'valid' subset \| loss ([\d.]+)", helpers.run_here([*command, "--decode-attention", mode]).stdout
        )
    }
    assert len(losses) == 1
    for name in ("overwrite_args_by_name", "load_checkpoint_to_cpu", "load_model_ensemble_and_task"):
        without(checkpoint_utils, name)
    with pytest.raises(ValidationError):
        helpers.run_here([*command, "--decode-attention", "stock"])


@pytest.mark.parametrize("command", ["generate", "interactive", "eval-lm", "validate"])
def test_checkpoint_that_is_not_named(language_model_data, command, without):
    command = [f"fairseq-{command}", language_model_data, "--cpu", "--max-tokens=500", "--task=language_modeling"]
    result = helpers.run_here(command, check=False)
    assert (result.returncode, result.stderr) == (1, "elseq: error: --path is missing: give the checkpoint\n")
    without(options, "parse_args_and_arch")
    if command[0] in ("fairseq-interactive", "fairseq-eval-lm"):
        with pytest.raises((AttributeError, TypeError)):
            helpers.run_here(command, check=False)


def test_training_without_an_architecture(translation_data, without):
    command = ["fairseq-train", translation_data, "--cpu", "--max-tokens=500"]
    result = helpers.run_here(command, check=False)
    assert (result.returncode, result.stderr) == (1, "elseq: error: --arch is missing: give the architecture\n")
    without(options, "parse_args_and_arch")
    with pytest.raises(RuntimeError):
        helpers.run_here(command)


# --- fairseq-interactive


@pytest.mark.parametrize(
    "option", ["--score-reference", "--print-alignment soft", "--lm-path nothing.pt", "--prefix-size 1"]
)
def test_options_that_interactive_lacks(tiny_translation, option, without):
    command = ["fairseq-interactive", tiny_translation.data, "--path", tiny_translation.checkpoint, "--cpu"]
    command += ["--beam=1", *option.split()]
    result = helpers.run_here(command, input=b"w1 w2 w3\n", check=False)
    name = option.removesuffix(" nothing.pt").removesuffix(" 1")
    sentence = f"fairseq-interactive does not know {name}: use fairseq-generate, or leave it out"
    assert (result.returncode, result.stderr) == (1, f"elseq: error: {sentence}\n")
    without(options, "parse_args_and_arch")
    if name in ("--lm-path", "--prefix-size"):  # passed over in silence
        assert "H-0" in helpers.run_here(command, input=b"w1 w2 w3\n").stdout
    else:
        with pytest.raises((KeyError, ValueError)):
            helpers.run_here(command, input=b"w1 w2 w3\n")


def test_generate_keeps_these_options(tiny_translation):
    command = ["fairseq-generate", tiny_translation.data, "--path", tiny_translation.checkpoint, "--cpu", "--beam=1"]
    for option in (["--score-reference"], ["--print-alignment", "soft"], ["--prefix-size=1"]):
        assert "H-0" in helpers.run_here([*command, "--num-workers=0", *option]).stdout


# --- Hydra


def fail(error):
    raise error


def test_user_error_passes_hydra(capsys, without):
    with pytest.raises(UserError, match="bad input"):
        hydra_utils.run_and_report(lambda: fail(UserError("bad input")))
    with pytest.raises(AssertionError):
        hydra_utils.run_and_report(lambda: fail(AssertionError("--path required")))
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit):
        hydra_utils.run_and_report(lambda: fail(ValueError("a fault")))
    assert "ValueError: a fault" in capsys.readouterr().err
    without(hydra_utils, "is_under_debugger")
    with pytest.raises(SystemExit):
        hydra_utils.run_and_report(lambda: fail(UserError("bad input")))


# --- warnings


@pytest.mark.parametrize(
    "category, message",
    [
        (UserWarning, "hydra.experimental.compose() is no longer experimental. Use hydra.compose()"),
        (UserWarning, "\nThe version_base parameter is not specified.\nPlease specify"),
        (UserWarning, "\nThe strict flag in the compose API is deprecated."),
        (UserWarning, "\n'config' is validated against ConfigStore schema with the same name."),
        (UserWarning, "In 'config': Usage of deprecated keyword in package header '# @package _group_'."),
        (UserWarning, "'pin_memory' argument is set as true but no accelerator is found, then"),
        (UserWarning, "Support for mismatched key_padding_mask and attn_mask is deprecated. Use"),
        (UserWarning, "Support for mismatched src_key_padding_mask and mask is deprecated. Use"),
        (FutureWarning, "`torch.cuda.amp.autocast(args...)` is deprecated. Please use"),
    ],
)
def test_warnings_about_old_code_are_silenced(category, message):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        commands.silence_old_code()
        warnings.warn(message, category, stacklevel=1)
        warnings.warn("something else is deprecated", category, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["something else is deprecated"]
