"""How far a run is: a progress bar on a terminal, and lines in a log."""

import sys

from tqdm import tqdm

from elseq.text_files.processes import Processes

LOG_INTERVAL = 60  # seconds between two progress lines without a terminal


class Progress:
    """Shows the lines that all processes have finished, as a progress bar or in a log."""

    def __init__(self, total: int, finished: int, processes: Processes):
        self.total = total
        self.before = finished
        self.finished = finished
        self._processes = processes
        self._bar = None
        if processes.is_first:
            terminal = sys.stderr.isatty()
            self._bar = tqdm(
                total=total,
                initial=finished,
                unit=" samples",
                file=sys.stderr if terminal else _LogLines(sys.stderr),
                mininterval=0.1 if terminal else LOG_INTERVAL,
            )

    def add(self, lines: int) -> None:
        """Add lines that this process has finished."""
        self.finished = self.before + self._processes.report(lines)
        if self._bar is not None:
            self._bar.update(self.finished - self._bar.n)

    def refresh(self) -> None:
        """Show the lines that the other processes have finished."""
        self.add(0)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class _LogLines:
    """A stream that writes each state of a progress bar on its own line."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> None:
        if text.strip():
            self._stream.write(text.strip() + "\n")

    def flush(self) -> None:
        self._stream.flush()
