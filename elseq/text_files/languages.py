"""The languages of the lines of an input, for a multilingual model."""

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elseq.encoded_texts import numbered
from elseq.errors import UserError
from elseq.files import read_lines
from elseq.options import Loading
from elseq.text_files.fingerprint import digest_file
from elseq.text_files.formats import LANGUAGE_FIELDS
from elseq.text_files.reading import InputLines


@dataclass(frozen=True)
class Pairs:
    """The languages of source and target of each line of the input."""

    distinct: list[tuple[str | None, str | None]]
    of_line: np.ndarray  # int64 [L]: which of them a line has
    lines: InputLines
    file: Path | None = None  # that has them on its lines; None: the input or the options have them
    digest: str | None = None  # of the file

    @classmethod
    def of(cls, lines: InputLines, loading: Loading, file: Path | None) -> "Pairs":
        """
        Args:
            lines: the input.
            loading: has the languages of lines that name none.
            file: a file with two languages on each line, or None.

        Raises:
            UserError: as `of_file` and `InputFormat.languages`, or they are given in two ways.
        """
        if file is not None:
            given = vars(loading) | vars(lines.form)
            for option in (*LANGUAGE_FIELDS.values(), *LANGUAGE_FIELDS):
                if given[option] is not None:
                    raise UserError(
                        "does not go with --languages-file, which has those of each line: leave it out", option
                    )
            return cls.of_file(file, lines)
        default = loading.source_lang, loading.target_lang
        if not any(getattr(lines.form, option) is not None for option in LANGUAGE_FIELDS):
            return cls([default], np.zeros(len(lines), np.int64), lines)
        return cls(*numbered(lines.languages(index, default) for index in range(len(lines))), lines)

    @classmethod
    def of_file(cls, path: Path, lines: InputLines) -> "Pairs":
        """
        Args:
            path: a file with two languages on each line.
            lines: the input.

        Raises:
            UserError: the file cannot be read, has another number of lines, or a line is not two languages.
        """

        def pairs():
            for index, line in enumerate(read_lines(path)):
                pair = tuple(line.split())
                if len(pair) != 2:
                    raise UserError(
                        f"line {index + 1} of {path} is not two languages: give those of source and target, such as "
                        "de fr"
                    )
                yield pair

        distinct, of_line = numbered(pairs())
        if len(of_line) != len(lines):
            raise UserError(
                f"--languages-file {path} has {len(of_line):,} lines and the input has {len(lines):,}: give a line for "
                "each"
            )
        return cls(distinct, of_line, lines, path, digest_file(path))

    @contextmanager
    def about(self, number: int):
        """Errors about a language of this pair name the first line that has it, if a line has.

        Raises:
            UserError: the error.
        """
        try:
            yield
        except UserError as error:
            place = self._place(number, error.argument)
            if place is None:
                raise
            raise UserError(f"{place}: {error.sentence}") from error

    def _place(self, number: int, argument: str | None) -> str | None:
        """The first line, in words, that names the pair's language for this argument; None if no line does."""
        option = next((option for option, name in LANGUAGE_FIELDS.items() if name == argument), None)
        if option is None:
            return None
        indices = np.flatnonzero(self.of_line == number).tolist()
        if self.file is not None:
            return f"line {indices[0] + 1} of {self.file}"
        field = getattr(self.lines.form, option)
        index = next((index for index in indices if field in self.lines.fields(index)), None)
        return None if index is None else f"the field {field!r} of {self.lines.name(index)}"
