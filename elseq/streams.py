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


class _Output(io.FileIO):
    """A file that remembers why it could not be written."""

    failure: OSError | None = None

    def write(self, content) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.failure = error
            raise


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
    if sys.stderr is None or (sys.stderr is sys.__stderr__ and not isinstance(_raw(sys.stderr), _Log)):
        sys.stderr = sys.__stderr__ = _open(_Log(2, "w", closefd=False), sys.stderr, errors="backslashreplace")
    if sys.stdout is not None and sys.stdout is sys.__stdout__ and not isinstance(_raw(sys.stdout), _Output):
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        sys.stdout = sys.__stdout__ = _open(_Output(1, "w", closefd=False), sys.stdout)
        atexit.register(_finish_output)


def _raw(stream):
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)  # there is none under python -u


def _open(file: io.FileIO, former: io.TextIOWrapper | None, errors: str | None = None) -> io.TextIOWrapper:
    """The file as a text stream that is buffered as the former one was."""
    if former is None:
        return io.TextIOWrapper(io.BufferedWriter(file), "utf-8", errors, line_buffering=True)
    return io.TextIOWrapper(
        io.BufferedWriter(file) if hasattr(former.buffer, "raw") else file,
        former.encoding,
        errors or former.errors,
        line_buffering=former.line_buffering,
        write_through=former.write_through,
    )


def output_failure() -> str | None:
    """Why the standard output cannot be written, if it cannot; what it has not taken is dropped then."""
    raw = _raw(sys.stdout)
    if not isinstance(raw, _Output) or sys.stdout.closed:
        return None
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    if raw.failure is None:
        return None
    reason = raw.failure.strerror
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # Python flushes it once more, and would complain
    os.close(null)
    raw.failure = None
    sys.stdout.flush()
    return f"the standard output cannot be written ({reason}): send it to another place"


def _finish_output() -> None:
    """Python itself would end by a traceback and the exit code 120."""
    if failure := output_failure():
        print(f"elseq: error: {failure}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)  # no exception leaves a function that is called at the exit
