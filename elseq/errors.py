"""Errors that a user can mend, and how they reach the screen."""

import contextlib
import re
import sys
from collections.abc import Callable

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
        if issubclass(kind, KeyboardInterrupt):
            print("elseq: interrupted", file=sys.stderr)
        elif sentence is None:
            previous(kind, error, traceback)
        else:
            print(f"elseq: error: {sentence}", file=sys.stderr)

    excepthook.is_elseq_hook = True
    sys.excepthook = excepthook


def user_sentence(error: BaseException | None) -> str | None:
    """What a user is told about this error; None if it is no error of theirs."""
    kind, message = type(error).__name__, str(error)
    # torch.multiprocessing.spawn, fairseq's way to several devices, hands on the text of a child's traceback
    if kind == "ProcessRaisedException":
        kind, message = (_SPAWNED_ERROR.findall(message) or [(kind, message)])[-1]
    if kind == "UserError" or isinstance(error, UserError):
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
