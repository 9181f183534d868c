"""Beam search: which continuations of a sentence's hypotheses are the best."""

import torch
from fairseq import search
from torch import Tensor

from elseq.generation import transfers


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
        best, words = torch.topk(lprobs, min(self.needed(lprobs.size(1)), lprobs.size(2)), dim=2)
        found = self.select(step, best, words, scores)
        if found is None:
            # It copies the log-probabilities that it is given: of one sentence at a time.
            ours = [None] * len(lprobs) if scores is None else scores.split(1)
            each = [super(BeamSearch, self).step(step, *pair) for pair in zip(lprobs.split(1), ours, strict=True)]
            found = tuple(map(torch.cat, zip(*each, strict=True)))
        return found

    @staticmethod
    def needed(beam: int) -> int:
        """How many of the best words of each hypothesis `select` asks for."""
        return 2 * beam + 1

    @staticmethod
    def select(step: int, best: Tensor, words: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor, Tensor] | None:
        """As `step`, from the best words of each hypothesis, in any order.

        Args:
            step, scores: as for `step`.
            best: their log-probabilities, [B, beam, W]: W words, all of them or `needed`.
            words: int64 [B, beam, W].

        Returns:
            None if there are equal scores, on a CPU.
        """
        sentences, beam, width = best.shape
        if step == 0:  # all hypotheses of a sentence are still the same
            best, words = best[:, :1], words[:, :1]
        else:
            best = best + scores[:, :, step - 1 :]
        candidates = min(2 * beam, best.size(1) * width - 1)
        best, index = torch.topk(best.reshape(sentences, -1), candidates + 1, dim=1)
        if transfers.is_free(best.device) and bool((best[:, 1:] == best[:, :-1]).any()):
            return None
        best, index = best[:, :-1], index[:, :-1]
        return best, words.reshape(sentences, -1).gather(1, index), index // width


class GreedySearch(BeamSearch):
    """Beam search with a beam of 1: the most probable word follows, until it is the end."""
