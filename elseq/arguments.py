"""The command line: one parser for all commands, and what reads the values of their options."""

import argparse
from collections.abc import Callable, Collection

from elseq.compat.commands import import_user_dirs
from elseq.errors import UserError


class Parser(argparse.ArgumentParser):
    """Complains in one sentence, a `UserError`, and not by its usage and an exit code of its own."""

    def error(self, message: str):
        """
        Raises:
            UserError: always.
        """
        raise UserError(f"{message}; see {self.prog} --help")

    def _get_value(self, action, text):
        # argparse's own name for it: nowhere else does it know both the option and what its reader raises
        try:
            return super()._get_value(action, text)
        except UserError as error:
            raise UserError(f"{(action.option_strings or [action.dest])[0]} {error}") from error


def add_user_dir(parser: argparse._ActionsContainer) -> None:
    """The option --user-dir, which imports what it names as soon as it is read."""
    parser.add_argument(
        "--user-dir",
        type=_user_dirs,
        metavar="FOLDER",
        help="of a plugin that has the model's architecture; several with colons between them",
    )


def _user_dirs(text: str) -> str:
    try:
        import_user_dirs(text)
    except UserError as error:
        raise UserError(error.sentence) from error
    return text


def count(text: str) -> int:
    """
    Raises:
        UserError: no whole number above 0.
    """
    if not text.strip().isdecimal() or int(text) < 1:
        raise UserError(f"{text!r} is not a whole number above 0")
    return int(text)


def count_or_zero(text: str) -> int:
    """
    Raises:
        UserError: no whole number, or one below 0.
    """
    if not text.strip().isdecimal():
        raise UserError(f"{text!r} is neither 0 nor a whole number above it")
    return int(text)


def counts(text: str) -> list[int]:
    """Numbers with commas between them."""
    return [count(part) for part in text.split(",")]


def choices(known: Collection[str]) -> Callable[[str], list[str]]:
    """A reader of names with commas between them, each once; it raises a `UserError` for others than those known."""

    def read(text: str) -> list[str]:
        names = list(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in known:
                raise UserError(f"{name!r} is unknown; choose of {', '.join(known)}")
        return names

    return read
