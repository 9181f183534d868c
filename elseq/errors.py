"""Errors that a user can mend, and how they reach the screen."""

import re
import sys

_SPAWNED_ERROR = re.compile(r"^(?:elseq\.errors\.)?UserError: (.*)", re.MULTILINE)


class UserError(Exception):
    """Bad input: one sentence that names the input, what is wrong with it and what to do."""


def install_excepthook():
    """Let an uncaught `UserError` end the program as one line on stderr and exit code 1, without a traceback.

    Everything else goes to the hook that was there before. Installing twice changes nothing.
    """
    previous = sys.excepthook
    if getattr(previous, "is_elseq_hook", False):
        return

    def excepthook(kind, error, traceback):
        sentence = _user_sentence(error)
        if sentence is None:
            previous(kind, error, traceback)
        else:
            print(f"elseq: error: {sentence}", file=sys.stderr)

    excepthook.is_elseq_hook = True
    sys.excepthook = excepthook


def _user_sentence(error):
    if isinstance(error, UserError):
        return str(error)
    # torch.multiprocessing.spawn, fairseq's way to several devices, hands on the text of a child's traceback
    if type(error).__name__ == "ProcessRaisedException":
        found = _SPAWNED_ERROR.findall(str(error))
        return found[-1] if found else None
    return None
