"""The formats of the output of elseq-generate."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from elseq.errors import UserError, as_option
from elseq.generator import Hypothesis, TextGenerator
from elseq.text_files.reading import FORMATS, JSONL, TEXT, InputLines

HYPOTHESES, SOURCE = "hypotheses", "source"


@dataclass(frozen=True)
class Format:
    """What the output says of each line of the input."""

    format: str = field(
        default=TEXT,
        metadata={
            "choices": FORMATS,
            "help": "text: the best hypothesis of each line; jsonl: a JSON object for each line, with the --nbest best "
            "hypotheses and their scores",
        },
    )
    with_source: bool = field(default=False, metadata={"help": "with --format jsonl: the text of the input, too"})
    with_tokens: bool = field(
        default=False,
        metadata={"help": "with --format jsonl: the tokens of each hypothesis and their log-probabilities, too"},
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

    def kept(self, hypothesis: dict) -> dict:
        """What `line` reads of a hypothesis, on the CPU."""
        names = ["tokens"] if self.format == TEXT else ["tokens", "score", "positional_scores"]
        return {name: torch.as_tensor(hypothesis[name]).cpu() for name in names}

    def line(self, generator: TextGenerator | None, lines: InputLines, index: int, hypotheses: Sequence[dict]) -> str:
        """The line of the output for a line of the input, without its end.

        Args:
            generator: the model; it may be None where there are no hypotheses.
            lines: the input.
            index: the line.
            hypotheses: by `kept`, best first. A blank line has none in jsonl.
        """
        if self.format == TEXT:
            return in_one_line(generator.text(hypotheses[0]["tokens"]))
        record = {"id": index} | lines.fields(index) | ({SOURCE: lines[index]} if self.with_source else {})
        record[HYPOTHESES] = [self._record(generator.hypothesis(each)) for each in hypotheses]
        written = json.dumps(record, ensure_ascii=False, allow_nan=False)
        return _HALF_A_CHARACTER.sub(lambda half: f"\\u{ord(half[0]):04x}", written)

    def _record(self, hypothesis: Hypothesis) -> dict:
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
