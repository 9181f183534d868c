"""The scripts that prepare corpora import their neighbours."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3] / "recipes" / "corpora"))
