"""Which tokens follow the hypotheses: what the processors leave, and the search strategy chooses."""

from collections.abc import Sequence

from fairseq import search
from torch import Tensor

from elseq.generation.beam_search import AmongFew
from elseq.generation.beams import Candidates
from elseq.generation.logits_processors import LogitsProcessor, Step, forbidden_tokens
from elseq.generation.next_tokens import NextTokens


class Selection:
    """Selects the candidates of a step."""

    def __init__(self, strategy: search.Search, processors: Sequence[LogitsProcessor], eos: int):
        """
        Args:
            strategy: of elseq, or any other of fairseq's kind.
            processors: change log-probabilities before the strategy chooses, in this order.
            eos: the symbol that ends a hypothesis.
        """
        self.strategy = strategy
        self.processors = processors
        self.eos = eos

    def candidates(self, step: Step, next_tokens: NextTokens) -> tuple[Candidates, Tensor]:
        """The candidates of each sentence, and whether a log-probability was not a number, bool."""
        found = self._among_few(step, next_tokens)
        selected, is_nan = self._among_all(step, next_tokens) if found is None else found
        return Candidates.of(*selected, self.eos), is_nan

    def _among_few(self, step: Step, next_tokens: NextTokens) -> tuple[tuple[Tensor, ...], Tensor] | None:
        """What the strategy selects, and whether there was no number, where few tokens of each hypothesis suffice."""
        beams, strategy = step.beams, self.strategy
        count = strategy.needed(beams.beam) if isinstance(strategy, AmongFew) else None
        if count is None or not next_tokens.offers_best:
            return None
        forbidden = forbidden_tokens(self.processors, step)
        found = None if forbidden is None else strategy.find(next_tokens, count, forbidden)
        if found is None:
            return None
        best, tokens, is_nan = found
        best, tokens, scores = (beams.by_sentence(each) for each in (best, tokens, beams.scores))
        selected = strategy.select(step.number, best, tokens, scores[:, :, : step.number])
        return None if selected is None else (selected, is_nan)

    def _among_all(self, step: Step, next_tokens: NextTokens) -> tuple[tuple[Tensor, ...], Tensor]:
        """The same from the log-probabilities of all tokens."""
        log_probs, beams, sentences = next_tokens.log_probs, step.beams, step.beams.sentences
        is_nan = log_probs.amax().isnan()
        for process in self.processors:
            process(log_probs, step)
        beams.scores = beams.scores.type_as(log_probs)
        if getattr(self.strategy, "needs_src_lengths", False):
            self.strategy.set_src_lengths(sentences.source_lengths)
        tokens = beams.tokens[:, : step.number + 1]
        log_probs, scores = (beams.by_sentence(each) for each in (log_probs, beams.scores))
        selected = self.strategy.step(step.number, log_probs, scores[:, :, : step.number], tokens, sentences.sample_ids)
        return selected, is_nan
