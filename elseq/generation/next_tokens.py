"""Log-probabilities of the next token, of all tokens or of the best ones only."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from elseq import native
from elseq.generation import transfers
from elseq.generation.kernels.best_tokens import best_tokens, has_kernel, sampled_tokens
from elseq.generation.kernels.log_softmax_top import log_softmax_top

MOST_ON_CPU = 128  # tokens that are found one by one while the others are read


class NextTokens:
    """Log-probabilities of the token that follows each of N hypotheses, among V tokens.

    Most searches only need the best tokens. Kernels then compute and store no log-probabilities of the others.
    """

    def __init__(
        self, log_probs: Tensor | None = None, logits: Tensor | None = None, normalize: Callable | None = None
    ):
        """
        Args:
            log_probs: [N, V]; or instead of these
            logits: [N, V], which may be overwritten, and
            normalize: what makes log-probabilities of the logits.
        """
        self._log_probs = log_probs
        self._logits = logits
        self._normalize = normalize

    @property
    def log_probs(self) -> Tensor:
        """[N, V], the caller's to change."""
        if self._log_probs is None:
            if self.is_normalized_in_place:
                logits = self._logits.float()
                value, token = log_softmax_top(logits, 1)
                self._log_probs = logits.sub_(logits.gather(1, token)).add_(value)
            else:
                self._log_probs = self._normalize(self._logits)
            self._logits = None
        return self._log_probs

    @property
    def is_normalized_in_place(self) -> bool:
        """Whether `log_probs` are made of the logits in float32 where these are, by a kernel."""
        logits = self._logits
        return (
            logits is not None
            and logits.dtype != torch.float64
            and not transfers.is_asynchronous(logits.device)
            and native.library() is not None
            and not native.is_recorded()
        )

    @property
    def offers_best(self) -> bool:
        """Whether `best` finds tokens by less work than `log_probs` and a choice among them.

        On a CPU not in 16 bits: some are equal in almost every step, and then the search asks for all tokens after all.
        """
        numbers = self._log_probs if self._logits is None else self._logits
        if transfers.is_asynchronous(numbers.device):
            return numbers.dtype != torch.float64
        return numbers.dtype == torch.float32 and self.is_normalized_in_place

    def select(self, rows: Tensor) -> "NextTokens":
        """Those of these hypotheses, int64 [N']."""
        numbers = (self._log_probs, self._logits)
        return NextTokens(*(None if each is None else each.index_select(0, rows) for each in numbers), self._normalize)

    def best(self, count: int, forbidden: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """The best tokens. On a GPU `log_probs` cannot be read afterwards.

        Args:
            count: how many; on a GPU all, if there are fewer tokens.
            forbidden: int64 [N, W], tokens that are not among them.

        Returns:
            Log-probabilities, -inf where there is no number or the token is forbidden; tokens; each [N, count or more],
            best first, but for the forbidden ones; and whether a log-probability was no number, bool []. None: find
            them in `log_probs`.
        """
        if not self.offers_best:
            return None
        if transfers.is_asynchronous(forbidden.device):
            return _numbers(*self._best_on_gpu(count, forbidden))
        count += forbidden.size(1)
        if count > min(MOST_ON_CPU, self._logits.size(1)):
            return None
        # The same numbers as in `log_probs`: which of them is asked for depends on the batch.
        values, tokens, is_nan = _numbers(*log_softmax_top(self._logits, count))
        is_forbidden = (tokens.unsqueeze(2) == forbidden.unsqueeze(1)).any(dim=2)
        return values.masked_fill_(is_forbidden, -math.inf), tokens, is_nan

    def sampled(
        self, forbidden: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """A token of each hypothesis, sampled by its probability: other tokens than `torch.multinomial` draws.

        Returns what `best` does, for one token.

        Args:
            forbidden: as for `best`.
            generator: of the random numbers. Default: torch's own.
        """
        if self._logits is None or not has_kernel(self._logits, 1):
            return None
        return _numbers(*sampled_tokens(self._logits, forbidden, generator))

    def _best_on_gpu(self, count: int, forbidden: Tensor) -> tuple[Tensor, Tensor]:
        if self._logits is not None and has_kernel(self._logits, count):
            return best_tokens(self._logits, min(count, self._logits.size(1)), forbidden)
        log_probs = self.log_probs.scatter_(1, forbidden, -math.inf)
        return torch.topk(log_probs, min(count, log_probs.size(1)), dim=1)


def _numbers(values: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """These log-probabilities, -inf where there is no number; the tokens; whether there is one that is no number."""
    is_nan = values.isnan().any()
    return values.nan_to_num_(nan=-math.inf, posinf=math.inf, neginf=-math.inf), tokens, is_nan
