"""What tests of Hydra need: its jobs run in this process, with the logging of the process."""

import logging
import logging.config
from pathlib import Path
from types import SimpleNamespace

import pytest

from elseq.sweeps import gather

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Hydra takes over the log of the process, and a sweep that has no end speaks when the process ends."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # Hydra's configuration of the log closes every handler that there is, absl's together with pytest's stderr.
    monkeypatch.setattr(logging.config, "_clearExistingHandlers", lambda: None)
    at_exit = []
    register = SimpleNamespace(register=lambda *call: at_exit.append(call), unregister=lambda _: at_exit.clear())
    monkeypatch.setattr(gather, "atexit", register)
    monkeypatch.chdir(ROOT)  # with hydra_conf
    yield at_exit
    root.handlers[:] = handlers
    root.setLevel(level)
