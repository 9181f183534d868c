"""What a search knows of a batch: its hypotheses, and the candidates to go on with them.

Shapes: B sentences that are still searched, N = B * beam hypotheses (those of a sentence stand together), L tokens at
most, S source positions, C candidates of a sentence.
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

from elseq.generation.transfers import to_device


class Candidates(NamedTuple):
    """Continuations of each sentence, best first."""

    scores: Tensor  # [B, C], cumulative; -inf: none
    tokens: Tensor  # int64 [B, C]
    hypotheses: Tensor  # int64 [B, C]: which of the sentence's hypotheses they continue, from 0
    ending: Tensor  # bool [B, C]: those that end
    is_stuck: Tensor  # bool [B, 1]: sentences that have none

    @classmethod
    def of(cls, scores: Tensor, tokens: Tensor, hypotheses: Tensor, eos: int) -> "Candidates":
        """
        Args:
            scores, tokens, hypotheses: what a search strategy returns, each [B, C].
            eos: the symbol that ends a hypothesis.
        """
        is_one = scores.isneginf().logical_not()
        is_stuck = ~is_one.any(dim=1, keepdim=True)
        return cls(scores, tokens, hypotheses, tokens.eq(eos) & is_one, is_stuck)

    def select(self, sentences: Tensor) -> "Candidates":
        """Those of these sentences, int64 [B']."""
        return Candidates(*(tensor[sentences] for tensor in self))


class Remaining(NamedTuple):
    """What is left when sentences leave."""

    places: Tensor  # int64 [B']: former places of the sentences that stay
    rows: Tensor  # int64 [N']: former rows of their hypotheses


class Sentences:
    """The sentences of a batch that are still searched, and what belongs to each."""

    def __init__(
        self,
        limits: list[int],
        source_lengths: Tensor,
        sample_ids: Tensor,
        prefix: Tensor | None = None,
        uncounted: int = 0,
    ):
        """
        Args:
            limits: tokens that the hypotheses of each sentence may have, the end apart.
            source_lengths: int64 [B].
            sample_ids: int64 [B]: what a search strategy calls each sentence.
            prefix: int64 [B, P], padded on the right: tokens that the hypotheses begin with; or None.
            uncounted: how many of these, from the first on, have the log-probability 0.
        """
        self.numbers = list(range(len(limits)))  # in the batch
        self.limits = limits
        self.source_lengths = source_lengths
        self.sample_ids = sample_ids
        self.prefix = prefix
        self.uncounted = uncounted
        self._prefixes = None if prefix is None else prefix.tolist()  # of all sentences of the batch

    def __len__(self) -> int:
        return len(self.numbers)

    def select(self, places: list[int]) -> "Sentences":
        """Those at these places."""
        rows = to_device(places, self.source_lengths.device)
        found = copy.copy(self)
        found.numbers, found.limits = ([each[place] for place in places] for each in (self.numbers, self.limits))
        found.source_lengths, found.sample_ids = self.source_lengths[rows], self.sample_ids[rows]
        found.prefix = None if self.prefix is None else self.prefix[rows]
        return found

    def must_end(self, step: int) -> list[bool]:
        """Whether the hypotheses of each sentence must end now."""
        return [limit <= step for limit in self.limits]

    def at_limit(self, step: int) -> Tensor | None:
        """The same on the device, bool [B]; None: those of no sentence must."""
        must_end = self.must_end(step)
        return to_device(must_end, self.source_lengths.device).bool() if any(must_end) else None

    def prefix_at(self, step: int) -> Tensor | None:
        """The token that must come now, int64 [B], padding where any may; None: any may everywhere."""
        return self.prefix[:, step] if self.prefix is not None and step < self.prefix.size(1) else None

    def has_in_prefix(self, token: int, step: int) -> bool:
        """Whether it is the token that must come now, for some sentence."""
        return any(self._prefixes[number][step] == token for number in self.numbers)


class Beams:
    """The hypotheses that are searched."""

    def __init__(self, start: Tensor | int, length: int, beam: int, pad: int, sentences: Sentences):
        """
        Args:
            start: int64 [B] or a number: the symbol that the hypotheses of a sentence start from.
            length: tokens that a hypothesis may have at most, the end included.
            beam: hypotheses of a sentence.
            pad: the padding symbol.
            sentences: B of them.
        """
        count, device = len(sentences), sentences.source_lengths.device
        self.beam = beam
        self.sentences = sentences
        # Column 0 is the symbol that the hypothesis starts from.
        self.tokens = torch.full((count * beam, length + 1), pad, device=device)  # [N, L + 1]
        self.tokens[:, 0] = start.repeat_interleave(beam) if isinstance(start, Tensor) else start
        self.scores = torch.zeros(count * beam, length, dtype=torch.float32, device=device)  # cumulative, [N, L]
        self.attention: Tensor | None = None  # [N, S, L + 1]
        self._left_over = torch.zeros(count, beam, dtype=torch.uint8, device=device)
        self._all_rows = torch.arange(count * beam, device=device).view(count, beam)

    @property
    def rows(self) -> Tensor:
        """The rows of the hypotheses of each sentence, int64 [B, beam]."""
        return self._all_rows[: len(self.sentences)]

    def by_sentence(self, rows: Tensor) -> Tensor:
        """Anything [N, ...] by sentences: [B, beam, ...]."""
        return rows.view(len(self.sentences), self.beam, *rows.shape[1:])

    def record_attention(self, step: int, weights: Tensor | None) -> None:
        """Remember the attention to the source, [N, S], with which the next token is chosen."""
        if weights is None:
            return
        if self.attention is None:
            self.attention = weights.new_zeros(*weights.shape, self.tokens.size(1))
        self.attention[:, :, step + 1] = weights

    def copy_first(self, sentences: Tensor) -> None:
        """Make all hypotheses of these sentences, bool [B], copies of the first of each."""
        self.tokens, self.scores = (self.first_of(rows, sentences) for rows in (self.tokens, self.scores))
        if self.attention is not None:
            self.attention = self.first_of(self.attention, sentences)

    def first_of(self, rows: Tensor, sentences: Tensor) -> Tensor:
        """Anything [N, ...], for these sentences, bool [B], with the row of the first hypothesis in place of all."""
        hypotheses = rows.view(len(sentences), self.beam, -1)
        return torch.where(sentences.view(-1, 1, 1), hypotheses[:, :1], hypotheses).view_as(rows)

    def keep(self, places: list[int]) -> Remaining:
        """Go on with the sentences at these places only."""
        sentences = to_device(places, self.tokens.device)
        rows = self.rows[sentences].view(-1)
        self.sentences = self.sentences.select(places)
        self._take(rows)
        self._left_over = self._left_over[sentences]
        return Remaining(sentences, rows)

    def _take(self, rows: Tensor) -> None:
        """Only these hypotheses, int64 [N']."""
        self.tokens = self.tokens.index_select(0, rows)
        self.scores = self.scores.index_select(0, rows)
        if self.attention is not None:
            self.attention = self.attention.index_select(0, rows)

    def go_on(self, step: int, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """Take the best `beam` candidates of each sentence that do not end.

        If there are fewer, a place is left over: its score is -inf. Where a sentence has none, all its places are, and
        what its hypotheses had stays as it was.

        Returns:
            The hypothesis that each one continues, int64 [N'], and the candidates taken, int64 [B, beam].
        """
        active, self._left_over = self._active(candidates.ending)
        continued = self.rows[:, :1] + candidates.hypotheses.gather(1, active)
        order = torch.where(candidates.is_stuck, self.rows, continued).view(-1)
        scores = candidates.scores.masked_fill(candidates.ending, -math.inf)
        self._take(order)
        self.tokens[:, step + 1] = candidates.tokens.gather(1, active).view(-1)
        self.scores[:, step] = scores.gather(1, active).view(-1)
        return order, active

    def _active(self, ending: Tensor) -> tuple[Tensor, Tensor]:
        """The first `beam` candidates that go on, int64 [B, beam], and if there are fewer, then some that end.

        Places that are left over, uint8 [B, beam], come last and stay so, as in fairseq: sampling draws for each place.
        """
        last = ending.to(torch.uint8)  # a GPU sorts no bool
        last[:, : self.beam] |= self._left_over
        last, active = last.sort(dim=1, stable=True)
        return active[:, : self.beam], last[:, : self.beam]
