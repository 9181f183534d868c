"""Work that is done beside the model."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

WAITING = 8  # pieces of work, at most


class Background:
    """Does one piece of work after another, in the order in which they are given, in one thread.

    A thread, not a process: turning tokens into text takes a hundredth of the time that finding them takes, what waits
    for the disk lets the model go on, and nothing has to be copied to another process and back. What goes wrong in the
    thread is raised by the next call here, or at the end.
    """

    def __enter__(self):
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._waiting: deque[Future] = deque()
        return self

    def give(self, work: Callable, *arguments) -> None:
        """Have it done; waits while too much is waiting already."""
        self._waiting.append(self._thread.submit(work, *arguments))
        while self._waiting and (len(self._waiting) > WAITING or self._waiting[0].done()):
            self._waiting.popleft().result()

    def finish(self) -> None:
        """Wait until all of it is done."""
        while self._waiting:
            self._waiting.popleft().result()

    def __exit__(self, kind, error, traceback):
        """What was given is finished, also when the model has failed meanwhile."""
        try:
            self.finish()
        finally:
            self._thread.shutdown(cancel_futures=True)
