"""fairseq's search strategies as it has them, but that they ask a GPU for nothing in a step.

Shapes: B sentences, beam hypotheses each, V words, C candidates of a sentence.
"""

import torch
from fairseq import search
from torch import Tensor

from elseq.compat.generation import Sampling as RepairedSampling
from elseq.generation import transfers


class Sampling(RepairedSampling):
    """Draws the words that fairseq draws. fairseq's draw asks whether its probabilities are any.

    On a GPU fairseq draws from so many words as the largest set of top-p sampling has, for which it waits. Here it is
    from all of them, so that a seed gives other words there.
    """

    def draw(
        self,
        step: int,
        lprobs: Tensor,
        scores: Tensor | None,
        prev_output_tokens: Tensor | None = None,
        original_batch_idxs: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a word for each hypothesis.

        Args:
            step: words that the hypotheses have.
            lprobs: log-probabilities of the next word, [B, beam, V], which are overwritten.
            scores: cumulative ones of the words so far, [B, beam, step].
            prev_output_tokens, original_batch_idxs: unused.

        Returns:
            Scores, words and hypotheses, each [B, beam].
        """
        if step == 0:
            return super().draw(step, lprobs, scores)
        words = None
        if self.sampling_topp > 0:
            probs, words = self._sample_topp(lprobs)
        elif self.sampling_topk > 0:
            lprobs, words = lprobs.topk(self.sampling_topk)
            probs = lprobs.exp_()
        else:
            probs = lprobs.exp_()
        # As `torch.multinomial` draws one word: the first of events that come at these rates.
        drawn = (probs / torch.empty_like(probs).exponential_()).argmax(dim=2, keepdim=True)
        scores = scores[:, :, step - 1] + probs.gather(2, drawn).log_().squeeze(2)
        words = drawn if words is None else words.gather(2, drawn)
        hypotheses = torch.arange(scores.size(1), device=scores.device).expand_as(scores)
        return scores, words.squeeze(2), hypotheses

    def _sample_topp(self, lprobs: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities, best first, of the fewest words that have more than p together, and 0 of others; the words."""
        if transfers.is_free(lprobs.device):
            return super()._sample_topp(lprobs)
        probs, words = lprobs.exp_().sort(descending=True)
        last = probs.cumsum(dim=2).lt(self.sampling_topp).sum(dim=2, keepdim=True)
        return probs.masked_fill_(torch.arange(probs.size(2), device=probs.device) > last, 0), words


class DiverseSiblingsSearch(search.DiverseSiblingsSearch):
    """A hypothesis' continuations cost the more, the more of its others are better (arXiv 1611.08562)."""

    def step(
        self,
        step: int,
        lprobs: Tensor,
        scores: Tensor | None,
        prev_output_tokens: Tensor | None = None,
        original_batch_idxs: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The candidates; see `elseq.generation.beam_search.BeamSearch.step`."""
        if step == 0:
            return self.beam.step(step, lprobs, scores)
        _, beam, words = lprobs.shape
        candidates = min(2 * beam, beam * words - 1)
        width = min(candidates, words)
        best, words = torch.topk(lprobs + scores[:, :, step - 1 :], width, dim=2)
        best = best - self.diversity_rate * torch.arange(1, width + 1, dtype=best.dtype, device=best.device)
        best, index = torch.topk(best.flatten(1), candidates, dim=1)
        return best, words.flatten(1).gather(1, index), index // width


def as_ours(strategy: search.Search, tgt_dict) -> search.Search:
    """The same strategy by a class of this module, if there is one: subclasses of fairseq's may do otherwise."""
    if type(strategy) is search.Sampling:
        return Sampling(tgt_dict, strategy.sampling_topk, strategy.sampling_topp)
    if type(strategy) is search.DiverseSiblingsSearch:
        return DiverseSiblingsSearch(tgt_dict, strategy.diversity_rate)
    return strategy
