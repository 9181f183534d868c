"""Reading lines and writing whole files."""

import os
from pathlib import Path

import pytest

from elseq.errors import UserError
from elseq.files import cache_folder, check_output_file, check_overwrite, is_within, read_lines, written_whole


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
        with (
            pytest.raises(UserError, match="cannot be written .it is not a regular file.: choose"),
            written_whole(path),
        ):
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
        ("pipe", "is not a regular file: give the name of one, or leave the option out$"),
    ):
        with pytest.raises(UserError, match=sentence):
            check_output_file(tmp_path / name)


def test_what_is_there_is_replaced_if_asked(tmp_path):
    (tmp_path / "out").touch()
    check_overwrite(tmp_path / "out", True)
    check_overwrite(tmp_path / "new", False)
    with pytest.raises(UserError, match="out exists already: give another --output, or --overwrite"):
        check_overwrite(tmp_path / "out", False)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_temporary_name_that_is_there_already_is_not_taken(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("elseq.files.secrets.token_hex", lambda bytes: "0")
    victim = tmp_path / ("out.0.tmp" if kind == "file" else "victim")
    victim.write_text("precious")
    if kind == "link":
        (tmp_path / "out.0.tmp").symlink_to(victim)
    with pytest.raises(UserError, match="out cannot be written .File exists.: choose"), written_whole(tmp_path / "out"):
        pass
    assert victim.read_text() == "precious"
    assert (tmp_path / "out.0.tmp").exists() and not (tmp_path / "out").exists()


def test_a_name_as_long_as_names_can_be(tmp_path):
    path = tmp_path / ("\u00fc" * 127)
    with written_whole(path) as file:
        file.write("text")
    assert path.read_text() == "text"


def test_an_input_by_any_name(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("dict.de.txt", "vocab.bpe", "notes.txt", "model.pt"):
        (folder / name).write_text(name)
    (tmp_path / "link").symlink_to(folder / "model.pt")
    (tmp_path / "second").hardlink_to(folder / "model.pt")
    (tmp_path / "elsewhere").symlink_to(folder)
    monkeypatch.chdir(folder)
    with (folder / "model.pt").open() as file:
        for name in (
            tmp_path / "link",
            tmp_path / "second",
            tmp_path / "elsewhere" / "model.pt",
            folder / ".." / "model" / "model.pt",
            "model.pt",
            f"/dev/fd/{file.fileno()}",
        ):
            with pytest.raises(UserError, match="^--output .* is an input: give another file$"):
                check_output_file(Path(name), tmp_path / "missing", folder / "model.pt")
    for name in ("dict.de.txt", "vocab.bpe"):
        with pytest.raises(UserError, match="^--plot .* is an input: give another file$"):
            check_output_file(folder / name, folder, option="--plot")
    check_output_file(folder / "notes.txt", folder, folder / "model.pt")


def test_links_that_lead_in_a_circle(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    check_output_file(tmp_path / "a", tmp_path / "b")
    with written_whole(tmp_path / "a") as file:
        file.write("text")
    assert (tmp_path / "a").read_text() == "text"


def test_what_is_within_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "folder" / "out").symlink_to(tmp_path)
    folder = tmp_path / "folder"
    for path in (folder, folder / "file", tmp_path / "link" / "file", folder / "none", folder / "out"):
        assert is_within(path, folder) and is_within(path, tmp_path / "link")
    assert not is_within(tmp_path, folder)
    assert not is_within(tmp_path / "other", folder)


def test_a_line_without_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr("elseq.files.LONGEST_LINE", 2**20)
    with pytest.raises(UserError, match="^line 1 of /dev/zero has more than 1 MiB: give one text per line$"):
        list(read_lines(Path("/dev/zero")))
    (tmp_path / "file").write_text("a\n" + "b" * 2**20 + "\nc")  # the end counts
    with pytest.raises(UserError, match="line 2 of .*file has more than 1 MiB"):
        list(read_lines(tmp_path / "file"))
    (tmp_path / "file").write_text("a\n" + "b" * (2**20 - 1) + "\nc")
    assert list(map(len, read_lines(tmp_path / "file"))) == [1, 2**20 - 1, 1]


@pytest.mark.parametrize(
    "name", ["dict.src.txt", "tokenizer.json", "fairseq_symbols.json", "encoder.json", "vocab.bpe", "de.model", "code"]
)
def test_what_is_read_of_a_folder_is_no_output(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"--output {tmp_path / name} is an input: give another file"):
        check_output_file(tmp_path / name, tmp_path)
    (tmp_path / "results.json").touch()
    check_output_file(tmp_path / "results.json", tmp_path)


def test_a_user_without_a_home_folder(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 2)  # whom /etc/passwd does not have
    with pytest.raises(UserError, match="^there is no home folder for a cache: set HOME or XDG_CACHE_HOME to a"):
        cache_folder()
