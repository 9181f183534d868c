"""The processes of one run, which torchrun or Slurm starts, and their communication.

A shared counter gives each process its next batch, so faster processes take more. The first process waits for the
others only at the end. It polls without a time limit as long as they send heartbeats; there is no collective operation
that could time out. No tensors are sent, so a key-value store suffices.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed

from elseq.errors import UserError

PULSE = 5.0  # seconds between two heartbeats
SILENCE = 120.0  # seconds without a heartbeat after which a process counts as dead
POLL = 0.2  # seconds between two polls
CONNECT = timedelta(minutes=10)  # time limit for the first process to start


class Processes:
    """This process, and its connection to the other processes of the run."""

    def __init__(self, store: torch.distributed.Store, rank: int, count: int):
        """
        Args:
            store: the key-value store that all processes share.
            rank: rank of this process; 0 is the first.
            count: number of processes.
        """
        self.rank = rank
        self.count = count
        self._store = store
        self._heard: dict[int, tuple[int, float]] = {}  # per process: its last heartbeat, and when it changed
        self._ended = threading.Event()

    @classmethod
    def of_environment(cls) -> "Processes":
        """The processes from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; without them one process.

        Raises:
            UserError: variables are missing or wrong, or the first process does not answer.
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
        # torchrun keeps the store when it restarts all processes (--max-restarts).
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return cls(torch.distributed.PrefixStore(f"attempt {attempt}", store), rank, count)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @contextmanager
    def alive(self):
        """Send heartbeats. After an error, notify the other processes."""
        if self.count == 1:
            yield
            return
        pulse = threading.Thread(target=self._give_signs_of_life, daemon=True)
        pulse.start()
        try:
            yield
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
            except RuntimeError:  # the first process has ended; the main thread reports it
                return
            self._ended.wait(PULSE)

    def take_number(self) -> int:
        """The next number (0, 1, 2, ...). Each number goes to one process only.

        Raises:
            UserError: another process has failed.
        """
        self._check()
        return self._ask(self._store.add, "taken", 1) - 1

    def report(self, lines: int) -> int:
        """Add to the number of lines that all processes have finished. Returns the sum."""
        return self._ask(self._store.add, "lines", lines)

    def announce(self, event: str) -> None:
        """Notify the others that this process has reached an event."""
        self._ask(self._store.set, f"{event} {self.rank}", "")

    def wait_for(self, event: str, ranks: Iterable[int], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until each of these processes has announced an event.

        Args:
            event: name of the event.
            ranks: ranks of the processes.
            meanwhile: called at every poll.

        Raises:
            UserError: another process has failed, or sends no heartbeat.
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
        with suppress(RuntimeError):  # the store may be gone
            if not self._store.check(["failed"]):
                self._store.set("failed", str(self.rank))

    def _ask(self, question, *arguments):
        try:
            return question(*arguments)
        except RuntimeError as error:
            raise self._given_up(0, "cannot be reached any more") from error

    def _given_up(self, rank: int, why: str) -> UserError:
        return UserError(
            f"process {rank} of {self.count} {why}, so process {self.rank} ends too: finished lines are kept, and "
            "the same command continues"
        )
