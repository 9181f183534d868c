"""The finished hypotheses of a batch."""

import torch
from torch import Tensor

from elseq.generation.stopping import BY_DEFAULT, Stopping


class FinishedHypotheses:
    """Collects finished hypotheses for each sentence of a batch: the first that end, or the best."""

    def __init__(
        self, sentences: int, beam: int, eos: int, length_penalty: float | None, stopping: Stopping = BY_DEFAULT
    ):
        """
        Args:
            sentences: B, the number of sentences.
            beam: hypotheses wanted for each.
            eos: the symbol that ends a hypothesis.
            length_penalty: a score is divided by length ** length_penalty; None: it is not.
            stopping: the rule that ends the search. Where scores decide, the best are kept, else the first that end.
        """
        self.beam = beam
        self.eos = eos
        self.length_penalty = length_penalty
        self.stopping = stopping
        self._wanted = stopping.finished(beam)
        self._on_host: list[list[float]] = [[] for _ in range(sentences)]  # the scores, where these decide
        self._found: list[list[dict[str, Tensor]]] = [[] for _ in range(sentences)]

    def scores(self, totals: Tensor, length: int, rejected: Tensor | None = None) -> Tensor:
        """What hypotheses score.

        Args:
            totals: their log-probabilities.
            length: their tokens, the end included.
            rejected: bool, of the shape of totals: those that are to score -inf.
        """
        if self.length_penalty is not None:
            totals = totals / length**self.length_penalty
        return totals if rejected is None else totals.masked_fill(rejected, float("-inf"))

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
        totals = self.scores(totals, tokens.size(1), rejected)
        for row, sentence in enumerate(sentences):
            if self.stopping.is_bounded or len(self._found[sentence]) < self._wanted:
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

    def _keep_best(self, sentence: int) -> None:
        found, scores = self._found[sentence], self._on_host[sentence]
        order = sorted(range(len(found)), key=scores.__getitem__, reverse=True)[: self.beam]
        self._found[sentence] = [found[index] for index in order]
        self._on_host[sentence] = [scores[index] for index in order]

    def count(self, sentence: int) -> int:
        return len(self._found[sentence])

    def is_full(self, sentence: int) -> bool:
        """Whether the sentence has as many as its search may end with."""
        return self.count(sentence) >= self._wanted

    def can_improve(self, sentence: int, total: float, length: int, maximum: int) -> bool:
        """Whether an unfinished hypothesis may become one that is kept, as the rule estimates it.

        Args:
            sentence: one that `is_full`, where scores decide.
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
