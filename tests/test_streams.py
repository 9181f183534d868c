"""Standard streams that are closed or full, in processes of a shell."""

import shlex
import subprocess
import sys

import pytest

from elseq import streams
from tests import helpers

# The module alone: importing elseq takes seconds.
PROGRAM = f"import runpy, sys, os; streams = runpy.run_path({streams.__file__!r}); streams['install'](); "


def in_shell(program, redirections, *options, **environment):
    command = shlex.join([sys.executable, *options, "-c", PROGRAM + program])
    return subprocess.run(
        ["bash", "-c", f"{command} {redirections}"],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", **environment},
    )


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>/dev/null", "2> >(true)", "2</dev/null"])
@pytest.mark.parametrize("options", [[], ["-u"]], ids=["buffered", "unbuffered"])
def test_a_log_that_cannot_be_written_ends_nothing(redirection, options):
    program = (
        "[print('x' * 9999, file=sys.stderr, flush=True) for _ in range(99)]; sys.stderr.write('y'); print('done')"
    )
    ended = in_shell(program, redirection, *options)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_closed_stream_is_not_the_next_file(tmp_path, number):
    """What C++ says is written to the number 2, whatever file that is."""
    program = f"file = open({str(tmp_path / 'file')!r}, 'w'); assert file.fileno() > 2; os.system('echo said >&2'); "
    program += "os.isatty(0) or os.system('cat'); print('done')"
    ended = in_shell(program, f"{number}>&- {'' if number == 0 else '</dev/null'}")
    assert ended.returncode == 0
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("options", [[], ["-u"]], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    "redirection, reason", [(">/dev/full", "No space left on device"), ("| true; exit ${PIPESTATUS[0]}", "Broken pipe")]
)
def test_an_output_that_cannot_be_written_is_told(options, redirection, reason):
    """At the end, where Python has a traceback and the exit code 120; or at once, where print has it."""
    program = "import time; time.sleep(0.3)\ntry: print('x')\nexcept OSError: pass"
    ended = in_shell(program, redirection, *options)
    assert ended.returncode == 1
    assert ended.stderr == f"elseq: error: the standard output cannot be written ({reason}): send it to another place\n"


def test_streams_that_can_be_written_stay_as_they_were():
    program = (
        "print('\u00e4'); print('\u00f6', file=sys.stderr); "
        "print(sys.stdout.encoding, sys.stdout.errors, sys.stdout.fileno(), sys.stderr.fileno(), sys.stdout.isatty()); "
        "before = sys.stdout, sys.stderr; streams['install'](); print(before == (sys.stdout, sys.stderr))"
    )
    ended = in_shell(program, "", PYTHONIOENCODING="utf-8")
    assert (ended.returncode, ended.stderr) == (0, "\u00f6\n")
    assert ended.stdout == "\u00e4\nutf-8 strict 1 2 False\nTrue\n"


def test_streams_that_are_not_the_process_s_own_stay(monkeypatch, capsys):
    before = sys.stdout, sys.stderr
    streams.install()
    assert before == (sys.stdout, sys.stderr)
    assert streams.output_failure() is None


# --- the commands


def command(words, redirections, **environment):
    line = shlex.join([str(word) for word in words])
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(helpers.USER_DIR.parent), "PATH": "/usr/bin:/bin"}
    folder = shlex.quote(sys.executable.rpartition("/")[0])
    return subprocess.run(
        ["bash", "-c", f"{folder}/{line} {redirections}"], capture_output=True, text=True, env=environment
    )


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_fairseq_generate_without_a_log(tiny_translation, redirection):
    words = ["fairseq-generate", tiny_translation.data, "--path", tiny_translation.checkpoint, "--cpu"]
    words += ["--user-dir", helpers.USER_DIR, "--task=elseq_translation", "--log-format=tqdm"]
    ended = command(words, redirection)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.count("H-") == 21


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("redirections", ["2>&- >&- <&-", "2>/dev/full >/dev/full"])
def test_elseq_generate_without_any_stream(tiny_translation, tmp_path, redirections):
    words = ["elseq-generate", "--model", tiny_translation.checkpoint, "--data", tiny_translation.data]
    words += ["--input", tiny_translation.raw / "test.src", "--output", tmp_path / "output"]
    assert command(words, redirections).returncode == 0
    assert len((tmp_path / "output").read_text().splitlines()) == 21


def test_elseq_score_that_cannot_be_read(tiny_translation):
    text = tiny_translation.raw / "test.src"
    ended = command(["elseq-score", "rouge", text, text], ">/dev/full")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        "elseq: error: the standard output cannot be written (No space left on device): send it to another place\n"
    )
    ended = command(["elseq-score", "rouge", text, text], ">&-")
    assert (ended.returncode, ended.stderr) == (1, "elseq: error: the standard output is closed: give --output FILE\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_elseq_score_writes_its_file_all_the_same(tiny_translation, tmp_path, unbuffered):
    text = tiny_translation.raw / "test.src"
    words = ["elseq-score", "rouge", text, text, "--output", tmp_path / "scores.json"]
    ended = command(words, ">/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert ended.returncode == 1 and "the standard output cannot be written" in ended.stderr
    assert (tmp_path / "scores.json").exists()
