"""Processors of log-probabilities: each forbids, forces or penalizes next words before the search chooses.

Shapes: B sentences, N = B * beam hypotheses (those of a sentence are adjacent), V words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from elseq.generation.beams import Beams
from elseq.generation.ngrams import block_repeated_ngrams, repeated_words
from elseq.generation.transfers import to_device

# Words that may not follow: the same ones for all hypotheses, or those of each, int64 [N, W].
Forbidden = tuple[int, ...] | Tensor


@dataclass
class Step:
    """The state of the search that a processor reads beside the log-probabilities."""

    number: int  # words that the hypotheses have
    beams: Beams
    at_limit: Tensor | None  # bool [B]: sentences whose hypotheses must end now; None: no sentence
    settled: Tensor | None = None  # bool [N]: an earlier processor has settled the next word; None: no hypothesis'

    def settle(self, rows: Tensor) -> None:
        self.settled = rows if self.settled is None else self.settled | rows


class LogitsProcessor(Protocol):
    """Changes log-probabilities of the next word, [N, V], in place: -inf forbids a word."""

    def __call__(self, log_probs: Tensor, step: Step) -> None: ...

    def forbids(self, step: Step) -> Forbidden | None:
        """The words that the processor forbids at this step; None if it does more than forbid."""


class OnlyNumbers:
    """Forbids padding, and words whose log-probability is NaN."""

    def __init__(self, pad: int):
        self.pad = pad

    def __call__(self, log_probs: Tensor, step: Step) -> None:
        log_probs.nan_to_num_(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        log_probs[:, self.pad] = -math.inf

    def forbids(self, step: Step) -> Forbidden:
        return (self.pad,)


class UnknownPenalty:
    """Unknown words cost as much more."""

    def __init__(self, unk: int, penalty: float):
        self.unk = unk
        self.penalty = penalty

    def __call__(self, log_probs: Tensor, step: Step) -> None:
        log_probs[:, self.unk] -= self.penalty

    def forbids(self, step: Step) -> Forbidden | None:
        return () if self.penalty == 0 else None


class MaximumLength:
    """At the limit of a sentence only the end may follow."""

    def __init__(self, eos: int):
        self.eos = eos

    def __call__(self, log_probs: Tensor, step: Step) -> None:
        if step.at_limit is not None:
            rows = step.at_limit.repeat_interleave(step.beams.beam)
            _only(log_probs, rows, torch.full_like(rows, self.eos, dtype=torch.long))
            step.settle(rows)

    def forbids(self, step: Step) -> Forbidden | None:
        return () if step.at_limit is None else None


class Prefix:
    """Forces the words of a prefix. If the prefix ends a sentence, all its hypotheses become the first one."""

    def __init__(self, pad: int, eos: int):
        self.pad = pad
        self.eos = eos

    def __call__(self, log_probs: Tensor, step: Step) -> None:
        words = step.beams.prefix_words(step.number)
        if words is None:
            return
        has_word = words.ne(self.pad) if step.at_limit is None else words.ne(self.pad) & ~step.at_limit
        rows = has_word.repeat_interleave(step.beams.beam)
        _only(log_probs, rows, words.repeat_interleave(step.beams.beam), counts=step.number >= step.beams.uncounted)
        step.settle(rows)
        if step.beams.has_in_prefix(self.eos, step.number):
            ends = has_word & words.eq(self.eos)
            # Only the first hypothesis has a finite score, and the sentence is finished once all have ended.
            step.beams.copy_first(ends)
            log_probs.copy_(step.beams.first_of(log_probs, ends))

    def forbids(self, step: Step) -> Forbidden | None:
        return () if step.beams.prefix_words(step.number) is None else None


class Suppressed:
    """Forbids words that are not forced."""

    def __init__(self, words: list[int]):
        self.words = tuple(words)

    def __call__(self, log_probs: Tensor, step: Step) -> None:
        for word in self.words:
            _forbid(log_probs, word, step.settled)

    def forbids(self, step: Step) -> Forbidden:
        return self.words


class MinimumLength:
    """The end does not follow before."""

    def __init__(self, eos: int, length: int):
        self.eos = eos
        self.length = length

    def __call__(self, log_probs: Tensor, step: Step) -> None:
        if step.number < self.length:
            _forbid(log_probs, self.eos, step.settled)

    def forbids(self, step: Step) -> Forbidden:
        return (self.eos,) if step.number < self.length else ()


class NoRepeatNgrams:
    """No n-gram of this size twice in a hypothesis."""

    def __init__(self, size: int, pad: int):
        self.size = size
        self.pad = pad

    def __call__(self, log_probs: Tensor, step: Step) -> None:
        words = step.beams.tokens[:, 1 : step.number + 1]
        block_repeated_ngrams(log_probs, words, self.size, self.pad, step.settled)

    def forbids(self, step: Step) -> Forbidden:
        return repeated_words(step.beams.tokens[:, 1 : step.number + 1], self.size, self.pad)


def forbidden_words(processors: Sequence[LogitsProcessor], step: Step) -> Tensor | None:
    """The words that some processors forbid at a step, int64 [N, W]; None if one of them does more than forbid."""
    of_all, of_each = [], []
    for process in processors:
        words = process.forbids(step)
        if words is None:
            return None
        if isinstance(words, Tensor):
            of_each.append(words)
        else:
            of_all += words
    tokens = step.beams.tokens
    forbidden = _row(tuple(of_all), tokens.device).expand(len(tokens), -1)
    return torch.cat((forbidden, *of_each), dim=1) if of_each else forbidden


@lru_cache
def _row(words: tuple[int, ...], device: torch.device) -> Tensor:
    return to_device([words], device)


def _forbid(log_probs: Tensor, word: int, settled: Tensor | None) -> None:
    if settled is None:
        log_probs[:, word] = -math.inf
    else:
        log_probs[:, word].masked_fill_(~settled, -math.inf)


def _only(log_probs: Tensor, rows: Tensor, words: Tensor, counts: bool = True) -> None:
    """In these rows, bool [N], only this word, int64 [N], may follow; unless it counts, by the log-probability 0."""
    words = words.unsqueeze(1)
    kept = log_probs.gather(1, words)
    if not counts:
        kept = kept.masked_fill(rows.unsqueeze(1), 0.0)
    log_probs.masked_fill_(rows.unsqueeze(1), -math.inf)
    log_probs.scatter_(1, words, kept)
