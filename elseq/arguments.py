"""The command line: one parser for all commands, and what reads the values of their options."""

import argparse
from collections.abc import Callable, Collection
from dataclasses import MISSING, fields

from elseq.compat.commands import import_user_dirs
from elseq.errors import UserError, as_option


class Parser(argparse.ArgumentParser):
    """Complains in one sentence, a `UserError`, and not by its usage and an exit code of its own."""

    def error(self, message: str):
        """
        Raises:
            UserError: always.
        """
        raise UserError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args=None, namespace=None):
        """The values of other options may be a plugin's: --user-dir is read first, wherever it stands."""
        plugins = self._option_string_actions.get("--user-dir")
        if plugins is not None:
            early = Parser(prog=self.prog, add_help=False)
            early._add_action(plugins)
            super(Parser, early).parse_known_args(args)
        return super().parse_known_args(args, namespace)

    def _get_value(self, action, text):
        # argparse's own name for it: nowhere else does it know both the option and what its reader raises
        try:
            return super()._get_value(action, text)
        except UserError as error:
            raise UserError(f"{(action.option_strings or [action.dest])[0]} {error}") from error


def add_fields(parser: argparse._ActionsContainer, kind: type, *names: str) -> None:
    """Options for fields of a dataclass, with their defaults.

    Args:
        parser: what takes them.
        kind: the dataclass. The metadata of a field are its help and, if there are any, its metavar, its choices (or a
            function that gives them) and type, which reads its text. A help without "(default: " gets the default.
        names: of the fields. Default: all.
    """
    for each in fields(kind):
        if names and each.name not in names:
            continue
        options = dict(each.metadata)
        if callable(options.get("choices")):
            options["choices"] = _Choices(options["choices"])
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if default is False:
            options["action"] = "store_true"
        elif default is not None:
            told = options.get("help", "")
            options |= {"default": default, "help": told if "(default: " in told else f"{told} (default: %(default)s)"}
        parser.add_argument(as_option(each.name), **options)


class _Choices:
    """What a function gives when it is asked for: --user-dir may have imported a plugin that has more."""

    def __init__(self, names: Callable[[], Collection[str]]):
        self._names = names

    def __contains__(self, name) -> bool:
        return name in self._names()

    def __iter__(self):
        return iter(self._names())


def languages(text: str) -> tuple[str, str]:
    """
    Raises:
        UserError: no two names with a comma between them.
    """
    source, comma, target = text.partition(",")
    if not (source and target) or "," in target:
        raise UserError(f"{text!r} is not two languages with a comma between them")
    return source, target


def folders_of_plugins(text: str) -> str:
    """A value of --user-dir. What it names is imported as soon as it is read: other options may be the plugin's.

    Raises:
        UserError: a folder that cannot be imported.
    """
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
