"""Processors of log-probabilities: each forbids, forces or penalizes next tokens before the search chooses.

Shapes: B sentences, N = B * beam hypotheses (those of a sentence are adjacent), V tokens of the vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from elseq.generation.beams import Beams
from elseq.generation.ngrams import repeated_tokens
from elseq.generation.transfers import to_device

# Tokens that may not follow: the same ones for all hypotheses, or those of each, int64 [N, W].
Forbidden = tuple[int, ...] | Tensor


@dataclass
class Step:
    """The state of the search that a processor reads beside the log-probabilities."""

    number: int  # tokens that the hypotheses have
    beams: Beams
    at_limit: Tensor | None  # bool [B]: sentences whose hypotheses must end now; None: no sentence
    settled: Tensor | None = None  # bool [N]: an earlier processor has settled the next token; None: no hypothesis'

    def settle(self, rows: Tensor) -> None:
        self.settled = rows if self.settled is None else self.settled | rows


class LogitsProcessor(Protocol):
    """Changes log-probabilities of the next token, [N, V], in place: -inf forbids a token."""

    def __call__(self, log_probs: Tensor, step: Step) -> None: ...

    def forbids(self, step: Step) -> Forbidden | None:
        """The tokens that the processor forbids at this step; None if it does more than forbid."""


class OnlyNumbers:
    """Forbids padding, and tokens whose log-probability is NaN."""

    def __init__(self, pad: int):
        self.pad = pad

    def __call__(self, log_probs: Tensor, step: Step) -> None:
        log_probs.nan_to_num_(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        log_probs[:, self.pad] = -math.inf

    def forbids(self, step: Step) -> Forbidden:
        return (self.pad,)


class UnknownPenalty:
    """Unknown tokens cost as much more."""

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
    """Forces the tokens of a prefix. If the prefix ends a sentence, all its hypotheses become the first one."""

    def __init__(self, pad: int, eos: int):
        self.pad = pad
        self.eos = eos

    def __call__(self, log_probs: Tensor, step: Step) -> None:
        beams, sentences = step.beams, step.beams.sentences
        tokens = sentences.prefix_at(step.number)
        if tokens is None:
            return
        has_token = tokens.ne(self.pad) if step.at_limit is None else tokens.ne(self.pad) & ~step.at_limit
        rows, counts = has_token.repeat_interleave(beams.beam), step.number >= sentences.uncounted
        _only(log_probs, rows, tokens.repeat_interleave(beams.beam), counts)
        step.settle(rows)
        if sentences.has_in_prefix(self.eos, step.number):
            ends = has_token & tokens.eq(self.eos)
            # Only the first hypothesis has a finite score, and the sentence is finished once all have ended.
            beams.copy_first(ends)
            log_probs.copy_(beams.first_of(log_probs, ends))

    def forbids(self, step: Step) -> Forbidden | None:
        return () if step.beams.sentences.prefix_at(step.number) is None else None


class _Forbids:
    """Forbids tokens that are not forced: a base class of rules that do nothing else."""

    def __call__(self, log_probs: Tensor, step: Step) -> None:
        forbidden = self.forbids(step)
        if not isinstance(forbidden, Tensor):
            forbidden = _row(forbidden, log_probs.device).expand(len(log_probs), -1)
        kept = -math.inf
        if step.settled is not None:
            kept = log_probs.gather(1, forbidden).masked_fill_(~step.settled.unsqueeze(1), -math.inf)
        log_probs.scatter_(1, forbidden, kept)


class Suppressed(_Forbids):
    """Some tokens are never chosen."""

    def __init__(self, tokens: list[int]):
        self.tokens = tuple(tokens)

    def forbids(self, step: Step) -> Forbidden:
        return self.tokens


class MinimumLength(_Forbids):
    """The end does not follow before."""

    def __init__(self, eos: int, length: int):
        self.eos = eos
        self.length = length

    def forbids(self, step: Step) -> Forbidden:
        return (self.eos,) if step.number < self.length else ()


class NoRepeatNgrams(_Forbids):
    """No n-gram of this size twice in a hypothesis."""

    def __init__(self, size: int, pad: int):
        self.size = size
        self.pad = pad

    def forbids(self, step: Step) -> Forbidden:
        return repeated_tokens(step.beams.tokens[:, 1 : step.number + 1], self.size, self.pad)


def forbidden_tokens(processors: Sequence[LogitsProcessor], step: Step) -> Tensor | None:
    """The tokens that some processors forbid at a step, int64 [N, W]; None if one of them does more than forbid."""
    of_all, of_each = [], []
    for process in processors:
        forbidden = process.forbids(step)
        if forbidden is None:
            return None
        if isinstance(forbidden, Tensor):
            of_each.append(forbidden)
        else:
            of_all += forbidden
    tokens = step.beams.tokens
    forbidden = _row(tuple(of_all), tokens.device).expand(len(tokens), -1)
    return torch.cat((forbidden, *of_each), dim=1) if of_each else forbidden


@lru_cache
def _row(tokens: tuple[int, ...], device: torch.device) -> Tensor:
    return to_device([tokens], device)


def _only(log_probs: Tensor, rows: Tensor, tokens: Tensor, counts: bool = True) -> None:
    """In these rows, bool [N], only this token, int64 [N], may follow; unless it counts, by the log-probability 0."""
    tokens = tokens.unsqueeze(1)
    kept = log_probs.gather(1, tokens)
    if not counts:
        kept = kept.masked_fill(rows.unsqueeze(1), 0.0)
    log_probs.masked_fill_(rows.unsqueeze(1), -math.inf)
    log_probs.scatter_(1, tokens, kept)
