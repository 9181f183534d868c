"""The standard streams, closed or full: a log that cannot be written ends no run, and a result that cannot is told."""

import atexit
import contextlib
import io
import os
import sys

_MODES = (os.O_WRONLY, os.O_RDONLY, os.O_RDWR)  # what is neither read nor written by mistake; a log may be written


class _Log(io.FileIO):
    """A file whose writer does not learn that it is full, or that nobody reads it any more."""

    def write(self, content) -> int:
        with contextlib.suppress(OSError):
            return super().write(content) or 0
        return len(content)


def install() -> None:
    """Make the standard streams of this process usable.

    A number (0, 1, 2) that is closed would be that of the next file to be opened, and what C++ has to say would be
    written into it. Streams that are not the process's own (of pytest, of a notebook) stay. Installing twice changes
    nothing.
    """
    for number, mode in enumerate(_MODES):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # the lowest number that is free
    if sys.stderr is None or (sys.stderr is sys.__stderr__ and not _is_log(sys.stderr)):
        log = io.BufferedWriter(_Log(2, "w", closefd=False))
        encoding = getattr(sys.stderr, "encoding", "utf-8")
        sys.stderr = sys.__stderr__ = io.TextIOWrapper(log, encoding, "backslashreplace", line_buffering=True)
        atexit.register(_finish_output)


def _is_log(stream) -> bool:
    return isinstance(getattr(getattr(stream, "buffer", None), "raw", None), _Log)


def output_failure() -> str | None:
    """Why the standard output cannot be written, if it cannot; what it has not taken is dropped then."""
    try:
        if sys.stdout is not None and not sys.stdout.closed:
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):  # Python flushes it once more, and complains
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
            sys.stdout.flush()
        reason = getattr(error, "strerror", None) or error
        return f"the standard output cannot be written ({reason}): send it to another place"
    return None


def _finish_output() -> None:
    """Python itself would end by a traceback and the exit code 120."""
    if failure := output_failure():
        print(f"elseq: error: {failure}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)  # no exception leaves a function that is called at the exit
