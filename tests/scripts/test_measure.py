import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, Path(__file__).resolve().parents[2] / "scripts" / "measure.py"]


def test_time_and_memory(tmp_path):
    result = tmp_path / "result.json"
    program = "import time; held = bytearray(2**26); time.sleep(0.2)"
    subprocess.run([*COMMAND, result, sys.executable, "-c", program], check=True)
    found = json.loads(result.read_text())
    assert 0.2 < found["seconds"] < 60 and 2**26 < found["peak_bytes"] < 2**30


def test_a_command_that_fails_has_no_result(tmp_path):
    assert subprocess.run([*COMMAND, tmp_path / "result.json", "false"]).returncode == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_too(number, tmp_path):
    command = [*COMMAND, tmp_path / "result.json", "bash", "-c", "sleep 0.5; echo begun; exec sleep 60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.send_signal(number)
        assert process.communicate(timeout=10)[0] == b""  # so it is closed by the command, too
    assert process.returncode
    assert not list(tmp_path.iterdir())
