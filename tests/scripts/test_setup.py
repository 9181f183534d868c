"""`make setup` with Pythons that are not there, and with steps that fail. Nothing is installed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def set_up(tmp_path):
    """Runs the script in a folder of its own, with an interpreter whose environments cannot be made."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / "constraints.txt", tmp_path)

    def set_up(supported=True, said=""):
        python = tmp_path / "python"
        real = f'[ "$2" = venv ] || exec "{sys.executable}" "$@"' if supported else ":"
        python.write_text(f"#!/bin/sh\n{real}\necho '{said}'\nexit 1\n")
        python.chmod(0o755)
        command = ["bash", tmp_path / "scripts/setup.sh"]
        return subprocess.run(
            command, env={"PYTHON": str(python), "PATH": "/usr/bin:/bin"}, text=True, capture_output=True
        )

    return set_up


def test_a_python_that_is_named_is_not_replaced_by_another(set_up, tmp_path):
    run = set_up(supported=False)
    assert run.returncode == 1 and not (tmp_path / ".venv").exists()
    named = f"Python 3.11 or 3.12 is needed and {tmp_path}/python is neither"
    assert run.stderr == f"elseq: {named}: name one with PYTHON=/path/to/python3.12.\n"


@pytest.mark.skipif(not shutil.which("g++"), reason="no compiler")
@pytest.mark.parametrize(
    "said, reason",
    [
        ("OSError: [Errno 28] No space left on device", ", because the disk is full"),
        (
            "WARNING: Retrying after connection broken by NewConnectionError",
            ", because the package index was not reached",
        ),
        ("anything else", ""),
    ],
)
def test_a_step_that_fails_tells_why(set_up, said, reason):
    run = set_up(said=said)
    assert run.returncode == 1
    assert said in run.stderr and f'" did not finish{reason}; all its output is in .venv/setup.log.' in run.stderr
