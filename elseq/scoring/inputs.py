"""Hypotheses and references out of files."""

import re
from collections.abc import Sequence
from pathlib import Path

from elseq.errors import UserError
from elseq.files import read_lines
from elseq.scoring.sentences import split_sentences

_DETOKENIZED = re.compile(r"D-(\d+)\t[^\t]*\t(.*)")


def read_hypotheses(path: Path, from_log: bool) -> list[str]:
    """
    Args:
        path: a file with a hypothesis a line, or a log of fairseq-generate.
        from_log: it is a log.

    Raises:
        UserError: a file that cannot be used.
    """
    if not from_log:
        return list(read_lines(path))
    best: dict[int, str] = {}
    for line in read_lines(path):
        if found := _DETOKENIZED.fullmatch(line):
            best.setdefault(int(found[1]), found[2])  # with --nbest the best comes first
    if not best:
        raise UserError(f"{path} has no line D-...: give the log of a fairseq-generate without --quiet")
    return [best[number] for number in sorted(best)]


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
    """The sentences of each line: what the separator divides, or without one what punctuation does."""
    if separator is None:
        return [split_sentences(line) for line in lines]
    return [[sentence.strip() for sentence in line.split(separator)] for line in lines]
