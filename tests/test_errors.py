import os
import subprocess
import sys

import pytest
import torch

from elseq import errors
from elseq.errors import UserError


@pytest.fixture
def hooked(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda *arguments: seen.append(arguments))
    errors.install_excepthook()
    return seen


def raise_to_hook(error, module="fairseq_cli.train"):
    """As if it had been raised in a module."""
    with pytest.raises(type(error)) as raised:
        exec("raise error", {"__name__": module, "error": error})
    sys.excepthook(type(error), error, raised.tb)


def test_user_error_is_one_line(hooked, capsys):
    raise_to_hook(UserError("the file x is empty: copy it again"))
    assert capsys.readouterr().err == "elseq: error: the file x is empty: copy it again\n"
    assert hooked == []


def test_names_that_a_terminal_would_obey(hooked, capsys):
    """As those of a checkpoint's tensors."""
    raise_to_hook(UserError("x.pt has the tensor a\nelseq: all is well\x1b[2K\r and \u00e9: take another"))
    assert capsys.readouterr().err == (
        "elseq: error: x.pt has the tensor a\\nelseq: all is well\\x1b[2K\\r and \u00e9: take another\n"
    )
    assert hooked == []


def test_other_errors_go_to_the_previous_hook(hooked, capsys):
    error = ValueError("a fault")
    raise_to_hook(error)
    assert capsys.readouterr().err == ""
    assert [(kind, raised) for kind, raised, _ in hooked] == [(ValueError, error)]


def test_errors_of_a_program_that_imports_elseq_are_its_own(hooked, capsys):
    error = ValueError("--port must be a number")
    raise_to_hook(error, "service")
    assert capsys.readouterr().err == ""
    assert [raised for _, raised, _ in hooked] == [error]
    raise_to_hook(UserError("the file x is empty"), "service")
    assert capsys.readouterr().err == "elseq: error: the file x is empty\n"


def test_a_name_that_is_too_long_for_a_file(hooked, capsys):
    with pytest.raises(OSError) as error:
        os.stat("x" * 300)
    raise_to_hook(error.value)
    assert capsys.readouterr().err == f"elseq: error: {'x' * 300} is too long for the name of a file: check the path\n"


def test_interruption_is_one_line(hooked, capsys):
    class Terminated(KeyboardInterrupt):
        """As a command makes of SIGTERM."""

    raise_to_hook(Terminated())
    assert capsys.readouterr().err == "elseq: interrupted\n"
    raise_to_hook(KeyboardInterrupt())
    assert capsys.readouterr().err == "elseq: interrupted\n"
    assert hooked == []


def test_installed_twice_is_installed_once(hooked):
    hook = sys.excepthook
    errors.install_excepthook()
    assert sys.excepthook is hook


def test_error_of_a_spawned_process(hooked, capsys):
    trace = "\n\n-- Process 0 terminated with the following error:\nTraceback (most recent call last):\n  ...\n"
    spawned = torch.multiprocessing.ProcessRaisedException
    raise_to_hook(spawned(f"{trace}elseq.errors.UserError: the file x is empty\n", 0, 1))
    assert capsys.readouterr().err == "elseq: error: the file x is empty\n"
    raise_to_hook(spawned(f"{trace}ValueError: a fault\n", 0, 1))
    assert len(hooked) == 1
    raise_to_hook(spawned(f"{trace}AssertionError: --beam must be positive\n", 0, 1))
    assert capsys.readouterr().err == "elseq: error: --beam must be positive\n"


@pytest.mark.parametrize(
    "error, is_the_user_s",
    [
        (AssertionError("--sampling requires --nbest to be equal to --beam"), True),
        (ValueError("Must specify batch size either with --max-tokens or --batch-size"), True),
        (AssertionError("reset the optimizer (--reset-optimizer)"), True),
        (AssertionError("a -- b, --"), False),
        (AssertionError(), False),
        (ValueError("--beam\n{'many': 'lines'}"), False),
        (RuntimeError("--beam"), False),
    ],
    ids=str,
)
def test_fairseq_s_checks_of_its_options_are_the_user_s(error, is_the_user_s):
    assert errors.user_sentence(error) == (str(error) if is_the_user_s else None)
    with pytest.raises(UserError if is_the_user_s else type(error)), errors.options_checked():
        raise error


def test_an_argument_has_another_name_elsewhere():
    error = UserError("'gpu' cannot be used; there is cpu", "device")
    assert str(error) == "device 'gpu' cannot be used; there is cpu"
    with pytest.raises(UserError) as raised, errors.renamed(lambda name: f"--{name}"):
        raise error
    assert str(raised.value) == "--device 'gpu' cannot be used; there is cpu"
    assert raised.value.argument == "--device"


def test_further_arguments_have_other_names_too():
    error = UserError("2 is no multiple of --beam-groups; --beam is one", "--beam", ["--beam-groups"])
    with pytest.raises(UserError) as raised, errors.renamed(errors.as_keyword):
        raise error
    assert str(raised.value) == "beam 2 is no multiple of beam_groups; --beam is one"
    with pytest.raises(UserError) as back, errors.renamed(errors.as_option):
        raise raised.value
    assert str(back.value) == str(error)


def test_a_path_is_no_argument():
    error = UserError("/data/bpe/a.bpe was trained with bpe, see /x/bpe.txt: give bpe", others=["bpe"])
    with pytest.raises(UserError) as raised, errors.renamed(errors.as_option):
        raise error
    assert str(raised.value) == "/data/bpe/a.bpe was trained with --bpe, see /x/bpe.txt: give --bpe"


def test_what_is_of_no_argument_stays():
    error = UserError("device is written here too")
    with pytest.raises(UserError) as raised, errors.renamed(lambda name: f"--{name}"):
        raise error
    assert raised.value is error


def test_importing_elseq_is_enough():
    """And the exit code is 1."""
    program = "import elseq, elseq.errors; raise elseq.errors.UserError('bad input')"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "elseq: error: bad input"
    assert "Traceback" not in result.stderr
