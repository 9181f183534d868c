"""The lines of an input in the tokens of a model, ready to be decoded."""

import logging
from pathlib import Path

import numpy as np

from elseq.encoded_texts import EncodedTexts, Tokens
from elseq.errors import UserError
from elseq.files import read_lines
from elseq.generator import TextGenerator
from elseq.subwords.finding import find_codes
from elseq.subwords.pieces import SPACE
from elseq.text_files.job import Job
from elseq.text_files.languages import Pairs
from elseq.text_files.reading import InputLines

logger = logging.getLogger(__name__)

# Shares of words that are not in the dictionary.
NOTABLE, UNUSABLE = 0.1, 0.9
REMEDIES = "give --truncate", "give --long-input"  # for lines that are too long


class EncodedLines(EncodedTexts):
    """The texts of an input, with the languages, prefixes and constraints of its lines."""

    def __init__(self, job: Job, lines: InputLines, pairs: Pairs, generator: TextGenerator, cfg):
        """
        Args:
            job: the options.
            lines: the input.
            pairs: its languages.
            generator: the model for the first pair.
            cfg: the options of the search; see `search_configuration`.

        Raises:
            UserError: a line is too long, most words are not in the dictionary, or a language is not the model's.
        """
        self._job, self._lines, self._pairs = job, lines, pairs
        generators = [generator]
        for number, pair in enumerate(pairs.distinct[1:], start=1):
            with pairs.about(number):
                generators.append(generator.for_languages(*pair))
        batching = job.batching
        super().__init__(
            lines,
            generators,
            pairs.of_line,
            cfg=cfg,
            name=lines.name,
            truncate=batching.truncate,
            remedies=REMEDIES,
            seed=batching.seed,
        )
        self._check_words(generator)
        self._prefixes = None if job.prefix_file is None else self._read_prefixes(job.prefix_file)

    def _check_words(self, generator: TextGenerator) -> None:
        """
        Raises:
            UserError: the text is not in the subwords of the model.
        """
        words = sum(self.sources.lengths) - np.count_nonzero(~self.blank)  # without the end symbols
        unknown = self.sources.count(generator.task.source_dictionary.unk()) / max(1, words)
        # Some whole words are also sentencepiece pieces. Unknown words show that the text is not split into pieces.
        pieces = any(symbol.startswith(SPACE) for symbol in generator.task.source_dictionary.symbols)
        codes = None if generator.bpe is not None else find_codes(self._job.model_folders())
        which = f"{unknown:.0%} of the words of {self._lines.path} are not in the model's dictionary"
        if codes is not None and unknown > NOTABLE:
            kind, path = codes
            raise UserError(
                f"{which}, which has the pieces that the codes in {path} make: give --bpe {kind} --bpe-codes {path}"
            )
        if generator.bpe is None and unknown > (NOTABLE if pieces else UNUSABLE):
            raise UserError(
                f"{which}, and no subword vocabulary (tokenizer.json, encoder.json and vocab.bpe, or a sentencepiece "
                ".model) is beside it: copy it there, or give its folder as --data, or its files by --bpe and the "
                "options of its kind"
            )
        if unknown > NOTABLE:
            logger.warning("%s", which)

    def _read_prefixes(self, path: Path) -> Tokens:
        texts, count = list(read_lines(path)), len(self._lines)
        if len(texts) != count:
            raise UserError(
                f"--prefix-file {path} has {len(texts):,} lines and the input has {count:,}: give a line for each"
            )
        return self.force_prefixes(texts, lambda index: f"line {index + 1} of {path}")

    def digests(self) -> dict[str, str]:
        """Hashes of the tokens, prefixes and languages, for the fingerprint of the run."""
        found = {"tokens": self.sources.digest()}
        if self._prefixes is not None:
            found["prefixes"] = self._prefixes.digest()
        if self._pairs.digest is not None:
            found["languages"] = self._pairs.digest
        return found

    def line(self, index: int, hypotheses: list[dict]) -> str:
        """The line of the output; see `Format.line`."""
        return self._job.form.line(self.generator(index), self._lines, index, hypotheses)
