"""The formats of the output of elseq-generate."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from elseq.errors import UserError, as_option

if TYPE_CHECKING:  # it needs torch; see `elseq.options`
    from elseq.generator import TextGenerator

TEXT, JSONL = "text", "jsonl"


@dataclass(frozen=True)
class Format:
    """What the output says of each line of the input."""

    format: str = field(
        default=TEXT,
        metadata={
            "choices": (TEXT, JSONL),
            "help": "text: the best hypothesis of each line; jsonl: a JSON object for each line, with the --nbest best "
            "hypotheses and their scores",
        },
    )
    with_source: bool = field(default=False, metadata={"help": "with --format jsonl: the line of the input, too"})
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
    def read(self) -> list[str]:
        """What `line` reads of a hypothesis."""
        names = ["tokens"]
        names += ["score"] if self.format == JSONL else []
        return names + (["positional_scores"] if self.with_tokens else [])

    def line(
        self, generator: "TextGenerator | None", texts: Sequence[str], index: int, hypotheses: Sequence[dict]
    ) -> str:
        """The line of the output for a line of the input, without its end.

        Args:
            generator: the model; it may be None where there are no hypotheses.
            texts: the lines of the input, for --with-source.
            index: the line.
            hypotheses: tensors of `read` on the CPU, best first. A blank line has none.
        """
        if self.format == TEXT:
            return in_one_line(generator.text(hypotheses[0]["tokens"])) if hypotheses else ""
        record = {"id": index} | ({"source": texts[index]} if self.with_source else {})
        record["hypotheses"] = [self._hypothesis(generator, each) for each in hypotheses]
        return json.dumps(record, ensure_ascii=False, allow_nan=False)

    def _hypothesis(self, generator: "TextGenerator", hypothesis: dict) -> dict:
        record = {"text": generator.text(hypothesis["tokens"]), "score": _finite(hypothesis["score"].item())}
        if self.with_tokens:
            symbols = generator.task.target_dictionary.symbols
            record["tokens"] = [symbols[token] for token in hypothesis["tokens"].tolist()]
            record["log_probs"] = list(map(_finite, hypothesis["positional_scores"].tolist()))
        return record


def _finite(number: float) -> float | None:
    """JSON has no infinity."""
    return number if math.isfinite(number) else None


def in_one_line(text: str) -> str:
    """Replace line ends in generated text, because the output has one line per text."""
    return text.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")
