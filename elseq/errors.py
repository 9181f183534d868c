"""Errors that a user can mend, and how they reach the screen."""

import contextlib
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from elseq.streams import output_failure

_SPAWNED_ERROR = re.compile(r"^(?:elseq\.errors\.)?(UserError|AssertionError|ValueError): (.*)", re.MULTILINE)
_OPTION = re.compile(r"(?<!\S)\(?--[a-z]")


class UserError(Exception):
    """Bad input: one sentence that names the input, what is wrong with it and what to do."""

    def __init__(self, sentence: str, argument: str | None = None):
        """
        Args:
            sentence: the whole of it; or what follows the argument, if one is given.
            argument: of a function, or option of a command; see `renamed`.
        """
        super().__init__(sentence if argument is None else f"{argument} {sentence}")
        self.sentence = sentence
        self.argument = argument


@contextlib.contextmanager
def about(checkpoint: Path):
    """Let errors name the checkpoint that they are about.

    Raises:
        UserError: one that does.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"checkpoint {checkpoint}: {error}") from error


@contextlib.contextmanager
def renamed(name: Callable[[str], str]):
    """Let errors call an argument as it is called here: a command's user gave an option where Python has a keyword.

    Args:
        name: its name here, for the name that it has where the error comes from.
    """
    try:
        yield
    except UserError as error:
        if error.argument is None:
            raise
        raise UserError(error.sentence, name(error.argument)) from error


def as_option(name: str) -> str:
    """A keyword of Python as an option of a command line; see `renamed`."""
    return f"--{name.replace('_', '-')}"


def check_choice(option: str, value: str | None, choices: Collection[str]) -> None:
    """
    Raises:
        UserError: the option is set, to none of the choices. (argparse would print all of fairseq's options first.)
    """
    if value is not None and value not in choices:
        raise UserError(f"{value} is unknown; choose one of {', '.join(choices)}", option)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's or the CPU's allocator had no more to give."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # of torch
        return True
    told = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in told)


def install_excepthook():
    """Let an uncaught error of the user's end the program as one line on stderr and exit code 1, without a traceback.

    Ctrl-C likewise; Python then ends by the signal, which is 130 to a shell. Everything else goes to the hook that was
    there before. Installing twice changes nothing.
    """
    previous = sys.excepthook
    if getattr(previous, "is_elseq_hook", False):
        return

    def excepthook(kind, error, traceback):
        sentence = user_sentence(error)
        if sentence is None and isinstance(error, OSError):
            sentence = output_failure()  # print has failed, and so what it had to write is still there
        if issubclass(kind, KeyboardInterrupt):
            print("elseq: interrupted", file=sys.stderr)
        elif sentence is None:
            previous(kind, error, traceback)
        else:
            print(f"elseq: error: {printable(sentence)}", file=sys.stderr)

    excepthook.is_elseq_hook = True
    sys.excepthook = excepthook


def printable(sentence: str) -> str:
    """In one line, and without what a terminal obeys: a name out of a file may hold both."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in sentence)


def user_sentence(error: BaseException | None) -> str | None:
    """What a user is told about this error; None if it is no error of theirs."""
    kind, message = type(error).__name__, str(error)
    # torch.multiprocessing.spawn, fairseq's way to several devices, hands on the text of a child's traceback
    if kind == "ProcessRaisedException":
        kind, message = (_SPAWNED_ERROR.findall(message) or [(kind, message)])[-1]
    if isinstance(error, UserError) or kind == "UserError":
        return message
    # fairseq checks its options by assertions and ValueErrors that name them, in one line
    if kind in ("AssertionError", "ValueError") and _OPTION.search(message) and "\n" not in message:
        return message
    return None


@contextlib.contextmanager
def options_checked():
    """Raise a `UserError` where fairseq raises another error about an option."""
    try:
        yield
    except (AssertionError, ValueError) as error:
        sentence = user_sentence(error)
        if sentence is None:
            raise
        raise UserError(sentence) from error
