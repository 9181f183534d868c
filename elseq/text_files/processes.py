"""The processes of one run, as torchrun or Slurm starts them, and what they tell one another.

They share a counter, from which each takes its next batch: whoever is faster takes more. Nobody waits for anybody else
before the end, and then by asking again and again, however long it takes, for as long as the others give signs of life:
there is no collective operation that could time out. No tensor ever travels, so that all of it is a key-value store.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed

from elseq.errors import UserError

PULSE = 5.0  # seconds between two signs of life
SILENCE = 120.0  # seconds without any after which a process is given up
POLL = 0.2  # seconds between two questions
CONNECT = timedelta(minutes=10)  # for the first process to be there


class Processes:
    """This process among those of the run."""

    def __init__(self, store: torch.distributed.Store, rank: int, count: int):
        """
        Args:
            store: what all of them read and write.
            rank: of this process; 0 is the first.
            count: how many there are.
        """
        self.rank = rank
        self.count = count
        self._store = store
        self._heard: dict[int, tuple[int, float]] = {}  # of each process: its latest sign of life, and when it changed
        self._ended = threading.Event()

    @classmethod
    def of_environment(cls) -> "Processes":
        """From RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; without them this process is alone.

        Raises:
            UserError: variables that are missing or wrong, or a first process that does not answer.
        """
        if os.environ.get("WORLD_SIZE", "1") == "1":
            return cls(torch.distributed.HashStore(), 0, 1)
        try:
            store, rank, count = next(torch.distributed.rendezvous("env://", timeout=CONNECT))
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"the processes do not find each other ({reason}): start them by torchrun, or set RANK, WORLD_SIZE, "
                "MASTER_ADDR and MASTER_PORT"
            ) from error
        # torchrun keeps the store when it starts all processes again (--max-restarts).
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return cls(torch.distributed.PrefixStore(f"attempt {attempt}", store), rank, count)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @contextmanager
    def alive(self):
        """Give signs of life; if this ends in an error, tell the others."""
        if self.count == 1:
            yield self
            return
        pulse = threading.Thread(target=self._give_signs_of_life, daemon=True)
        pulse.start()
        try:
            yield self
        except BaseException:
            self._tell_of_failure()
            raise
        finally:
            self._ended.set()
            pulse.join()

    def _give_signs_of_life(self) -> None:
        while not self._ended.is_set():
            try:
                self._store.add(f"pulse {self.rank}", 1)
            except RuntimeError:  # the first process is gone; the main thread will see it
                return
            self._ended.wait(PULSE)

    def take_number(self) -> int:
        """0, 1, 2 and so on, each number for one process only.

        Raises:
            UserError: another process has failed.
        """
        self._check()
        return self._ask(self._store.add, "taken", 1) - 1

    def report(self, lines: int) -> int:
        """Add to what all have finished together; returns the sum."""
        return self._ask(self._store.add, "lines", lines)

    def announce(self, event: str) -> None:
        """Tell that this process has come so far."""
        self._ask(self._store.set, f"{event} {self.rank}", "")

    def wait_for(self, event: str, ranks: Iterable[int], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Until each of these processes has announced it.

        Args:
            event: what is waited for.
            ranks: of the processes.
            meanwhile: called again and again.

        Raises:
            UserError: another process has failed, or gives no sign of life.
        """
        for rank in ranks:
            while not self._ask(self._store.check, [f"{event} {rank}"]):
                self._check()
                self._listen_to(rank)
                meanwhile()
                time.sleep(POLL)

    def _check(self) -> None:
        if self.count > 1 and self._ask(self._store.check, ["failed"]):
            raise self._given_up(int(self._ask(self._store.get, "failed")), "has ended with an error")

    def _listen_to(self, rank: int) -> None:
        pulse, now = self._ask(self._store.add, f"pulse {rank}", 0), time.monotonic()
        latest, since = self._heard.get(rank, (-1, now))
        if pulse != latest:
            self._heard[rank] = pulse, now
        elif now - since > SILENCE:
            raise self._given_up(rank, f"has given no sign of life for {SILENCE:.0f} seconds")

    def _tell_of_failure(self) -> None:
        with suppress(RuntimeError):  # nobody may be there to hear it
            if not self._store.check(["failed"]):
                self._store.set("failed", str(self.rank))

    def _ask(self, question, *arguments):
        try:
            return question(*arguments)
        except RuntimeError as error:
            raise self._given_up(0, "cannot be reached any more") from error

    def _given_up(self, rank: int, why: str) -> UserError:
        return UserError(
            f"process {rank} of {self.count} {why}, so process {self.rank} ends too: what is finished is kept, and the "
            "same command goes on from there"
        )
