"""Reading lines of text, checking paths, writing whole files, and locks."""

import codecs
import contextlib
import errno
import fcntl
import json
import os
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from elseq.errors import UserError
from elseq.model_files import READ_OF_FOLDERS

LONGEST_LINE = 2**26  # bytes; input without line ends (/dev/zero) is refused before it fills the memory
# What a file system without locks says, for a file or for a folder.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL)
_LARGEST_JSON = 2**27  # bytes; a tokenizer.json of 250,000 words has 17 million


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, without line ends.

    A line ends with a line feed; a carriage return before it is dropped. Form feeds, U+2028 and the like are text, as
    in fairseq. A byte order mark is dropped.

    Raises:
        UserError: a file that cannot be read or is empty, or a line that is not UTF-8 or is longer than `LONGEST_LINE`.
    """
    lines = 0
    try:
        with path.open("rb") as file:
            for line in decode_lines(bounded_lines(file, path), path):
                lines += 1
                yield line
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path") from error
    if not lines:
        raise UserError(f"{path} is empty: give a file with one example per line")


def bounded_lines(file: IO[bytes], name: object) -> Iterator[bytes]:
    """The lines of a binary file, with line ends.

    Raises:
        UserError: a line of more than `LONGEST_LINE` bytes.
    """
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise UserError(f"line {number} of {name} has more than {LONGEST_LINE >> 20} MiB: give one text per line")
        yield line


def decode_lines(lines: Iterable[bytes], name: object) -> Iterator[str]:
    """As `read_lines`, for the lines of a binary file.

    Args:
        lines: the lines, with line ends.
        name: name of the file in errors.

    Raises:
        UserError: a line that is not UTF-8.
    """
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            yield decode_line(line)
        except UnicodeDecodeError as error:
            raise UserError(f"line {number} of {name} is not valid UTF-8: convert the file with iconv") from error


def decode_line(line: bytes) -> str:
    """The text of a line, with or without its end."""
    return line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")


def check_text(text: str, name: object, remedy: str) -> None:
    """
    Args:
        text: from JSON or from Python, which can hold half of a surrogate pair. UTF-8 cannot.
        name: what holds the text, in errors.
        remedy: what errors tell the user to do.

    Raises:
        UserError: the text has half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise UserError(f"{name} holds half a character (the lone surrogate {half}): {remedy}") from error


def read_json(path: Path) -> dict:
    """
    Raises:
        UserError: the file is missing or is not a JSON object.
    """
    check_ordinary(path, _LARGEST_JSON)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if "\\ud" in text.lower():
            check_text(json.dumps(content, ensure_ascii=False), path, "copy it again")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the folder") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply: copy it again") from error
    except ValueError as error:  # bad JSON, or bad UTF-8
        raise UserError(f"{path} is not JSON ({str(error).splitlines()[0]}): copy it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: copy it again")
    return content


def to_json(content: dict) -> str:
    """The text of a JSON file that people read."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def user_dirs(text: str) -> list[str]:
    """The folders in a value of --user-dir."""
    return [text] if os.path.exists(text) else text.split(os.pathsep)


def cache_folder() -> Path:
    """elseq's folder in the user's cache. It may be missing, and may be removed at any time.

    Raises:
        UserError: the user has no home folder.
    """
    try:
        # absolute, because programs change the current folder
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "elseq"
    except RuntimeError as error:
        raise UserError("there is no home folder for a cache: set HOME or XDG_CACHE_HOME to a folder") from error


def make_folder(folder: Path, *sources: Path | None) -> None:
    """
    Args:
        folder: the folder to write to.
        sources: files and folders that are read, or None.

    Raises:
        UserError: the folder cannot be made, is one of the sources, or shares a file with one of them.
    """
    read_from = [source for source in sources if source is not None]
    if any(folder.exists() and source.exists() and folder.samefile(source) for source in read_from):
        raise UserError(f"{folder} is the folder that is read from; name another one to write to")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        read = [path for source in read_from for path in (source.iterdir() if source.is_dir() else (source,))]
        for path in folder.iterdir():
            if path.is_file():
                check_no_input(path.stat(), path, *read)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be made ({error.strerror}); name another one") from error


def check_ordinary(path: str | os.PathLike, largest: int | None = None) -> None:
    """Check a path before it is opened: reading a pipe or a device may never end.

    Args:
        path: the path. A missing file is no error here.
        largest: maximum size in bytes.

    Raises:
        UserError: it is not a regular file, or is too large.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise UserError(f"{path} is a pipe or a device: give a regular file")
    if largest is not None and found.st_size > largest:
        raise UserError(f"{path} has {found.st_size:,} bytes, and such files have {largest:,} at most: give another")


def check_output_file(output: Path, *inputs: Path, option: str = "--output") -> None:
    """
    Args:
        output: the file to write.
        inputs: files and folders that are read. A folder means the files that are read in it.
        option: the option that names the output.

    Raises:
        UserError: the file cannot be written, or is one of the inputs.
    """
    try:
        exists = output.exists()
    except OSError as error:  # a name that is too long
        raise UserError(f"{option} {output} cannot be written ({error.strerror}): give another") from error
    if output.is_dir():
        raise UserError(f"{option} {output} is a folder: give the name of a file")
    if not real_path(output).parent.is_dir():
        raise UserError(f"{option} {output} is in a folder that does not exist: make the folder")
    if not exists:
        return
    if not output.is_file():
        raise UserError(f"{option} {output} is not a regular file: give the name of one, or leave the option out")
    check_no_input(output.stat(), f"{option} {output}", *inputs)


def check_no_input(written: os.stat_result, name: object, *inputs: Path) -> None:
    """
    Args:
        written: the file to write. Paths, links and descriptors of the same file are equal.
        name: its name in errors.
        inputs: as for `check_output_file`.

    Raises:
        UserError: the file is one of the inputs.
    """
    for path in _files_of(inputs):
        with contextlib.suppress(OSError, ValueError):  # the reader reports missing files
            if os.path.samestat(path.stat(), written):
                raise UserError(f"{name} is an input: give another file")


def check_standard_output(*inputs: Path) -> None:
    """
    Raises:
        UserError: it is closed, or is one of the inputs (`command FILE >> FILE` would never end).
    """
    if sys.stdout is None:
        raise UserError("the standard output is closed: give --output FILE")
    try:
        written = os.fstat(sys.stdout.fileno())
    except (OSError, ValueError):  # a Python object without a file
        return
    if stat.S_ISREG(written.st_mode):
        check_no_input(written, "the standard output", *inputs)


def _files_of(inputs: Iterable[Path]) -> Iterator[Path]:
    for path in inputs:
        yield path
        with contextlib.suppress(OSError, ValueError):
            if path.is_dir():
                yield from (found for found in path.iterdir() if any(map(found.match, READ_OF_FOLDERS)))


def is_within(path: Path, folder: Path) -> bool:
    """Whether a path, or its target, is a folder or is inside it."""
    named = real_path(path.parent) / path.name
    for place in {*_and_parents(named), *_and_parents(real_path(path))}:
        with contextlib.suppress(OSError, ValueError):
            if place.samefile(folder):
                return True
    return False


def _and_parents(path: Path) -> tuple[Path, ...]:
    return path, *path.parents


def real_path(path: Path) -> Path:
    """The target of a path. (`Path.resolve` raises a RuntimeError for circular links.)"""
    return Path(os.path.realpath(path))


def check_overwrite(output: Path, overwrite: bool) -> None:
    """
    Raises:
        UserError: the output exists and must not be replaced.
    """
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists already: give another --output, or --overwrite")


def fresh_path(path: Path, ending: str) -> Path:
    """A random name in the folder of a path. The caller must create it exclusively."""
    name = os.fsdecode(os.fsencode(path.name)[:200])  # a name has at most 255 bytes
    return path.with_name(f"{name}.{secrets.token_hex(8)}{ending}")


@contextlib.contextmanager
def written_whole(path: Path, mode: str = "w") -> Iterator[IO]:
    """A file to write ("w": UTF-8 text, "wb": bytes) that replaces `path` when it is complete.

    After an interruption or an error, `path` is unchanged. A link at `path` stays, and its target is replaced.

    Raises:
        UserError: the file cannot be written, or is a folder, a pipe or a device.
    """
    target = real_path(path)
    if target.exists() and not target.is_file():
        raise UserError(f"{path} cannot be written (it is not a regular file): choose another place")
    temporary = fresh_path(target, ".tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    made = False
    try:
        with temporary.open(mode.replace("w", "x"), **text) as file:
            made = True
            yield file
        temporary.replace(target)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another place") from error
    finally:
        if made:
            with contextlib.suppress(OSError):
                temporary.unlink()


def lock(file: int) -> bool:
    """Lock a file or a folder until it is closed. If the process is killed, the kernel unlocks it.

    Args:
        file: its descriptor.

    Returns:
        whether its file system has locks.

    Raises:
        BlockingIOError: another process has locked it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def save_figure(figure, path: Path) -> None:
    """Write a matplotlib figure in the format of the file name's extension.

    Raises:
        UserError: the file cannot be written.
    """
    with written_whole(path, "wb") as file:
        figure.savefig(file, format=path.suffix.removeprefix(".") or None, dpi=150)
