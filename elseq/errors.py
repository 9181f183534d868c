"""Errors that a user can correct, and how they are printed."""

import contextlib
import errno
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from traceback import walk_tb
from types import TracebackType

from elseq.streams import output_failure

_SPAWNED_ERROR = re.compile(r"^(?:elseq\.errors\.)?(UserError|AssertionError|ValueError): (.*)", re.MULTILINE)
_OPTION = re.compile(r"(?<!\S)[(`]?--[a-z]")


class UserError(Exception):
    """Bad input: one sentence that names the input, what is wrong with it and what to do."""

    def __init__(self, sentence: str, argument: str | None = None, others: Sequence[str] = ()):
        """
        Args:
            sentence: the whole sentence, or the part after the argument if one is given.
            argument: argument of a function or option of a command; see `renamed`.
            others: further arguments that the sentence names.
        """
        super().__init__(sentence if argument is None else f"{argument} {sentence}")
        self.sentence = sentence
        self.argument = argument
        self.others = tuple(others)


@contextlib.contextmanager
def about(checkpoint: Path):
    """Add the name of the checkpoint to errors.

    Raises:
        UserError: the error with the name.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"checkpoint {checkpoint}: {error}") from error


@contextlib.contextmanager
def renamed(name: Callable[[str], str]):
    """Rename the arguments in errors: the user of a command gave an option where Python has a keyword.

    Args:
        name: maps the name in the error to the name for this user.
    """
    try:
        yield
    except UserError as error:
        if error.argument is None and not error.others:
            raise
        sentence = error.sentence
        for other in error.others:
            # as a word, and not as a part of a path
            sentence = re.sub(rf"(?<![\w./-]){re.escape(other)}(?![\w/-]|\.\w)", name(other), sentence)
        argument = None if error.argument is None else name(error.argument)
        raise UserError(sentence, argument, list(map(name, error.others))) from error


def as_option(name: str) -> str:
    """The command-line option for a Python keyword, or for an option itself; see `renamed`."""
    return f"--{name.removeprefix('--').replace('_', '-')}"


def as_keyword(option: str) -> str:
    """The keyword of `elseq.load` and its like for an option of our tasks, or for a keyword itself; see `renamed`."""
    return option.removeprefix("--").removeprefix("decode-").replace("-", "_")


def check_choice(option: str, value: str | None, choices: Collection[str]) -> None:
    """
    Raises:
        UserError: the value is none of the choices. (argparse would first print all options of fairseq.)
    """
    if value is not None and value not in choices:
        raise UserError(f"{value} is unknown; choose one of {', '.join(choices)}", option)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator of a device or the CPU ran out of memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # from torch
        return True
    told = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in told)


def install_excepthook():
    """Print an uncaught `UserError` as one line on stderr, without a traceback, and exit with code 1.

    So are other errors about options, if fairseq or elseq raised them. Ctrl-C also prints one line, and the process
    ends by the signal, which a shell shows as 130. Other errors go to the former hook. Installing twice has no effect.
    """
    previous = sys.excepthook
    if getattr(previous, "is_elseq_hook", False):
        return

    def excepthook(kind, error, traceback):
        sentence = user_sentence(error) if isinstance(error, UserError) or _passed_here(traceback) else None
        if sentence is None and isinstance(error, OSError):
            sentence = output_failure()  # print failed, and its text is still in the buffer
        if issubclass(kind, KeyboardInterrupt):
            print("elseq: interrupted", file=sys.stderr)
        elif sentence is None:
            previous(kind, error, traceback)
        else:
            print(f"elseq: error: {printable(sentence)}", file=sys.stderr)

    excepthook.is_elseq_hook = True
    sys.excepthook = excepthook


def _passed_here(traceback: TracebackType | None) -> bool:
    """Whether a traceback has a frame of fairseq or elseq. The errors of a program that imports elseq are its own."""
    modules = (frame.f_globals.get("__name__") or "" for frame, _ in walk_tb(traceback))
    return any(module.partition(".")[0] in ("elseq", "fairseq", "fairseq_cli") for module in modules)


def printable(sentence: str) -> str:
    """The text on one line, with control characters escaped. A name from a file may contain some."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in sentence)


def described(error: BaseException) -> str:
    """The kind of the error and its message on one line, for a sentence about what led to it."""
    message = textwrap.shorten(str(error), 200, placeholder=" ...")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def user_sentence(error: BaseException | None) -> str | None:
    """The sentence for a user about this error, or None if it is not a user's error."""
    kind, message = type(error).__name__, str(error)
    # torch.multiprocessing.spawn, which fairseq uses for several devices, passes on the traceback of a child as text
    if kind == "ProcessRaisedException":
        kind, message = (_SPAWNED_ERROR.findall(message) or [(kind, message)])[-1]
    if isinstance(error, UserError) or kind == "UserError":
        return message
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{error.filename} is too long for the name of a file: check the path"
    # fairseq's assertions, ValueErrors and plain Exceptions about options name the option, in one line
    if kind in ("AssertionError", "ValueError", "Exception") and _OPTION.search(message) and "\n" not in message:
        return message
    return None


@contextlib.contextmanager
def options_checked():
    """Turn other errors of fairseq about an option into a `UserError`."""
    try:
        yield
    except Exception as error:
        sentence = user_sentence(error)
        if sentence is None:
            raise
        raise UserError(sentence) from error
