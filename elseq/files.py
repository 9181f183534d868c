"""Lines of text in, whole files out."""

import codecs
import contextlib
import os
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


@contextlib.contextmanager
def written_whole(path: Path, mode: str = "w") -> Iterator[IO]:
    """A file to write ("w": UTF-8 text, "wb": bytes) that takes the place of `path` when all of it is there.

    An interruption or an error leaves what was at `path` before.

    Raises:
        UserError: the file cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with temporary.open(mode, **text) as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
