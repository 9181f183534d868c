"""The finished hypotheses of a batch."""

import torch
from torch import Tensor


class FinishedHypotheses:
    """Collects up to `beam` finished hypotheses for each sentence of a batch."""

    def __init__(self, sentences: int, beam: int, eos: int, length_penalty: float | None):
        """
        Args:
            sentences: B, the number of sentences.
            beam: hypotheses wanted for each.
            eos: the symbol that ends a hypothesis.
            length_penalty: a score is divided by length ** length_penalty; None: it is not.
        """
        self.beam = beam
        self.eos = eos
        self.length_penalty = length_penalty
        self._found: list[list[dict[str, Tensor]]] = [[] for _ in range(sentences)]

    def add(
        self,
        sentences: list[int],
        tokens: Tensor,
        scores: Tensor,
        totals: Tensor,
        attention: Tensor | None,
        rejected: Tensor | None = None,
    ) -> None:
        """Add hypotheses that end with this step, the better ones of a sentence first; those beyond `beam` are dropped.

        Args:
            sentences: the sentence of each of F hypotheses.
            tokens: int64 [F, L + 1]: the starting symbol and L tokens.
            scores: [F, L]: cumulative log-probability of each token.
            totals: [F]: cumulative log-probability with the end.
            attention: [F, S, L + 1] to S source positions, or None.
            rejected: bool [F]: hypotheses that are to score -inf.
        """
        length = tokens.size(1)
        ended = torch.cat((tokens[:, 1:], tokens.new_full((len(tokens), 1), self.eos)), dim=1)
        cumulative = torch.cat((scores, totals.unsqueeze(1)), dim=1)
        positional = torch.cat((cumulative[:, :1], cumulative[:, 1:] - cumulative[:, :-1]), dim=1)
        if self.length_penalty is not None:
            totals = totals / length**self.length_penalty
        if rejected is not None:
            totals = totals.masked_fill(rejected, float("-inf"))
        for row, sentence in enumerate(sentences):
            if len(self._found[sentence]) < self.beam:
                self._found[sentence].append(
                    {
                        "tokens": ended[row],
                        "score": totals[row],
                        "attention": torch.empty(0) if attention is None else attention[row],
                        "alignment": torch.empty(0),
                        "positional_scores": positional[row],
                    }
                )

    def count(self, sentence: int) -> int:
        return len(self._found[sentence])

    def ranked(self) -> list[list[dict[str, Tensor]]]:
        """The hypotheses of each sentence, best first."""
        ranked = []
        for found in self._found:
            scores = torch.stack([hypothesis["score"] for hypothesis in found]).cpu() if found else torch.empty(0)
            ranked.append([found[index] for index in torch.sort(scores, descending=True)[1].tolist()])
        return ranked
