"""Texts in the tokens of a model, decoded in batches, for `TextGenerator.generate` and for elseq-generate."""

import hashlib
import random
from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from elseq.arguments import budget_bytes
from elseq.generation.batches import SplittingDecoder, cut_batches
from elseq.generation.budget import capacity
from elseq.generation.strategies import seeded


def numbered(values: Iterable[Hashable]) -> tuple[list, np.ndarray]:
    """The distinct values in the order in which they first come, and the number of that of each, int64 [N]."""
    numbers: dict = {}
    of_each = [numbers.setdefault(value, len(numbers)) for value in values]
    return list(numbers), np.asarray(of_each, np.int64)


class Tokens:
    """The tokens of many texts, in four bytes each."""

    def __init__(self):
        self._tokens = array("i")
        self._starts = array("q", [0])
        self.lengths = array("i")  # of each text; 0 if blank

    def append(self, tokens: Tensor | None) -> None:
        """Add a text; None is a blank one."""
        if tokens is not None:
            self._tokens.extend(tokens.tolist())
        self.lengths.append(len(self._tokens) - self._starts[-1])
        self._starts.append(len(self._tokens))

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(self._tokens[self._starts[index] : self._starts[index + 1]], dtype=torch.long)

    def count(self, token: int) -> int:
        """The number of occurrences of a token."""
        return self._tokens.count(token)

    def __len__(self) -> int:
        return len(self.lengths)

    def digest(self) -> str:
        """A hash of the tokens."""
        return hashlib.sha256(self._tokens.tobytes() + self.lengths.tobytes()).hexdigest()


class _Part(NamedTuple):
    """What decodes the texts of a pair of languages, usually all texts."""

    generator: object  # an `elseq.generator.TextGenerator`
    search: object  # of its `make_search`


class EncodedTexts:
    """The tokens of texts, what their outputs must contain, and what decodes them.

    Attributes:
        sources: the tokens of each text, its end symbol included. A blank text has none, and is in no batch.
        truncated: the indices of the texts that were truncated.
    """

    def __init__(
        self,
        texts: Iterable[str],
        generators: Sequence,
        of_text: np.ndarray,
        *,
        cfg,
        name: Callable[[int], str],
        truncate: bool,
        remedies: tuple[str, str],
        seed: int | None,
    ):
        """
        Args:
            texts: N sources or prompts. With the option constraints, phrases stand after a source, each after a tab.
            generators: the `elseq.generator.TextGenerator` of each pair of languages.
            of_text: int64 [N]: which of them a text has.
            cfg: the options of the search; see `search_configuration`.
            name: the name of a text in errors, given its index.
            truncate: shorten texts that are too long.
            remedies: what else the error tells the user to do: to truncate, and to encode in windows.
            seed: seed of the random numbers. Those of a batch depend on the seed and the batch, not on earlier batches.

        Raises:
            UserError: a text is too long, or an option is not for the model.
        """
        self._of_text, self._name = of_text, name
        # Prefixes and constraints, by the names that `TextGenerator.decode` has for them.
        self._forced: dict[str, Mapping[int, object]] = {}
        self._parts = [_Part(generator, generator.make_search(cfg)) for generator in generators]
        self.sources, self.truncated = Tokens(), array("q")
        for index, text in enumerate(texts):
            self.sources.append(self._encode(index, text, cfg, truncate, remedies) if text.strip() else None)
        self._lengths = np.asarray(self.sources.lengths)
        self.blank = self._lengths == 0  # bool [N]
        self._decoders = [
            _decoder(part, self.sources, self._forced, name, seed if cfg.sampling else None) for part in self._parts
        ]

    def _encode(self, index: int, text: str, cfg, truncate: bool, remedies: tuple[str, str]) -> Tensor:
        generator, search = self._part(index)
        text, phrases = generator.split_constraints(text, cfg)
        if phrases is not None:
            self._forced.setdefault("constraints", {})[index] = phrases
        tokens, was_cut = generator.encode(text, search, self._name(index), truncate, remedies)
        if was_cut:
            self.truncated.append(index)
        return tokens

    def force_prefixes(self, texts: Iterable[str], name: Callable[[int], str]) -> Tokens:
        """Have the output of each text begin with another text; a blank one forces nothing.

        Args:
            texts: the N prefixes.
            name: the name of a prefix in errors, given its index.

        Returns:
            The tokens of the prefixes. Blank ones, and those of blank texts, have none.

        Raises:
            UserError: a prefix that is not blank is longer than its output may be, or is for a model without encoder.
        """
        prefixes = Tokens()
        for index, (text, length) in enumerate(zip(texts, self.sources.lengths, strict=True)):
            tokens = None
            if length and text.strip():
                generator, search = self._part(index)
                tokens = generator.encode_prefix(text, search, length, name(index))
            prefixes.append(tokens)
        self._forced["prefixes"] = prefixes
        return prefixes

    def generator(self, index: int):
        """The one of a text."""
        return self._part(index).generator

    def _part(self, index: int) -> _Part:
        return self._parts[self._of_text[index]]

    def batches(self, max_tokens: int, memory_budget: int | str | None) -> list[np.ndarray]:
        """The indices of the texts of each batch.

        Args:
            max_tokens, memory_budget: as for `TextGenerator.generate`.

        Raises:
            UserError: the budget is invalid or too small for a text, or the model does not support one.
        """
        batches = []
        for number, (generator, search) in enumerate(self._parts):
            lengths = np.where(self._of_text == number, self._lengths, 0)
            if memory_budget is None:
                batches += cut_batches(lengths, lambda length: max(1, max_tokens // length))
                continue
            sentences = capacity(
                generator.models,
                search,
                budget_bytes(memory_budget),
                lambda length, lengths=lengths: self._name(int(np.argmax(lengths == length))),
                generator.task.symbols_of_source,
            )
            batches += cut_batches(lengths, sentences)
        return batches

    def decode(self, batch: Sequence[int]) -> Iterator[tuple[list[int], list[list[dict]]]]:
        """The hypotheses of a batch, given the indices of its texts: the indices of a part of it, and the hypotheses of
        each of these, best first. There are several parts where memory does not suffice for the whole.

        Raises:
            UserError: a text that does not fit the memory alone.
        """
        return self._decoders[self._of_text[batch[0]]](batch)


def _decoder(part: _Part, sources: Tokens, forced: Mapping[str, Mapping], name, seed: int | None) -> SplittingDecoder:
    """What decodes batches of some texts. It does not hold the `EncodedTexts`, which would live on with it."""

    def decode(numbers: list[int]) -> list[list[dict]]:
        given = {option: [of_text[number] for number in numbers] for option, of_text in forced.items()}
        context = nullcontext()
        if seed is not None:
            context = seeded(part.search, random.Random(f"{seed} {numbers[0]}").getrandbits(63))
        with context:
            return part.generator.decode(part.search, [sources[number] for number in numbers], **given)

    return SplittingDecoder(decode, sources.lengths, name)
