"""A folder is replaced as a whole, or not at all."""

import pytest

from elseq.errors import UserError
from elseq.interop import output
from elseq.interop.output import new_folder, save


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_new_folder(tmp_path):
    folder = tmp_path / "out"
    for text in ("first", "second"):
        with new_folder(folder) as new:
            (new / "file").write_text(text)
        assert contents(folder) == {"file": text}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError("write")])
def test_errors(tmp_path, error):
    folder = tmp_path / "out"
    with new_folder(folder) as new:
        (new / "file").write_text("first")
    with pytest.raises((KeyboardInterrupt, UserError)), new_folder(folder) as new:
        (new / "file").write_text("half")
        raise error
    assert contents(folder) == {"file": "first"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_old_one_comes_back(tmp_path, monkeypatch):
    """The second of the two renamings fails."""
    folder = tmp_path / "out"
    with new_folder(folder) as new:
        (new / "file").write_text("first")
    rename = type(folder).rename

    def failing(path, target):
        if path.suffix == ".tmp":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(type(folder), "rename", failing)
    with pytest.raises(UserError, match="out cannot be written .Input/output error."), new_folder(folder) as new:
        (new / "file").write_text("second")
    assert contents(folder) == {"file": "first"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk(tmp_path, monkeypatch):
    """torch has a RuntimeError for it."""
    (tmp_path / "out.pt").write_text("precious")

    def full(checkpoint, file):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0")

    monkeypatch.setattr(output.torch, "save", full)
    with pytest.raises(UserError, match="out.pt cannot be written .PytorchStreamWriter failed.*: give another"):
        save({}, tmp_path / "out.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["out.pt"]
    assert (tmp_path / "out.pt").read_text() == "precious"
