"""A folder is replaced as a whole, or not at all."""

import io
from pathlib import Path

import pytest
import torch

from elseq.errors import UserError
from elseq.interop.output import check_output_folder, new_folder, save


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


def test_an_input_by_another_name(tmp_path):
    """A tokenizer that is linked into the folder of the model."""
    folder, data = tmp_path / "out", tmp_path / "data"
    folder.mkdir()
    data.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (data / "tokenizer.json").symlink_to(folder / "tokenizer.json")
    with pytest.raises(UserError, match="out: tokenizer.json is an input: give another file"):
        check_output_folder(folder, True, ("*.json",), data)


@pytest.mark.parametrize(
    "interruption, raised, reason",
    [
        (
            OSError(28, "No space left on device"),
            UserError,
            "out.pt cannot be written .No space left on device.: choose",
        ),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_an_interruption_of_torch(tmp_path, monkeypatch, interruption, raised, reason):
    """What it raises itself is a RuntimeError about the end of the archive."""
    (tmp_path / "out.pt").write_text("precious")

    interruptions = [interruption]

    class Interrupted(io.FileIO):
        def write(self, content):
            if interruptions and self.tell() > 1000:
                raise interruptions.pop()
            return super().write(content)

    monkeypatch.setattr(Path, "open", lambda path, mode: Interrupted(path, mode))
    with pytest.raises(raised, match=reason):
        save({name: torch.zeros(300) for name in "abc"}, tmp_path / "out.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["out.pt"]
    assert (tmp_path / "out.pt").read_bytes() == b"precious"


def test_names_that_are_there_already_are_not_taken(tmp_path, monkeypatch):
    """What somebody foresaw, or left: a folder of that name, or a link."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    monkeypatch.setattr("elseq.files.secrets.token_hex", lambda bytes: "0")
    (tmp_path / "out.0.tmp").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="out cannot be written .File exists."), new_folder(tmp_path / "out"):
        pass
    assert contents(tmp_path / "precious") == {"file": "mine"}
    assert (tmp_path / "out.0.tmp").is_symlink()


def test_a_link_goes_on_to_name_its_folder(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "out").symlink_to("there")
    with new_folder(tmp_path / "out") as new:
        (new / "file").write_text("new")
    assert (tmp_path / "out").is_symlink()
    assert contents(tmp_path / "there") == {"file": "new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "there"]


def test_a_folder_with_an_input_is_not_replaced(tmp_path):
    out, model = tmp_path / "out", tmp_path / "model.pt"
    out.mkdir()
    model.write_text("")
    (out / "model.pt").symlink_to(model)
    (tmp_path / "other").symlink_to(out)
    names = ("model.pt", "dict.txt")
    with pytest.raises(UserError, match="holds other files too, such as model.pt"):  # a link is none of ours
        check_output_folder(out, True, names, model)
    (out / "model.pt").unlink()
    (out / "model.pt").write_text("")
    check_output_folder(out, True, names, model)
    for source in (
        out / "model.pt",
        tmp_path / "other" / "model.pt",
        out,
        tmp_path / "out" / ".." / "out" / "dict.txt",
    ):
        with pytest.raises(UserError, match="out holds what is to be converted: give another folder"):
            check_output_folder(out, True, names, model, source)
    (out / "dict.txt").mkdir()
    with pytest.raises(UserError, match="holds other files too, such as dict.txt"):
        check_output_folder(out, True, names, model)
