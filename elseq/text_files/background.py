"""Work in a background thread, in parallel to the model."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

WAITING = 8  # maximum number of waiting tasks


class Background:
    """Runs tasks in one thread, in the order in which they are given.

    A thread suffices: decoding tokens to text takes a hundredth of the time of the search, waiting for the disk does
    not block the model, and nothing is copied between processes. The next call, or the end, raises an error of the
    thread.
    """

    def __enter__(self):
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._waiting: deque[Future] = deque()
        return self

    def give(self, work: Callable, *arguments) -> None:
        """Add a task. Blocks while too many tasks are waiting."""
        self._waiting.append(self._thread.submit(work, *arguments))
        while self._waiting and (len(self._waiting) > WAITING or self._waiting[0].done()):
            self._waiting.popleft().result()

    def finish(self) -> None:
        """Wait until all tasks are finished."""
        while self._waiting:
            self._waiting.popleft().result()

    def __exit__(self, kind, error, traceback):
        """Finish all tasks, even if the model has failed."""
        try:
            self.finish()
        finally:
            self._thread.shutdown(cancel_futures=True)
