"""Lines of text in, whole files out."""

import codecs
import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from elseq.errors import UserError


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, without their ends.

    A line ends at a line feed, and a carriage return before it is dropped. Form feeds, U+2028 and the like are text, as
    they are to fairseq. A byte order mark is none.

    Raises:
        UserError: a file that cannot be read or is empty, or a line that is not UTF-8.
    """
    lines = 0
    try:
        with path.open("rb") as file:
            for line in decode_lines(file, path):
                lines += 1
                yield line
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path") from error
    if not lines:
        raise UserError(f"{path} is empty: give a file with one example a line")


def decode_lines(lines: Iterable[bytes], name: object) -> Iterator[str]:
    """As `read_lines`, of lines as a binary file has them.

    Args:
        lines: with their ends.
        name: what to call the file in an error.

    Raises:
        UserError: a line that is not UTF-8.
    """
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"line {number} of {name} is not valid UTF-8: convert the file with iconv") from error


def check_ordinary(path: str | os.PathLike, largest: int | None = None) -> None:
    """Before a file is opened that a name in a folder leads to: a pipe never ends, and a device never either.

    Args:
        path: whether there is anything is found by opening it.
        largest: bytes that the file may have.

    Raises:
        UserError: something that is no ordinary file, or is too large.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise UserError(f"{path} is a pipe or a device: give an ordinary file")
    if largest is not None and found.st_size > largest:
        raise UserError(f"{path} has {found.st_size:,} bytes, and such files have {largest:,} at most: give another")


def check_output_file(output: Path, *inputs: Path) -> None:
    """
    Args:
        output: the file that is to be written.
        inputs: what it is made of.

    Raises:
        UserError: it cannot be, or it is one of the inputs.
    """
    try:
        exists = output.exists()
    except OSError as error:  # a name that is too long
        raise UserError(f"--output {output} cannot be written ({error.strerror}): give another") from error
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: give the name of a file")
    if not output.resolve().parent.is_dir():
        raise UserError(f"--output {output} is in a folder that does not exist: make the folder")
    if not exists:
        return
    if not output.is_file():
        raise UserError(f"--output {output} is no ordinary file: give the name of one, or leave the option out")
    if any(path.exists() and output.samefile(path) for path in inputs):
        raise UserError(f"--output {output} is an input: give another file")


def check_overwrite(output: Path, overwrite: bool) -> None:
    """
    Raises:
        UserError: there is something that is not to be replaced.
    """
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists already: give another --output, or --overwrite")


@contextlib.contextmanager
def written_whole(path: Path, mode: str = "w") -> Iterator[IO]:
    """A file to write ("w": UTF-8 text, "wb": bytes) that takes the place of `path` when all of it is there.

    An interruption or an error leaves what was at `path` before. A link goes on to name its file.

    Raises:
        UserError: the file cannot be written, or is none (a folder, a pipe, a device).
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        raise UserError(f"{path} cannot be written (it is no ordinary file): choose another place")
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with temporary.open(mode, **text) as file:
            yield file
        temporary.replace(target)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
