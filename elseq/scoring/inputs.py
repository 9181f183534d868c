"""Examples that belong together, and their sentences."""

from collections.abc import Sequence
from pathlib import Path

from elseq.errors import UserError
from elseq.scoring.sentences import split_sentences


def check_equal_lengths(files: dict[Path, Sequence[str]]) -> None:
    """
    Args:
        files: the examples of each.

    Raises:
        UserError: a file that does not have as many as the first.
    """
    (first, examples), *others = files.items()
    for path, other in others:
        if len(other) != len(examples):
            raise UserError(
                f"{path} has {len(other):,} examples and {first} has {len(examples):,}: each line of one belongs to a "
                "line of the other"
            )


def into_sentences(lines: Sequence[str], separator: str | None) -> list[list[str]]:
    """The sentences of each line, split at the separator, or at punctuation if there is none."""
    if separator is None:
        return [split_sentences(line) for line in lines]
    return [[sentence.strip() for sentence in line.split(separator)] for line in lines]
