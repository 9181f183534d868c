"""The lines of the input, and their tokens."""

import contextlib
import hashlib
import io
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import torch

from elseq.errors import UserError
from elseq.files import STANDARD_INPUT, bounded_lines, decode_lines


class InputLines:
    """The lines of a file or of the standard input.

    `elseq.files.read_lines` defines line ends.
    """

    def __init__(self, path: str):
        """Read all lines.

        Args:
            path: path of the file; "-" is the standard input.

        Raises:
            UserError: the input cannot be read, is empty or is not UTF-8, or a line has more than
                `elseq.files.LONGEST_LINE` bytes.
        """
        self.path = "the standard input" if path == STANDARD_INPUT else path
        try:
            with self._open(path) as file:
                self._content, self._number = self._read(file)
        except OSError as error:
            raise UserError(f"--input {path} cannot be read ({error.strerror}): check the path") from error
        if not self._number:
            raise UserError(f"{self.path} is empty: give a file with one text per line")
        self.digest = hashlib.sha256(self._content).hexdigest()

    def _open(self, path: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        if path != STANDARD_INPUT:
            return Path(path).open("rb")
        if sys.stdin is None:
            raise UserError(f"{self.path} is closed: give it a text, or --input FILE")
        return contextlib.nullcontext(sys.stdin.buffer)

    def _read(self, file: IO[bytes]) -> tuple[bytes, int]:
        """The content, and its number of lines. Invalid text is refused before the rest is read."""
        content = io.BytesIO()

        def kept():
            for line in bounded_lines(file, self.path):
                content.write(line)
                yield line

        number = sum(1 for _ in decode_lines(kept(), self.path))
        return content.getvalue(), number

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[str]:
        """The text of each line, without its end."""
        return decode_lines(io.BytesIO(self._content), self.path)

    def name(self, index: int) -> str:
        """The name of a line in errors; the first has the index 0."""
        return f"line {index + 1} of {self.path}"


class Sources:
    """The tokens of many texts, with four bytes per token."""

    def __init__(self):
        self._tokens = array("i")
        self._starts = array("q", [0])
        self.lengths = array("i")  # of each text; 0 if blank
        self.truncated = array("q")  # indices

    def append(self, tokens: torch.Tensor | None) -> None:
        """Add a text; None is a blank one."""
        if tokens is not None:
            self._tokens.extend(tokens.tolist())
        self.lengths.append(len(self._tokens) - self._starts[-1])
        self._starts.append(len(self._tokens))

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(self._tokens[self._starts[index] : self._starts[index + 1]], dtype=torch.long)

    def count(self, token: int) -> int:
        """The number of occurrences of a token."""
        return self._tokens.count(token)

    def __len__(self) -> int:
        return len(self.lengths)

    def digest(self) -> str:
        """A hash of the tokens."""
        return hashlib.sha256(self._tokens.tobytes() + self.lengths.tobytes()).hexdigest()


def encode_lines(lines: InputLines, encode: Callable[[str, str], tuple[torch.Tensor, bool]]) -> Sources:
    """The tokens of all lines.

    Args:
        lines: the input.
        encode: takes a text and its name, and returns its tokens and whether they were truncated.
    """
    sources = Sources()
    for index, text in enumerate(lines):
        tokens = None
        if text.strip():
            tokens, was_cut = encode(text, lines.name(index))
            if was_cut:
                sources.truncated.append(index)
        sources.append(tokens)
    return sources
