"""Reading lines and writing whole files."""

import os

import pytest

from elseq.errors import UserError
from elseq.files import check_output_file, check_overwrite, read_lines, written_whole


@pytest.mark.parametrize(
    "content, lines",
    [
        ("a\nb\n", ["a", "b"]),
        ("a\nb", ["a", "b"]),
        ("a\r\n\r\nb\r\n", ["a", "", "b"]),
        ("\n", [""]),
        ("\ufeffa\n\ufeffb\n", ["a", "\ufeffb"]),
        ("a\u2028b\x0cc\x0bd\x85e\rf\nß", ["a\u2028b\x0cc\x0bd\x85e\rf", "ß"]),
    ],
)
def test_only_line_feeds_end_lines(tmp_path, content, lines):
    (tmp_path / "text").write_bytes(content.encode())
    assert list(read_lines(tmp_path / "text")) == lines


@pytest.mark.parametrize(
    "content, sentence",
    [
        (None, r"text cannot be read \(No such file or directory\): check the path"),
        (b"", "text is empty: give a file"),
        (b"good\nb\xffd\n", "line 2 of .*text is not valid UTF-8: convert the file with iconv"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        list(read_lines(tmp_path / "text"))


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read .Is a directory"):
        list(read_lines(tmp_path))


@pytest.mark.parametrize("mode, content", [("w", "zwölf\n"), ("wb", b"\xff\n")])
def test_written_whole(tmp_path, mode, content):
    with written_whole(tmp_path / "out", mode) as file:
        file.write(content)
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out").read_bytes() == (content.encode() if mode == "w" else content)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_what_was_there(tmp_path, error):
    (tmp_path / "out").write_text("precious")
    with pytest.raises(error), written_whole(tmp_path / "out") as file:
        file.write("half of it")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "precious"


@pytest.mark.parametrize("place", ["", "no/such/folder/out"])
def test_places_that_cannot_be_written(tmp_path, place):
    with pytest.raises(UserError, match="cannot be written .*: choose another place"), written_whole(tmp_path / place):
        pass
    assert not list(tmp_path.iterdir())


def test_a_link_goes_on_to_name_its_file(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for text in ("first", "second"):
        with written_whole(tmp_path / "link") as file:
            file.write(text)
        assert (tmp_path / "file").read_text() == text
    assert (tmp_path / "link").is_symlink()


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe", tmp_path / "folder"):
        with pytest.raises(UserError, match="cannot be written .it is no ordinary file.: choose"), written_whole(path):
            pass
    assert (tmp_path / "pipe").is_fifo()


def test_an_output_is_checked_before_there_is_one(tmp_path):
    path = tmp_path / "model.pt"
    path.write_text("")
    check_output_file(tmp_path / "other.pt", path, tmp_path / "missing")
    (tmp_path / "link.pt").symlink_to(path)
    for same in (path, tmp_path / "link.pt"):
        with pytest.raises(UserError, match="is an input: give another file$"):
            check_output_file(same, tmp_path / "other", path)
    os.mkfifo(tmp_path / "pipe")
    for name, sentence in (
        (".", "is a folder: give the name of a file$"),
        ("none/out", "is in a folder that does not exist: make the folder$"),
        ("x" * 300, r"cannot be written \(File name too long\): give another$"),
        ("pipe", "is no ordinary file: give the name of one, or leave the option out$"),
    ):
        with pytest.raises(UserError, match=sentence):
            check_output_file(tmp_path / name)


def test_what_is_there_is_replaced_if_asked(tmp_path):
    (tmp_path / "out").touch()
    check_overwrite(tmp_path / "out", True)
    check_overwrite(tmp_path / "new", False)
    with pytest.raises(UserError, match="out exists already: give another --output, or --overwrite"):
        check_overwrite(tmp_path / "out", False)
