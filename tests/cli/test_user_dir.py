"""elseq-user-dir prints what fairseq's --user-dir takes, wherever it is called."""

import subprocess
import sys
from pathlib import Path

import elseq


def test_prints_the_folder_of_the_package_and_nothing_else(tmp_path):
    command = Path(sys.executable).with_name("elseq-user-dir")
    printed = subprocess.run([command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert printed == f"{Path(elseq.__file__).parent}\n"
