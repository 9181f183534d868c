"""Log-probabilities of the next word, of all words or of the best ones only."""

from collections.abc import Callable

import torch
from torch import Tensor

from elseq import native
from elseq.precision import kernels

MOST = 64  # words that are found one by one while the others are read


class NextWords:
    """Log-probabilities of the word that follows each of N hypotheses, of V words.

    On a CPU most searches only ask for the best words. Then the others get no log-probability, and no memory.
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
            if self.offers_best and not native.is_recorded():
                logits = self._logits.float()
                value, word = kernels.log_softmax_top(logits, 1)
                self._log_probs = logits.sub_(logits.gather(1, word)).add_(value)
            else:
                self._log_probs = self._normalize(self._logits)
            self._logits = None
        return self._log_probs

    @property
    def offers_best(self) -> bool:
        """Whether `best` finds words without reading `log_probs`."""
        logits = self._logits
        return (
            logits is not None and logits.device.type == "cpu" and logits.dtype != torch.float64 and kernels.available()
        )

    def best(self, count: int) -> tuple[Tensor, Tensor] | None:
        """Log-probabilities and words, each [N, count], best first, NaN where a row has no numbers; None: find them in
        `log_probs`."""
        if not (self.offers_best and MOST >= count <= self._logits.size(1)):
            return None
        logits = self._logits.float()
        values, words = kernels.log_softmax_top(logits, count)
        # The same numbers as in `log_probs`: which of them is asked for depends on the batch.
        chosen = logits.gather(1, words)
        return (chosen - chosen[:, :1]).add_(values[:, :1]), words
