"""Batches: which sentences are decoded together, and how a batch is split when memory does not suffice."""

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from elseq.errors import UserError, is_out_of_memory
from elseq.generation.cuda_graphs import release_all

logger = logging.getLogger(__name__)


def cut_batches(lengths: Sequence[int], capacity: Callable[[int], int]) -> list[np.ndarray]:
    """`cut_by` with the size of a batch depending on its longest sentence.

    Args:
        lengths: of each sentence; those of length 0 are in no batch.
        capacity: how many sentences of a length a batch may hold, at least 1.
    """
    return cut_by(lengths, lambda order: capacity(int(lengths[order[0]])))


def cut_by(lengths: Sequence[int], capacity: Callable[[np.ndarray], int]) -> list[np.ndarray]:
    """Batches of sentences of similar length, the longest first, so that one that does not fit fails at once.

    Equal lengths give equal batches, also in a run that continues later or in other processes.

    Args:
        lengths: of each sentence; those of length 0 are in no batch.
        capacity: how many of the given sentences, from the first on, a batch may hold, at least 1.

    Returns:
        Indices into `lengths`.
    """
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
    batches = []
    while len(order):
        size = capacity(order)
        batches.append(order[:size])
        order = order[size:]
    return batches


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, if all smaller ones do; 0 if not even 1 does."""
    above = 1
    while fits(above):
        above *= 2
    low, high = above // 2, above
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


class SplittingDecoder:
    """Decodes batches, in parts if memory does not suffice for the whole."""

    def __init__(self, decode: Callable, lengths: Sequence[int], name: Callable[[int], str]):
        """
        Args:
            decode: the results of a list of sentences, given by their numbers.
            lengths: of each sentence.
            name: what to call a sentence in an error.
        """
        self._decode = decode
        self._lengths = lengths
        self._name = name
        self._most = float("inf")  # padded tokens that a part may have

    def __call__(self, batch: Sequence[int]) -> Iterator[tuple[list[int], list]]:
        """The parts of the batch and their results, each as soon as it is there.

        Raises:
            UserError: a sentence that does not even fit alone.
        """
        waiting = [[int(number) for number in batch]]
        while waiting:
            part = waiting.pop()
            if len(part) > 1 and self._padded_tokens(part) > self._most:
                waiting += _halves(part)
                continue
            results = self._try(part)
            if results is not None:
                yield part, results
                continue
            if len(part) == 1:
                raise UserError(
                    f"{self._name(part[0])} does not fit the memory, even alone ({self._lengths[part[0]]} tokens): "
                    "shorten it, lower the beam, or take a device with more memory"
                )
            second, first = _halves(part)
            # What did not fit once will not fit the next time: later batches are not tried at this size.
            self._most = self._padded_tokens(first)
            logger.warning("out of memory with %d sentences at once: going on with %d", len(part), len(first))
            waiting += [second, first]

    def _try(self, part: list[int]) -> list | None:
        """The results, or None if memory did not suffice."""
        try:
            return self._decode(part)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Here the error is gone, and with it the tensors that its traceback held.
        release_all()
        return None

    def _padded_tokens(self, part: list[int]) -> int:
        return len(part) * max(int(self._lengths[number]) for number in part)


def _halves(part: list[int]) -> list[list[int]]:
    """The second half and the first, which is not smaller."""
    middle = (len(part) + 1) // 2
    return [part[middle:], part[:middle]]
