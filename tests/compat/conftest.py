import inspect

import pytest

from tests import helpers


@pytest.fixture
def without(monkeypatch):
    """Take a repair away again: `without(owner, name)` gives `owner.name` back to fairseq."""

    def undo(owner, name):
        monkeypatch.setattr(owner, name, inspect.unwrap(getattr(owner, name)))

    return undo


@pytest.fixture
def train(translation_data, tmp_path):
    """fairseq-train of a tiny Transformer, to the temporary folder of the test."""

    def train(*options, check=False):
        command = helpers.train_command("transformer", translation_data, tmp_path, "--max-update=3", *options)
        return helpers.run_here(command, check=check)

    return train
