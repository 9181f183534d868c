"""fairseq's search strategies as it has them, but that they choose among few tokens of each hypothesis where these
suffice, and ask a GPU for nothing in a step.

Shapes: B sentences, beam hypotheses each, V tokens of the vocabulary, W that may be chosen, C candidates of a sentence.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from fairseq import search
from torch import Tensor

from elseq.compat.generation import DiverseBeamSearch as RepairedDiverseBeamSearch
from elseq.compat.generation import Sampling as RepairedSampling
from elseq.generation import transfers
from elseq.generation.beam_search import AmongFew, BeamSearch, has_equal
from elseq.generation.next_tokens import NextTokens


class Sampling(AmongFew, RepairedSampling):
    """Draws the tokens that fairseq draws. fairseq's draw asks whether its probabilities are any.

    On a GPU a seed gives other tokens, by the same probabilities, where top-p sampling of fairseq waits for the size of
    the largest set, and where a kernel draws from all tokens.
    """

    random_generator: torch.Generator | None = None  # None: torch's own numbers

    def needed(self, beam: int) -> int | None:
        if self.sampling_topp > 0:
            return None
        return self.sampling_topk + 1 if self.sampling_topk > 0 else 1

    def find(self, tokens: NextTokens, count: int, forbidden: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        return (
            tokens.best(count, forbidden)
            if self.sampling_topk > 0
            else tokens.sampled(forbidden, self.random_generator)
        )

    def select(
        self, step: int, best: Tensor, tokens: Tensor, scores: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        nothing = best.amax(dim=2).exp().eq(0)  # is left: then it is the end, see `RepairedSampling`
        best[:, :, 0].masked_fill_(nothing, 0.0)
        tokens[:, :, 0].masked_fill_(nothing, self.eos)
        if self.sampling_topk <= 0:  # the token is drawn
            best = best if step == 0 else best + scores[:, :, step - 1 :]
            return best.squeeze(2), tokens.squeeze(2), _every(tokens)
        # Forbidden tokens are among the others, so they are put in order; not on a GPU, which is not asked.
        if not transfers.is_asynchronous(best.device):
            most = best.topk(min(self.sampling_topk + 1, best.size(2)))[0]
            if has_equal(most):
                return None
        found, index, hypotheses = self.draw(step, best, scores)
        return found, tokens.flatten(1).gather(1, hypotheses * tokens.size(2) + index), hypotheses

    def draw(
        self,
        step: int,
        lprobs: Tensor,
        scores: Tensor | None,
        prev_output_tokens: Tensor | None = None,
        original_batch_idxs: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a token for each hypothesis.

        Args:
            step: tokens that the hypotheses have.
            lprobs: log-probabilities of the next token, [B, beam, V], which are overwritten.
            scores: cumulative ones of the tokens so far, [B, beam, step]; unused in step 0.
            prev_output_tokens, original_batch_idxs: unused.

        Returns:
            Scores, tokens and hypotheses, each [B, beam].
        """
        beam, tokens = lprobs.size(1), None
        if step == 0:  # all hypotheses of a sentence are still the same
            lprobs = lprobs[:, :1].contiguous()
        if self.sampling_topp > 0:
            probs, tokens = self._sample_topp(lprobs)
        elif self.sampling_topk > 0:
            lprobs, tokens = lprobs.topk(self.sampling_topk)
            probs = lprobs.exp_()
        else:
            probs = lprobs.exp_()
        if step == 0:
            drawn = torch.multinomial(
                probs.squeeze(1), beam, replacement=True, generator=self.random_generator
            ).unsqueeze(2)
            probs, tokens = (None if each is None else each.expand(-1, beam, -1) for each in (probs, tokens))
            before, hypotheses = 0, torch.zeros_like(_every(drawn))
        else:  # as `torch.multinomial` draws one token: the first of events that come at these rates
            drawn = (probs / torch.empty_like(probs).exponential_(generator=self.random_generator)).argmax(
                dim=2, keepdim=True
            )
            before, hypotheses = scores[:, :, step - 1], _every(drawn)
        found = probs.gather(2, drawn).log_().squeeze(2)
        tokens = drawn if tokens is None else tokens.gather(2, drawn)
        return before + found, tokens.squeeze(2), hypotheses

    def _sample_topp(self, lprobs: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities, best first, of the fewest tokens that have more than p together, 0 of others; the tokens."""
        if not transfers.is_asynchronous(lprobs.device):
            return super()._sample_topp(lprobs)
        probs, tokens = lprobs.exp_().sort(descending=True)
        last = probs.cumsum(dim=2).lt(self.sampling_topp).sum(dim=2, keepdim=True)
        return probs.masked_fill_(torch.arange(probs.size(2), device=probs.device) > last, 0), tokens


class DiverseBeamSearch(AmongFew, RepairedDiverseBeamSearch):
    """Groups of hypotheses, which avoid each other's tokens (arXiv 1610.02424)."""

    def needed(self, beam: int) -> int | None:
        # Those that earlier groups may lower, as many as their candidates, and those that the group itself needs.
        return BeamSearch.needed(beam) if self.diversity_strength <= 0 <= self.diversity_discount else None

    def select(
        self, step: int, best: Tensor, tokens: Tensor, scores: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        share, chosen = self.begin(step, best), []
        for group in range(self.num_groups):
            log_probs, own, before = (each[:, group :: self.num_groups] for each in (best, tokens, scores))
            penalty = torch.zeros_like(log_probs)
            if chosen:
                taken, weights = (each[:, None, None] for each in self.taken(group, chosen))
                penalty = (own.unsqueeze(3).eq(taken) * weights).sum(dim=3)
            found = BeamSearch.select(step, self.lowered(group, share, log_probs, penalty), own, before)
            if found is None:
                return None
            chosen.append(self.choose(group, share, *found))
        return self.end(share, chosen)


class DiverseSiblingsSearch(AmongFew, search.DiverseSiblingsSearch):
    """A hypothesis' continuations cost the more, the more of its others are better (arXiv 1611.08562)."""

    needed = staticmethod(BeamSearch.needed)

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
        _, beam, vocabulary = lprobs.shape
        candidates = min(2 * beam, beam * vocabulary - 1)
        width = min(candidates, vocabulary)
        return self._among_siblings(candidates, *torch.topk(lprobs + scores[:, :, step - 1 :], width, dim=2))

    def select(
        self, step: int, best: Tensor, tokens: Tensor, scores: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        if step == 0:
            return BeamSearch.select(step, best, tokens, scores)
        _, beam, width = best.shape
        candidates = min(2 * beam, beam * width - 1)
        best, index = torch.topk(best + scores[:, :, step - 1 :], min(candidates + 1, width), dim=2)
        if has_equal(best):
            return None
        best, tokens = best[:, :, :candidates], tokens.gather(2, index)[:, :, :candidates]
        return self._among_siblings(candidates, best, tokens)

    def _among_siblings(self, candidates: int, best: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """So many candidates; best, tokens: scores of the siblings, best first, and their tokens, each [B, beam, W]."""
        width = best.size(2)
        best = best - self.diversity_rate * torch.arange(1, width + 1, dtype=best.dtype, device=best.device)
        best, index = torch.topk(best.flatten(1), candidates, dim=1)
        return best, tokens.flatten(1).gather(1, index), index // width


@contextmanager
def seeded(search, seed: int) -> Iterator[None]:
    """Within the context the random numbers of a search depend on a seed alone.

    A strategy of elseq's has a generator of its own. For others torch's own numbers are seeded, and restored after;
    other threads must not draw any meanwhile.

    Args:
        search: a generator of elseq's or of fairseq's.
        seed: of at most 64 bits.
    """
    strategy, device = search.search, next(search.parameters()).device
    if isinstance(strategy, Sampling):
        strategy.random_generator = torch.Generator(device).manual_seed(seed)
        try:
            yield
        finally:
            strategy.random_generator = None
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _every(hypotheses: Tensor) -> Tensor:
    """The numbers of all hypotheses of each sentence, int64 [B, beam]; hypotheses: [B, beam, ...]."""
    return torch.arange(hypotheses.size(1), device=hypotheses.device).expand(hypotheses.shape[:2])


def as_ours(strategy: search.Search, tgt_dict) -> search.Search:
    """The same strategy by a class of this module, if there is one: subclasses of fairseq's may do otherwise."""
    if type(strategy) is search.Sampling:
        return Sampling(tgt_dict, strategy.sampling_topk, strategy.sampling_topp)
    if type(strategy) is search.DiverseBeamSearch:
        return DiverseBeamSearch(
            tgt_dict, strategy.num_groups, -strategy.diversity_strength, strategy.diversity_discount
        )
    if type(strategy) is search.DiverseSiblingsSearch:
        return DiverseSiblingsSearch(tgt_dict, strategy.diversity_rate)
    return strategy
