"""When the search for a sentence ends."""

from dataclasses import dataclass

from elseq.bounds import check_bounds
from elseq.errors import UserError, check_choice
from elseq.options import FIRST, NEVER, RULES


@dataclass(frozen=True)
class Stopping:
    """A rule that ends beam search.

    first: as many hypotheses as the beam has are finished (fairseq, and `early_stopping=True` in transformers). With a
    patience P it is P times as many, of which the best are kept (arXiv 2204.05424, algorithm 1).

    bound: the beam is full of finished hypotheses, and the best unfinished one, at its present length, scores no more
    than the worst of them (`early_stopping=False` in transformers).

    never: as bound, but with a length penalty above 0 the maximum length counts instead of the present one
    (`early_stopping="never"` in transformers). As scores only fall with length, no better hypothesis is missed.
    """

    early_stopping: str = FIRST
    beam_patience: float = 1.0

    def __post_init__(self):
        """
        Raises:
            UserError: a rule that is unknown, or a patience that is not above 0 or that the rule does not have.
        """
        check_choice("early_stopping", self.early_stopping, RULES)
        check_bounds("beam_patience", self.beam_patience, 1.0)
        if self.is_bounded and self.beam_patience != 1:
            raise UserError(
                f"{self.beam_patience:g} is for the rule first: leave it out, or the other rule", "beam_patience"
            )

    @property
    def is_bounded(self) -> bool:
        """Whether scores decide, not the number of finished hypotheses alone."""
        return self.early_stopping != FIRST

    @property
    def option(self) -> tuple[str, object] | None:
        """The option that differs from fairseq's rule, and its value; None: none does."""
        if self.is_bounded:
            return "early_stopping", self.early_stopping
        return None if self.beam_patience == 1 else ("beam_patience", self.beam_patience)

    def finished(self, beam: int) -> int:
        """Finished hypotheses that a sentence has when its search may end."""
        return beam if self.is_bounded else max(1, round(self.beam_patience * beam))

    def best_possible(self, total: float, length: int, maximum: int, length_penalty: float | None) -> float:
        """The score that an unfinished hypothesis can reach, as the rule estimates it.

        Args:
            total: its log-probability.
            length: its tokens.
            maximum: tokens that it may have, the end included.
            length_penalty: see `FinishedHypotheses`.
        """
        if length_penalty is None:
            return total
        length = maximum if self.early_stopping == NEVER and length_penalty > 0 else length
        return total / length**length_penalty


BY_DEFAULT = Stopping()  # fairseq's rule
