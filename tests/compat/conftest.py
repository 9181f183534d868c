import inspect

import pytest


@pytest.fixture
def without(monkeypatch):
    """Take a repair away again: `without(owner, name)` gives `owner.name` back to fairseq."""

    def undo(owner, name):
        monkeypatch.setattr(owner, name, inspect.unwrap(getattr(owner, name)))

    return undo
