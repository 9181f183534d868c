"""The finished hypotheses of a batch.

Shapes: as in `elseq.generation.beams`.
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

from elseq.generation.beams import Beams, Candidates
from elseq.generation.stopping import BY_DEFAULT, Stopping
from elseq.generation.transfers import HostCopy, to_device


class StepResult(NamedTuple):
    """What the host reads of a step."""

    step: int
    beams: Beams  # as they were before any went on
    candidates: Candidates
    copied: HostCopy  # see `FinishedHypotheses.result`


class NotANumber(Exception):
    """A model's output at a step is not a number. The sentences are those before any left."""

    def __init__(self, beams: Beams, step: int):
        super().__init__()
        self.beams = beams
        self.step = step


class FinishedHypotheses:
    """Collects finished hypotheses for each sentence of a batch: the first that end, or the best."""

    def __init__(
        self,
        sentences: int,
        beam: int,
        eos: int,
        length_penalty: float | None,
        stopping: Stopping = BY_DEFAULT,
        match_source_len: bool = False,
    ):
        """
        Args:
            sentences: B, the number of sentences.
            beam: hypotheses wanted for each.
            eos: the symbol that ends a hypothesis.
            length_penalty: a score is divided by length ** length_penalty; None: it is not.
            stopping: the rule that ends the search. Where scores decide, the best are kept, else the first that end.
            match_source_len: hypotheses that are longer than their source score -inf.
        """
        self.beam = beam
        self.eos = eos
        self.length_penalty = length_penalty
        self.stopping = stopping
        self.match_source_len = match_source_len
        self._wanted = stopping.finished(beam)
        self._on_host: list[list[float]] = [[] for _ in range(sentences)]  # the scores, where these decide
        self._found: list[list[dict[str, Tensor]]] = [[] for _ in range(sentences)]

    def result(self, step: int, beams: Beams, candidates: Candidates, is_nan: Tensor) -> StepResult:
        """All that the host has to know of a step, asked of the device.

        Args:
            step, beams, candidates: before any candidate went on.
            is_nan: bool [1]: whether a log-probability was no number so far.
        """
        asked = {"ending": candidates.ending[:, : self.beam], "is_stuck": candidates.is_stuck, "is_nan": is_nan}
        if self.stopping.is_bounded:
            totals, rejected = candidates.scores, self._rejected(step, beams.sentences.source_lengths.unsqueeze(1))
            asked["scores"] = self._scores(totals[:, : self.beam], step + 1, rejected)
            asked["going"] = totals.masked_fill(candidates.ending, -math.inf).amax(dim=1)  # the best that goes on
        return StepResult(step, copy.copy(beams), candidates, HostCopy(**asked))

    def collect(self, result: StepResult) -> set[int]:
        """Add what ended at a step.

        Returns:
            The places of the sentences whose search is over.

        Raises:
            NotANumber: a log-probability was no number so far.
        """
        beams, step, sentences = result.beams, result.step, result.beams.sentences
        told = result.copied.tensors()
        if told["is_nan"]:
            raise NotANumber(beams, step)
        ended = told["ending"].nonzero().tolist()
        must_end = {place for place, is_last in enumerate(sentences.must_end(step)) if is_last}
        must_end.update(place for place, _ in told["is_stuck"].nonzero().tolist())
        self._finish(result, ended, told["scores"].tolist() if self.stopping.is_bounded else None)
        self._finish_best(step, must_end, beams)
        if not (ended or must_end or self.stopping.is_bounded):
            return set()
        full = {place for place, sentence in enumerate(sentences.numbers) if self._is_full(sentence)} - must_end
        if self.stopping.is_bounded:
            going = told["going"].tolist()
            full = {
                place
                for place in full
                if not self._can_improve(sentences.numbers[place], going[place], step + 1, sentences.limits[place] + 1)
            }
        return must_end | full

    def _finish(self, result: StepResult, ended: list[list[int]], scores: list[list[float]] | None) -> None:
        """Add the candidates at `ended`, pairs of sentence and candidate, which have these scores if scores decide."""
        if not ended:
            return
        beams, candidates, step = result.beams, result.candidates, result.step
        sentence, candidate = to_device(ended, beams.tokens.device).unbind(1)
        row = sentence * self.beam + candidates.hypotheses[sentence, candidate]
        self.add(
            [beams.sentences.numbers[place] for place, _ in ended],
            beams.tokens[row, : step + 1],
            beams.scores[row, :step],
            candidates.scores[sentence, candidate],
            None if beams.attention is None else beams.attention[row, :, 1 : step + 2],
            self._rejected(step, beams.sentences.source_lengths[sentence]),
            None if scores is None else [scores[place][column] for place, column in ended],
        )

    def _finish_best(self, step: int, must_end: set[int], beams: Beams) -> None:
        """A sentence none of whose hypotheses can go on or end gets its best one so far, ended all the same."""
        places = [place for place in sorted(must_end) if not self.count(beams.sentences.numbers[place])]
        if not places:
            return
        scores = beams.by_sentence(beams.scores)[to_device(places, beams.scores.device), :, :step]
        for place, lengths in zip(places, scores.isneginf().logical_not().sum(dim=2).tolist(), strict=True):
            length = max(lengths)
            row = place * self.beam + lengths.index(length)
            total = beams.scores[row, length - 1] if length else beams.scores.new_zeros(())
            self.add(
                [beams.sentences.numbers[place]],
                beams.tokens[row : row + 1, : length + 1],
                beams.scores[row : row + 1, :length],
                total.view(1),
                None if beams.attention is None else beams.attention[row : row + 1, :, 1 : length + 2],
            )

    def _rejected(self, step: int, source_lengths: Tensor) -> Tensor | None:
        """Whether hypotheses that end at this step, of sources of these lengths, are to score -inf; None: none is."""
        return step > source_lengths if self.match_source_len else None

    def add(
        self,
        sentences: list[int],
        tokens: Tensor,
        scores: Tensor,
        totals: Tensor,
        attention: Tensor | None,
        rejected: Tensor | None = None,
        on_host: list[float] | None = None,
    ) -> None:
        """Add hypotheses that end with this step, the better ones of a sentence first.

        Args:
            sentences: the sentence of each of F hypotheses.
            tokens: int64 [F, L + 1]: the starting symbol and L tokens.
            scores: [F, L]: cumulative log-probability of each token.
            totals: [F]: cumulative log-probability with the end.
            attention: [F, S, L + 1] to S source positions, or None.
            rejected: bool [F]: hypotheses that are to score -inf.
            on_host: the F scores, where scores decide and the search of the sentences may go on.
        """
        ended = torch.cat((tokens[:, 1:], tokens.new_full((len(tokens), 1), self.eos)), dim=1)
        cumulative = torch.cat((scores, totals.unsqueeze(1)), dim=1)
        positional = torch.cat((cumulative[:, :1], cumulative[:, 1:] - cumulative[:, :-1]), dim=1)
        totals = self._scores(totals, tokens.size(1), rejected)
        for row, sentence in enumerate(sentences):
            if self.stopping.is_bounded or not self._is_full(sentence):
                self._found[sentence].append(
                    {
                        # Copies: a row would keep those of all the others.
                        "tokens": ended[row].clone(),
                        "score": totals[row],
                        "attention": torch.empty(0) if attention is None else attention[row].clone(),
                        "alignment": torch.empty(0),
                        "positional_scores": positional[row].clone(),
                    }
                )

        if on_host is not None:
            for sentence, score in zip(sentences, on_host, strict=True):
                self._on_host[sentence].append(score)
            for sentence in set(sentences):
                self._keep_best(sentence)

    def _scores(self, totals: Tensor, length: int, rejected: Tensor | None = None) -> Tensor:
        """What hypotheses score.

        Args:
            totals: their log-probabilities.
            length: their tokens, the end included.
            rejected: bool, of the shape of totals: those that are to score -inf.
        """
        if self.length_penalty is not None:
            totals = totals / length**self.length_penalty
        return totals if rejected is None else totals.masked_fill(rejected, -math.inf)

    def _keep_best(self, sentence: int) -> None:
        found, scores = self._found[sentence], self._on_host[sentence]
        order = sorted(range(len(found)), key=scores.__getitem__, reverse=True)[: self.beam]
        self._found[sentence] = [found[index] for index in order]
        self._on_host[sentence] = [scores[index] for index in order]

    def count(self, sentence: int) -> int:
        return len(self._found[sentence])

    def _is_full(self, sentence: int) -> bool:
        """Whether the sentence has as many as its search may end with."""
        return self.count(sentence) >= self._wanted

    def _can_improve(self, sentence: int, total: float, length: int, maximum: int) -> bool:
        """Whether an unfinished hypothesis may become one that is kept, as the rule estimates it.

        Args:
            sentence: one that `_is_full`, where scores decide.
            total, length, maximum: of the best that goes on; see `Stopping.best_possible`.
        """
        best = self.stopping.best_possible(total, length, maximum, self.length_penalty)
        return best > self._on_host[sentence][-1]

    def ranked(self) -> list[list[dict[str, Tensor]]]:
        """The hypotheses of each sentence, best first, at most `beam`."""
        scores = [hypothesis["score"] for found in self._found for hypothesis in found]
        on_host = torch.stack(scores).cpu() if scores else torch.empty(0)  # a GPU is waited for once
        ranked = []
        for found, own in zip(self._found, on_host.split([len(found) for found in self._found]), strict=True):
            ranked.append([found[index] for index in torch.sort(own, descending=True)[1][: self.beam].tolist()])
        return ranked
