"""The formats of the input and the output of elseq-generate."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from elseq.arguments import option_field
from elseq.errors import UserError, as_option, check_choice
from elseq.files import check_text

if TYPE_CHECKING:  # it needs torch; see `elseq.options`
    from elseq.generator import Hypothesis, TextGenerator
    from elseq.text_files.reading import InputLines

FORMATS = TEXT, JSONL = "text", "jsonl"
FIELD = "text"
LANGUAGE_FIELDS = {"source_lang_field": "source_lang", "target_lang_field": "target_lang"}  # and the default of each
MOST_DIGITS = 1000  # Python refuses to write more than a few thousand
HYPOTHESES, SOURCE = "hypotheses", "source"


@dataclass(frozen=True)
class InputFormat:
    """The format of the input."""

    input_format: str | None = option_field(
        choices=FORMATS,
        help="text: a text on each line; jsonl: a JSON object on each line (default: jsonl if the name of --input ends "
        f"with .{JSONL}, otherwise text)",
    )
    input_field: str | None = option_field(
        metavar="NAME",
        help="with --input-format jsonl: the field with the text. With --format jsonl the other fields are written to "
        f"the output (default: {FIELD})",
    )
    source_lang_field: str | None = option_field(
        metavar="NAME",
        help="with --input-format jsonl: the field with the language of the source, for a multilingual model; lines "
        "without it are as --source-lang says",
    )
    target_lang_field: str | None = option_field(metavar="NAME", help="the same of the target and --target-lang")

    def of(self, path: Path | None) -> "InputFormat":
        """With the defaults for the path of an input; None: the standard input.

        Raises:
            UserError: the format is unknown, a field of lines of text is named, or one for two things.
        """
        check_choice("input_format", self.input_format, FORMATS)
        kind = self.input_format or (JSONL if path is not None and path.suffix == f".{JSONL}" else TEXT)
        for name in ("input_field", *LANGUAGE_FIELDS):
            if kind == TEXT and getattr(self, name) is not None:
                raise UserError("needs --input-format jsonl: a line of text has no fields", name)
        text = FIELD if self.input_field is None else self.input_field
        for name in LANGUAGE_FIELDS:
            if getattr(self, name) == text:
                raise UserError(f"{text} is the field of the text: name another", name)
        return replace(self, input_format=kind, input_field=text)

    def deciding(self) -> dict:
        """The options that decide the output, by their names on the command line; none for text, as before them."""
        if self.input_format == TEXT:
            return {}
        named = {name: repr(getattr(self, name)) for name in LANGUAGE_FIELDS if getattr(self, name) is not None}
        named = {"input_format": JSONL, "input_field": repr(self.input_field)} | named
        return {as_option(name): value for name, value in named.items()}

    def parse(self, line: str, name: str) -> tuple[str, dict]:
        """The text of a line, and its other fields.

        Args:
            line: without its end.
            name: its name in errors.

        Raises:
            UserError: the line is not a JSON object with a string in the field.
        """
        if self.input_format == TEXT:
            return line, {}
        fields = _parse_json(line, name)
        if not isinstance(fields, dict):
            raise UserError(f"{name} is no JSON object: give one with the field {self.input_field!r}")
        if self.input_field not in fields:
            known = ", ".join(repr(each[:40]) for each in list(fields)[:5]) or "none"
            raise UserError(
                f"{name} has no field {self.input_field!r} (but {known}): name the field of the text as --input-field"
            )
        text = fields.pop(self.input_field)
        if not isinstance(text, str):
            raise UserError(f"the field {self.input_field!r} of {name} is no string: give the text as one")
        check_text(text, f"the field {self.input_field!r} of {name}", "write it in full")
        return text, fields

    def languages(self, fields: dict, name: str, default: Sequence[str | None]) -> tuple[str | None, ...]:
        """The languages of source and target that the fields of a line name.

        Args:
            fields: those beside the text.
            name: the line's name in errors.
            default: the languages of lines that have no such fields, or None.

        Raises:
            UserError: the line lacks a field, and there is no default, or the field holds no code.
        """
        return tuple(
            known if getattr(self, option) is None else _language(fields, getattr(self, option), name, known, side)
            for (option, side), known in zip(LANGUAGE_FIELDS.items(), default, strict=True)
        )


LINES_OF_TEXT = InputFormat()


def _language(fields: dict, field: str, name: str, default: str | None, option: str) -> str:
    if field not in fields:
        if default is None:
            raise UserError(
                f"{name} has no field {field!r}: give it the code of a language, or give {as_option(option)}"
            )
        return default
    language = fields[field]
    if not isinstance(language, str) or not language:
        raise UserError(f"the field {field!r} of {name} is no code of a language: give one")
    return language


def _parse_json(line: str, name: str):
    try:
        return json.loads(line, parse_constant=_refuse, parse_float=_number, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        elif isinstance(error, RecursionError):
            reason = "it is nested too deeply"
        raise UserError(
            f"{name} is no JSON ({reason}): give a JSON object on each line, or --input-format text"
        ) from error


def _refuse(constant: str):
    raise ValueError(f"{constant} is no number")


def _number(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


@dataclass(frozen=True)
class Format:
    """The format of the output."""

    format: str = option_field(
        TEXT,
        choices=FORMATS,
        help="text: the best hypothesis of each line; jsonl: a JSON object for each line, with the --nbest best "
        "hypotheses and their scores",
    )
    with_source: bool = option_field(False, help="with --format jsonl: the text of the input, too")
    with_tokens: bool = option_field(
        False, help="with --format jsonl: the tokens of each hypothesis and their log-probabilities, too"
    )

    def check(self, nbest: int) -> None:
        """
        Raises:
            UserError: an option needs --format jsonl.
        """
        if self.format == JSONL:
            return
        if nbest > 1:
            raise UserError(f"{nbest} needs --format jsonl: text has one hypothesis for each line", "nbest")
        for name in ("with_source", "with_tokens"):
            if getattr(self, name):
                raise UserError(f"{as_option(name)} needs --format jsonl: text holds hypotheses only")

    def deciding(self) -> dict:
        """The options that decide the output, by their names on the command line; none for text, as before them."""
        return {} if self.format == TEXT else {as_option(name): value for name, value in vars(self).items()}

    @property
    def keeps_blank_lines(self) -> bool:
        """Whether the output for a blank line is blank."""
        return self.format == TEXT

    @property
    def own_fields(self) -> tuple[str, ...]:
        """The fields that the input must not bring: `id` is the one of a line that has one."""
        return () if self.format == TEXT else (HYPOTHESES, SOURCE) if self.with_source else (HYPOTHESES,)

    @property
    def read(self) -> list[str]:
        """The names of the values of a hypothesis that `line` reads."""
        return ["tokens"] if self.format == TEXT else ["tokens", "score", "positional_scores"]

    def line(
        self, generator: "TextGenerator | None", lines: "InputLines", index: int, hypotheses: Sequence[dict]
    ) -> str:
        """The line of the output for a line of the input, without its end.

        Args:
            generator: the model; it may be None where there are no hypotheses.
            lines: the input.
            index: the line.
            hypotheses: tensors of `read` on the CPU, best first. A blank line has none.
        """
        if self.format == TEXT:
            return in_one_line(generator.text(hypotheses[0]["tokens"])) if hypotheses else ""
        record = {"id": index} | lines.fields(index) | ({SOURCE: lines[index]} if self.with_source else {})
        record[HYPOTHESES] = [self._record(generator.hypothesis(each)) for each in hypotheses]
        written = json.dumps(record, ensure_ascii=False, allow_nan=False)
        return _HALF_A_CHARACTER.sub(lambda half: f"\\u{ord(half[0]):04x}", written)

    def _record(self, hypothesis: "Hypothesis") -> dict:
        record = {"text": hypothesis.text, "score": _finite(hypothesis.score)}
        if self.with_tokens:
            record |= {"tokens": hypothesis.tokens, "log_probs": list(map(_finite, hypothesis.log_probs))}
        return record


# In a field of the input: UTF-8 has none, and JSON escapes it.
_HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")


def _finite(number: float) -> float | None:
    """JSON has no infinity."""
    return number if math.isfinite(number) else None


def in_one_line(text: str) -> str:
    """Replace line ends in generated text, because the output has one line per text."""
    return text.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")
