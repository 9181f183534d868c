"""The lines of an input in the tokens of a model, ready to be decoded."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from elseq.errors import UserError
from elseq.files import read_lines
from elseq.generator import TextGenerator
from elseq.subwords.finding import find_codes
from elseq.text_files.job import Job
from elseq.text_files.languages import Pairs
from elseq.text_files.reading import InputLines, Sources, encode_lines

logger = logging.getLogger(__name__)

# Shares of words that are not in the dictionary.
NOTABLE, UNUSABLE = 0.1, 0.9
REMEDIES = "give --truncate", "give --long-input"  # for lines that are too long


class _Part(NamedTuple):
    """The generator and the search for the lines of a pair of languages, usually all lines."""

    generator: TextGenerator
    search: object  # of `TextGenerator.make_search`


class EncodedLines:
    """The sources, prefixes and constraints of all lines, and the generators that decode them.

    Attributes:
        sources: the tokens of each line.
        blank: bool [L], whether it has none: L lines.
    """

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
        self._parts = [_Part(each, each.make_search(cfg)) for each in generators]
        constraints: list[list[torch.Tensor]] = []  # of each line that is not blank

        def encode(text: str, index: int) -> tuple[torch.Tensor, bool]:
            part = self._part(index)
            source, phrases = part.generator.split_constraints(text, cfg)
            if phrases is not None:
                constraints.append(phrases)
            return part.generator.encode(source, part.search, lines.name(index), job.batching.truncate, REMEDIES)

        self.sources = encode_lines(lines, encode)
        self._lengths = np.asarray(self.sources.lengths)
        self.blank = self._lengths == 0
        self._check_words(generator)
        self._prefixes = None if job.prefix_file is None else self._encode_prefixes(job.prefix_file)
        forced = {} if self._prefixes is None else {"prefixes": self._prefixes}
        if cfg.constraints is not None:
            forced["constraints"] = dict(zip(np.flatnonzero(~self.blank).tolist(), constraints, strict=True))
        of_lines = self.sources, self.sources.lengths, lines.name, job.batching.seed
        self._decoders = [part.generator.batch_decoder(part.search, *of_lines, **forced) for part in self._parts]

    def _part(self, index: int) -> _Part:
        return self._parts[self._pairs.of_line[index]]

    def _check_words(self, generator: TextGenerator) -> None:
        """
        Raises:
            UserError: the text is not in the subwords of the model.
        """
        words = sum(self.sources.lengths) - np.count_nonzero(self._lengths)  # without the end symbols
        unknown = self.sources.count(generator.task.source_dictionary.unk()) / max(1, words)
        # Some whole words are also sentencepiece pieces. Unknown words show that the text is not split into pieces.
        pieces = any(symbol.startswith("▁") for symbol in generator.task.source_dictionary.symbols)
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

    def _encode_prefixes(self, path: Path) -> Sources:
        """The prefix of each line; blank ones and those of blank lines have no tokens."""
        texts, count = list(read_lines(path)), len(self._lines)
        if len(texts) != count:
            raise UserError(
                f"--prefix-file {path} has {len(texts):,} lines and the input has {count:,}: give a line for each"
            )
        prefixes = Sources()
        for index, (text, length) in enumerate(zip(texts, self.sources.lengths, strict=True)):
            tokens = None
            if length and text.strip():
                part = self._part(index)
                tokens = part.generator.encode_prefix(text, part.search, length, f"line {index + 1} of {path}")
            prefixes.append(tokens)
        return prefixes

    def digests(self) -> dict[str, str]:
        """Hashes of the tokens, prefixes and languages, for the fingerprint of the run."""
        found = {"tokens": self.sources.digest()}
        if self._prefixes is not None:
            found["prefixes"] = self._prefixes.digest()
        if self._pairs.digest is not None:
            found["languages"] = self._pairs.digest
        return found

    def batches(self) -> list[np.ndarray]:
        """The indices of the lines of each batch."""
        batching, batches = self._job.batching, []
        for number, part in enumerate(self._parts):
            of_part = np.where(self._pairs.of_line == number, self._lengths, 0)  # without tokens it is in no batch
            batches += part.generator.cut_batches(
                part.search, of_part, batching.max_tokens, batching.memory_budget, self._lines.name
            )
        return batches

    def decode(self, batch: list[int]) -> Iterator[tuple[list[int], list]]:
        """The parts of a batch and their hypotheses; see `SplittingDecoder`."""
        return self._decoders[self._pairs.of_line[batch[0]]](batch)

    def line(self, index: int, hypotheses: list[dict]) -> str:
        """The line of the output; see `Format.line`."""
        return self._job.form.line(self._part(index).generator, self._lines, index, hypotheses)
