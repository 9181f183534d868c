"""The codes of subword-nmt and fastBPE, which split words separated by spaces.

A fastBPE file is a subword-nmt file of version 0.2 with the count of each pair appended. Both programs split a word in
the same way: they repeatedly join the pair of pieces that comes first in the file, everywhere in the word.
"""

import hashlib
import io
from pathlib import Path

from elseq.errors import UserError
from elseq.options import CODES_PROGRAMS
from elseq.subwords.base import Subwords
from elseq.subwords.files import read_text

SEPARATOR = "@@"
_VERSION = "#version:"


class Codes(Subwords):
    """Splits words by codes. Every piece of a word except the last ends with "@@"."""

    def __init__(self, kind: str, path: Path):
        """
        Raises:
            UserError: the kind is unknown, or the file is missing or has no codes of this kind.
        """
        if kind not in CODES_PROGRAMS:
            raise UserError(f"{kind!r} is unknown; choose one of {', '.join(CODES_PROGRAMS)}", "bpe")
        try:
            from subword_nmt.apply_bpe import BPE
        except ImportError as error:
            raise UserError("the codes need a package that is missing: pip install subword-nmt") from error
        pairs, version = _read_codes(kind, path)
        text = "\n".join([f"{_VERSION} {version}", *pairs, ""])
        self._bpe = BPE(io.StringIO(text), separator=SEPARATOR)
        self._digest = hashlib.sha256(text.encode()).hexdigest()

    def encode(self, text: str) -> str:
        # There, white space other than spaces is part of a word. Around a text fairseq-interactive removes it.
        return " ".join(self._bpe.process_line(text.strip()).split())

    def decode(self, words: str) -> str:
        return f"{words} ".replace(f"{SEPARATOR} ", "").rstrip()

    def decode_continuation(self, words: str) -> str:
        return self.decode(words)  # a continuation begins a word

    def encode_continuation(self, text: str) -> str:
        return self.encode(text)

    def digest(self) -> str:
        return self._digest


def kind_of_codes(path: Path) -> str | None:
    """The program that made a file, or None."""
    for kind in CODES_PROGRAMS:
        try:
            _read_codes(kind, path)
        except UserError:
            continue
        return kind
    return None


def _read_codes(kind: str, path: Path) -> tuple[list[str], str]:
    """The pairs, and their format version."""
    lines = read_text(path).replace("\r\n", "\n").rstrip("\n").split("\n")
    version = "0.2" if kind == "fastbpe" else "0.1"
    if kind == "subword_nmt" and lines[0].startswith(_VERSION):
        version = lines.pop(0).removeprefix(_VERSION).strip()
        if version not in ("0.1", "0.2"):
            raise UserError(f"{path} has the unknown version {version!r}: give codes of subword-nmt")
    pairs = []
    for number, line in enumerate(lines, start=1):
        parts = line.strip(" ").split(" ")
        if kind == "fastbpe" and len(parts) == 3 and parts[2].isdecimal():
            del parts[2]
        elif kind == "fastbpe" or len(parts) != 2:
            wanted = "two pieces" + (" and a number" if kind == "fastbpe" else "")
            raise UserError(f"{path} holds no codes of {kind}: line {number} is {line[:60]!r} and not {wanted}")
        pairs.append(" ".join(parts))
    if not pairs:
        raise UserError(f"{path} holds no codes of {kind}: it ends after line 1, the version of the format")
    return pairs, version
