"""Beam search: which continuations of a sentence's hypotheses are the best."""

import torch
from fairseq import search
from torch import Tensor


class BeamSearch(search.BeamSearch):
    """fairseq's beam search. It selects within each hypothesis before it compares hypotheses.

    The best continuations of a sentence are among the best of each of its hypotheses; only those few need scores.
    """

    def step(
        self,
        step: int,
        lprobs: Tensor,
        scores: Tensor | None,
        prev_output_tokens: Tensor | None = None,
        original_batch_idxs: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The candidates, twice as many as hypotheses: so many go on even if the others all end.

        Args:
            step: words that the hypotheses have.
            lprobs: log-probabilities of the next word, [B, beam, V]: B sentences, V words.
            scores: cumulative ones of the words so far, [B, beam, step].
            prev_output_tokens, original_batch_idxs: unused.

        Returns:
            For each sentence, best first, the candidates' scores, words and hypotheses, each [B, C], C <= 2 beam. On a
            CPU, where asking costs nothing, fairseq chooses among equal scores.
        """
        sentences, beam, vocabulary = lprobs.shape
        rows = lprobs[:, :1] if step == 0 else lprobs  # at first all hypotheses of a sentence are still the same
        candidates = min(2 * beam, rows.size(1) * vocabulary - 1)
        best, words = torch.topk(rows, min(candidates + 1, vocabulary), dim=2)
        if step > 0:
            best = best + scores[:, :, step - 1 :]
        best, index = torch.topk(best.view(sentences, -1), candidates + 1, dim=1)
        if not best.is_cuda and bool((best[:, 1:] == best[:, :-1]).any()):
            return super().step(step, lprobs, scores)
        best, index = best[:, :-1], index[:, :-1]
        return best, words.view(sentences, -1).gather(1, index), index // words.size(2)


class GreedySearch(BeamSearch):
    """Beam search with a beam of 1: the most probable word follows, until it is the end."""
