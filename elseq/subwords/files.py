"""Reads the files of subword vocabularies."""

from pathlib import Path

from elseq.errors import UserError
from elseq.files import check_ordinary, read_json

MOST_PIECES = 2**24  # libraries that write a vocabulary iterate over all ids up to the largest


def read_text(path: Path) -> str:
    """
    Raises:
        UserError: the file cannot be read or is not UTF-8.
    """
    check_ordinary(path)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the folder") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid UTF-8: copy it again") from error


def read_ids(path: Path) -> dict[str, int]:
    """The id of each piece in encoder.json or vocab.json.

    Raises:
        UserError: the file has another content.
    """
    return check_ids(path, read_json(path))


def check_ids(path: Path, pieces: dict, least: int = 0) -> dict[str, int]:
    """The pieces of a file, checked.

    Raises:
        UserError: there are fewer than `least`, or a piece has no id.
    """
    if len(pieces) < least or not all(type(each) is int and 0 <= each < MOST_PIECES for each in pieces.values()):
        raise UserError(f"{path} does not give each piece a number: copy it again")
    return pieces


def read_merges(path: Path) -> list[str]:
    """The lines of vocab.bpe or merges.txt, one pair each, without the version line.

    Raises:
        UserError: the file cannot be read.
    """
    lines = read_text(path).split("\n")
    return [line for number, line in enumerate(lines) if line and (number or not line.startswith("#version"))]
