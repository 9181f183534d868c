"""The lines of the input."""

import codecs
import contextlib
import hashlib
import io
import sys
from array import array
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO

from elseq.errors import UserError
from elseq.files import bounded_lines, decode_line, decode_lines
from elseq.text_files.formats import LINES_OF_TEXT, InputFormat


class InputLines:
    """The texts and the other fields of the lines of a file or of the standard input.

    `elseq.files.read_lines` defines line ends.
    """

    def __init__(self, path: Path | None, form: InputFormat = LINES_OF_TEXT, reserved: Collection[str] = ()):
        """Read all lines.

        Args:
            path: of the file; None: the standard input.
            form: the format of a line.
            reserved: names that the other fields of a line must not have.

        Raises:
            UserError: the input cannot be read, is empty or is not UTF-8, a line has more than
                `elseq.files.LONGEST_LINE` bytes, or is not as `form` says.
        """
        self.path = "the standard input" if path is None else path
        self.form = form.of(path)
        self._starts = array("q")
        try:
            with self._open(path) as file:
                self._content = self._read(file, reserved)
        except OSError as error:
            name, what = (self.path, "it") if path is None else (f"--input {path}", "the path")
            raise UserError(f"{name} cannot be read ({error.strerror}): check {what}") from error
        if not self._starts:
            raise UserError(f"{self.path} is empty: give a file with one text per line")
        self.digest = hashlib.sha256(self._content).hexdigest()
        if self._content.startswith(codecs.BOM_UTF8):
            self._starts[0] = len(codecs.BOM_UTF8)

    def _open(self, path: Path | None) -> contextlib.AbstractContextManager[IO[bytes]]:
        if path is not None:
            return path.open("rb")
        if sys.stdin is None:
            raise UserError(f"{self.path} is closed: give it a text, or --input FILE")
        return contextlib.nullcontext(sys.stdin.buffer)

    def _read(self, file: IO[bytes], reserved: Collection[str]) -> bytes:
        """The content. An invalid line is refused before the rest is read."""
        content = io.BytesIO()

        def kept():
            for line in bounded_lines(file, self.path):
                self._starts.append(content.tell())
                content.write(line)
                yield line

        for index, line in enumerate(decode_lines(kept(), self.path)):
            _, fields = self.form.parse(line, self.name(index))
            for name in reserved:
                if name in fields:
                    raise UserError(f"{self.name(index)} has a field {name!r}, as the output has: rename one of them")
        return content.getvalue()

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> str:
        """The text of a line."""
        return self._parse(index)[0]

    def fields(self, index: int) -> dict:
        """The other fields of a line."""
        return self._parse(index)[1]

    def languages(self, index: int, default: Sequence[str | None]) -> tuple[str | None, ...]:
        """The languages of source and target of a line; see `InputFormat.languages`."""
        return self.form.languages(self.fields(index), self.name(index), default)

    def _parse(self, index: int) -> tuple[str, dict]:
        end = self._starts[index + 1] if index + 1 < len(self) else None
        return self.form.parse(decode_line(self._content[self._starts[index] : end]), self.name(index))

    def name(self, index: int) -> str:
        """The name of a line in errors; the first has the index 0."""
        return f"line {index + 1} of {self.path}"
