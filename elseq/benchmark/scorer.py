"""Scores of the hypotheses against a reference."""

from dataclasses import dataclass
from pathlib import Path

import torch
from fairseq.data import Dictionary

from elseq.benchmark.models import ModelFile
from elseq.errors import UserError
from elseq.files import read_lines
from elseq.scoring.inputs import check_equal_lengths
from elseq.scoring.metrics import METRICS
from elseq.subwords.base import Subwords
from elseq.subwords.finding import find_subwords


@dataclass(frozen=True)
class Scorer:
    """Scores hypotheses as text, if the model has a subword vocabulary, and otherwise in words of its dictionary."""

    references: list[str]
    metric: str  # of `elseq.benchmark.arguments.METRICS`
    dictionary: Dictionary  # of the target
    subwords: Subwords | None
    is_language_model: bool
    symbols_of_language: tuple[int, ...] = ()  # that texts do not have

    @classmethod
    def read(cls, model_file: ModelFile, source: str | None, reference: str, metric: str) -> "Scorer":
        """
        Args:
            source: file of the sources.
            reference: file with the reference of each of them.

        Raises:
            UserError: a file that is missing or cannot be used, or one with more lines than the other.
        """
        if source is None:
            raise UserError("is of sources from a file: name theirs too", "reference")
        references = list(read_lines(Path(reference)))
        check_equal_lengths({Path(source): list(read_lines(Path(source))), Path(reference): references})
        dictionary = Dictionary.load(model_file.target_dictionary)
        folders = Path(model_file.data), Path(model_file.path).parent
        subwords = find_subwords(folders, dictionary.symbols, model_file.is_language_model)
        hidden = tuple(model_file.symbols_of_language)
        return cls(references, metric, dictionary, subwords, model_file.is_language_model, hidden)

    def how(self) -> list[str]:
        """How the scores are computed."""
        return METRICS[self.metric](self.references, self.references)[1]

    def score(self, hypotheses: list[list[int]]) -> dict[str, float]:
        """Scores by their headings.

        Args:
            hypotheses: the best of each source, without end symbols and prompts.
        """
        return METRICS[self.metric]([self._text(words) for words in hypotheses], self.references)[0]

    def _text(self, hypothesis: list[int]) -> str:
        tokens = torch.tensor(hypothesis, dtype=torch.long)
        words = self.dictionary.string(tokens, extra_symbols_to_ignore=set(self.symbols_of_language))
        if self.subwords is None:
            return words
        return self.subwords.decode_continuation(words) if self.is_language_model else self.subwords.decode(words)
