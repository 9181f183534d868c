"""benchmarks/gpu.sh: what it would run, and that it ends whatever its steps do."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from importlib import import_module
from pathlib import Path

import pytest

from elseq.benchmark import BENCHMARKS
from tests.system.recipes import run

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.sh"
KERNELS = ["kernel_flash_decoding", "kernel_reorder", "kernel_best_tokens"]
STEPS = [*KERNELS, "tests", "bart_large", "nvidia", "bart_large_16gb", "multi_query", "gpt2", "top_k"]
STEP = re.compile(r"(\w+), (\d+) s: (.+)")


def steps(*options):
    result = run(SCRIPT, "--dry-run", *options)
    assert result.returncode == 0, result.stderr
    return {name: (int(seconds), shlex.split(command)) for name, seconds, command in STEP.findall(result.stdout)}


def test_order_and_limits():
    found = steps()
    assert list(found) == STEPS
    assert sum(seconds for seconds, _ in found.values()) == 9 * 60
    assert sum(seconds for seconds, _ in steps("--minutes", "3").values()) <= 3 * 60


def test_the_kernels_are_tested_on_a_gpu():
    """In all cases: --quick leaves two of each test, and skips those in which Triton starts its compiler."""
    found, files = steps(), []
    for name in (*KERNELS, "tests"):
        _, command = found[name]
        assert "--quick" not in command and command[command.index("gpu") - 1] == "-m"
        files += [argument for argument in command if argument.endswith(".py")]
    collect = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", "-m", "gpu"]
    listed = subprocess.run([*collect, *files[:3]], cwd=SCRIPT.parents[1], capture_output=True, text=True).stdout
    for sizes in ("64-16-False", "64-1-False", "512-1-True", "1024-1-True"):
        assert listed.count(f"test_flash_decoding.py::test_on_a_gpu[{sizes}-") == 3  # types
    for name in ("reorder", "best_tokens"):
        assert f"test_{name}.py::test_on_a_gpu[" in listed


def test_what_is_measured():
    found = {name: command for name, (_, command) in steps().items() if command[2] == "elseq.cli.benchmark"}
    cnn_dm = ["bart_large", "bart_large_16gb"]
    assert [name for name, command in found.items() if "--no-repeat-ngram-size" in command] == cnn_dm
    modes = {name: command[command.index("--modes") + 1] for name, command in found.items() if "--modes" in command}
    assert modes == {  # what a limit may cut off comes last
        "bart_large": "el,stock-shared,huggingface,ctranslate2,kv,auto,stock-copied",
        "nvidia": "kv,el,huggingface,ctranslate2,stock-copied",
        "bart_large_16gb": "el,stock-copied,huggingface,kv",
        "gpt2": "kv,stock-copied,el,huggingface",
    }


def test_a_machine_that_has_only_python3(tmp_path):
    for name in ("bash", "dirname", "mktemp", "rm", "python3"):
        (tmp_path / name).symlink_to(shutil.which(name))
    result = run(SCRIPT, "--dry-run", PATH=tmp_path)
    assert result.returncode == 0, result.stderr
    assert all(command.startswith("python3 -m ") for _, _, command in STEP.findall(result.stdout))


@pytest.mark.parametrize(
    "options", [["--device", "cpu"], ["--device", "cpu", "--small"], ["--device", "cpu", "--dtype", "bfloat16"]]
)
def test_commands_are_understood(options):
    for _, command in steps(*options).values():
        assert command[:2] == ["python", "-m"]
        if command[2] == "elseq.cli.benchmark":
            args = import_module(f"{BENCHMARKS[command[3]]}.arguments").parse(command[4:])
            assert (args.device, args.dtype) == ("cpu", "bfloat16" if "bfloat16" in options else "float32")
            assert "--small" not in options or args.tiny if command[3] == "el-attention" else True


@pytest.mark.slow
def test_a_step_that_fails_or_takes_too_long_ends_no_other(tmp_path):
    """With a python that does not what it should."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        '#!/bin/sh\ncase "$*" in *flash*) echo "2 passed"; sleep 60 ;; *reorder*) sleep 60 ;; '
        '*best*) echo "3 skipped" ;; *top-k*) echo "1 MiB" ;; *) echo no error; exit 3 ;; esac\n'
    )
    python.chmod(0o755)
    output = tmp_path / "results"
    result = run(SCRIPT, "--device", "cpu", "--minutes", "1", "--output", output, PATH=f"{python.parent}:/usr/bin:/bin")
    assert result.returncode == 1, result.stderr
    lines = (output / "summary.md").read_text().splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ") and "step" not in line]
    assert [cells[0] for cells in table] == STEPS
    ended = ["cut off", *["failed (nothing passed)"] * 2, *["failed (3)"] * 6, "finished"]
    assert [cells[2] for cells in table] == ended
    assert [cells[3] for cells in (table[0], *table[2:4], table[-1])] == ["2 passed", "3 skipped", "no error", "1 MiB"]
    assert lines[-1] == f"Failed: {' '.join(STEPS[1:-1])}. Their logs say why."
    assert (output / "top_k.log").read_text() == "1 MiB\n"
    assert f"written: {output}" in result.stdout


@pytest.fixture
def quick_python(tmp_path):
    """In whose place every step is done at once."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "1 passed"\n')
    python.chmod(0o755)
    return f"{python.parent}:/usr/bin:/bin"


@pytest.mark.parametrize("archive", ["all.tgz", "results/all.tgz"])
def test_one_file_to_copy(quick_python, tmp_path, monkeypatch, archive):
    """In a folder named from where the script is called, as that of the results is."""
    monkeypatch.chdir(tmp_path)
    result = run(SCRIPT, "--device", "cpu", "--output", "results", "--archive", archive, PATH=quick_python)
    assert result.returncode == 0, result.stderr
    assert "Failed" not in (tmp_path / "results" / "summary.md").read_text()
    with tarfile.open(tmp_path / archive) as packed:
        names = {Path(name).name for name in packed.getnames()}
        assert packed.extractfile("./summary.md").read() == (tmp_path / "results" / "summary.md").read_bytes()
    assert names == {"", "machine.txt", "summary.md", *(f"{step}.log" for step in STEPS)}
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_all_steps_on_a_cpu(tmp_path):
    """In five minutes; with so many that none is cut off."""
    result = run(SCRIPT, "--device", "cpu", "--small", "--minutes", "30", "--output", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    table = re.findall(r"^\| (\w+) \| \d+ \| (.+?) \| (.+) \|$", (tmp_path / "summary.md").read_text(), re.MULTILINE)
    assert [(name, ended) for name, ended, _ in table] == [(name, "finished") for name in STEPS]
    assert all(figure for _, _, figure in table)
    for name in STEPS[len(KERNELS) + 1 :]:
        [path] = (tmp_path / name).glob("*.json")
        rows = json.loads(path.read_text())["rows"]
        assert any("failure" not in row for row in rows)
        assert all("not installed" in row.get("failure", "not installed") for row in rows)


@pytest.mark.slow
def test_a_step_that_is_not_begun_has_no_figure_of_a_run_before(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "1 passed"\ncase "$*" in *flash*) trap "" INT; sleep 60 ;; esac\n')
    python.chmod(0o755)
    (tmp_path / "kernel_reorder.log").write_text("7 passed\n")
    options = "--device", "cpu", "--minutes", "1", "--output", tmp_path
    assert run(SCRIPT, *options, PATH=f"{python.parent}:/usr/bin:/bin").returncode == 0
    summary = (tmp_path / "summary.md").read_text()
    assert re.search(r"kernel_reorder \| 0 \| not begun \|  \|", summary) and "7 passed" not in summary


def test_help():
    result = run(SCRIPT, "--help")
    assert result.returncode == 0 and "--small" in result.stdout and "set -" not in result.stdout


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--device", "tpu"], "--device tpu is unknown; give cpu, cuda or cuda:1"),
        (["--dtype", "int4"], "--dtype int4 is unknown; choose one of float32, float16, bfloat16"),
        (["--minutes", "0"], "--minutes is 0; give a whole number, 1 or more"),
        (["--fast"], "--fast is unknown; the options are --device, "),
        (["--output"], "--output needs a value; see --help"),
        (["--output", "/dev/null/there"], "--output /dev/null/there cannot be made; name another folder"),
        (["--archive", "/dev/null/a.tgz"], "--archive /dev/null/a.tgz cannot be written; name another file"),
    ],
)
def test_bad_options_are_one_sentence(options, sentence):
    result = run(SCRIPT, *options)
    assert result.returncode == 1
    assert result.stderr.startswith(f"elseq: error: {sentence}") and result.stderr.count("\n") == 1
