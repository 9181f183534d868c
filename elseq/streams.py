"""Closed or full standard streams: a failing log does not end a run, and a failing result is reported."""

import atexit
import contextlib
import io
import os
import sys

_MODES = (os.O_WRONLY, os.O_RDONLY, os.O_RDWR)  # no input, no output, but logs


class _Log(io.FileIO):
    """A file that ignores errors of writing: a full disk, or a closed reader."""

    def write(self, content) -> int:
        with contextlib.suppress(OSError):
            return super().write(content) or 0
        return len(content)


class _Output(io.FileIO):
    """A file that stores the reason why it could not be written."""

    failure: OSError | None = None

    def write(self, content) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.failure = error
            raise


def install() -> None:
    """Make the standard streams of this process usable.

    The next opened file would get the number (0, 1, 2) of a closed stream, and messages of C++ code would be written
    into it. Streams that do not belong to the process (of pytest, of a notebook) are not changed. Installing twice has
    no effect.
    """
    for number, mode in enumerate(_MODES):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # the lowest free number
    if sys.stderr is None or (sys.stderr is sys.__stderr__ and not isinstance(_raw(sys.stderr), _Log)):
        sys.stderr = sys.__stderr__ = _open(_Log(2, "w", closefd=False), sys.stderr, errors="backslashreplace")
    if sys.stdout is not None and sys.stdout is sys.__stdout__ and not isinstance(_raw(sys.stdout), _Output):
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        sys.stdout = sys.__stdout__ = _open(_Output(1, "w", closefd=False), sys.stdout)
        atexit.register(_finish_output)


def _raw(stream):
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)  # missing with python -u


def _open(file: io.FileIO, former: io.TextIOWrapper | None, errors: str | None = None) -> io.TextIOWrapper:
    """The file as a text stream with the buffering of the former one."""
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
    """Why the standard output cannot be written, or None. After a failure, its unwritten text is dropped."""
    raw = _raw(sys.stdout)
    if not isinstance(raw, _Output) or sys.stdout.closed:
        return None
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    if raw.failure is None:
        return None
    reason = raw.failure.strerror
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # Python flushes it again at exit, which would print an error
    os.close(null)
    raw.failure = None
    sys.stdout.flush()
    return f"the standard output cannot be written ({reason}): send it to another place"


def _finish_output() -> None:
    """Exit with one sentence; Python itself would print a traceback and exit with code 120."""
    if failure := output_failure():
        print(f"elseq: error: {failure}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)  # an exception in an exit handler does not change the exit code
