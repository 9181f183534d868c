"""Beam search: which continuations of a sentence's hypotheses are the best.

Shapes: B sentences, beam hypotheses each, N = B * beam, V tokens of the vocabulary, C candidates of a sentence.
"""

import math

import torch
from fairseq import search
from torch import Tensor

from elseq.generation import transfers
from elseq.generation.next_tokens import NextTokens


class AmongFew:
    """A search strategy that chooses among few tokens of each hypothesis: the best ones, or what `find` finds."""

    def needed(self, beam: int) -> int | None:
        """How many tokens of each of so many hypotheses `select` asks for; None: all, by `step`."""
        raise NotImplementedError

    def find(self, tokens: NextTokens, count: int, forbidden: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """The tokens to choose among; as `NextTokens.best`."""
        return tokens.best(count, forbidden)

    def select(
        self, step: int, best: Tensor, tokens: Tensor, scores: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """As `step`, from these tokens of each hypothesis, in any order.

        Args:
            step, scores: as for `step`.
            best: log-probabilities, [B, beam, W], which may be overwritten: W tokens, all of them or `needed`.
            tokens: int64 [B, beam, W], likewise.

        Returns:
            None where fairseq would choose among equal scores, on a CPU: `step` then does so. Nothing has been drawn.
        """
        raise NotImplementedError


def has_equal(scores: Tensor) -> bool:
    """Whether possible ones are equal, on a CPU; scores: in descending order along the last dimension.

    On a GPU the host does not ask: any of the tokens will do.
    """
    if transfers.is_asynchronous(scores.device):
        return False
    return bool(((scores[..., 1:] == scores[..., :-1]) & (scores[..., 1:] > -math.inf)).any())


class BeamSearch(AmongFew, search.BeamSearch):
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
            step: tokens that the hypotheses have.
            lprobs: log-probabilities of the next token, [B, beam, V].
            scores: cumulative ones of the tokens so far, [B, beam, step].
            prev_output_tokens, original_batch_idxs: unused.

        Returns:
            For each sentence, best first, the candidates' scores, tokens and hypotheses, each [B, C], C <= 2 beam. On a
            CPU, where asking costs nothing, fairseq chooses among equal scores.
        """
        best, tokens = torch.topk(lprobs, min(self.needed(lprobs.size(1)), lprobs.size(2)), dim=2)
        found = self.select(step, best, tokens, scores)
        if found is None:
            # It copies the log-probabilities that it is given: of one sentence at a time.
            ours = [None] * len(lprobs) if scores is None else scores.split(1)
            each = [super(BeamSearch, self).step(step, *pair) for pair in zip(lprobs.split(1), ours, strict=True)]
            found = tuple(map(torch.cat, zip(*each, strict=True)))
        return found

    @staticmethod
    def needed(beam: int) -> int:
        return 2 * beam + 1  # the last one tells whether others are equal to what is chosen

    @staticmethod
    def select(step: int, best: Tensor, tokens: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor, Tensor] | None:
        sentences, beam, width = best.shape
        if step == 0:  # all hypotheses of a sentence are still the same
            best, tokens = best[:, :1], tokens[:, :1]
        else:
            best = best + scores[:, :, step - 1 :]
        candidates = min(2 * beam, best.size(1) * width - 1)
        best, index = torch.topk(best.reshape(sentences, -1), candidates + 1, dim=1)
        if has_equal(best):
            return None
        best, index = best[:, :-1], index[:, :-1]
        return best, tokens.reshape(sentences, -1).gather(1, index), index // width


class GreedySearch(BeamSearch):
    """Beam search with a beam of 1: the most probable token follows, until it is the end."""
