"""Reading lines and writing whole files."""

import pytest

from elseq.errors import UserError
from elseq.files import read_lines, written_whole


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
