"""The command line: one parser for all commands, and functions that read option values."""

import argparse
import os
import re
import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, field, fields
from itertools import pairwise, takewhile
from pathlib import Path

from elseq.errors import UserError, as_option

# Of a command line for Hydra.
_HYDRA_OPTION = re.compile(r"-(m|cd|cn|c|-multirun|-cfg|-config-dir|-config-name|-hydra-help|-info)(=|$)")
OVERRIDE = re.compile(r"[~+]*[A-Za-z_][\w./@-]*=")

# What argparse says of a text that a type function cannot read, and what these functions read.
INVALID = re.compile(r"argument (?P<option>--[\w-]+)\S*: invalid (?P<kind>\S+) value: ['\"](?P<text>.*)['\"]")
IN_WORDS = {"int": "a whole number", "float": "a number", "<lambda>": "a number, or several with commas"}

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Parser(argparse.ArgumentParser):
    """Raises a `UserError` of one sentence instead of printing the usage and exiting."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # a private attribute of argparse, which takes -5G, -1e3 and -8,32 for options
        self._negative_number_matcher = re.compile(r"(?i)-(\.?\d|(inf(inity)?|nan)$)")

    def error(self, message: str):
        """
        Raises:
            UserError: always.
        """
        found = INVALID.fullmatch(message)
        if found is None or found["kind"] not in IN_WORDS:
            raise UserError(f"{textwrap.shorten(message, 300, placeholder=' ...')}; see {self.prog} --help")
        raise UserError(f"{found['text']} is not possible: give {IN_WORDS[found['kind']]}", found["option"])

    def parse_known_args(self, args=None, namespace=None):
        """Reads --user-dir first, because a plugin may add values of other options."""
        plugins = self._option_string_actions.get("--user-dir")
        if plugins is not None:
            early = Parser(prog=self.prog, add_help=False)
            early._add_action(plugins)
            super(Parser, early).parse_known_args(args)
        return super().parse_known_args(args, namespace)

    def _get_value(self, action, text):
        # a private method of argparse: only here both the option and its error are known
        try:
            return super()._get_value(action, text)
        except UserError as error:
            raise UserError(f"{(action.option_strings or [action.dest])[0]} {error}") from error


def option_field(default=None, **metadata):
    """A field of a dataclass that is an option.

    Args:
        default: its value, or a function that makes it.
        metadata: see `add_fields`.
    """
    return field(**{"default_factory" if callable(default) else "default": default}, metadata=metadata)


def add_fields(parser: argparse._ActionsContainer, kind: type, *names: str, unset: bool = False) -> None:
    """Add an option for each field of a dataclass, with its default.

    Args:
        parser: the parser or group.
        kind: the dataclass. The metadata of a field are its help and optionally its metavar, its choices (or a function
            that returns them) and its type (a function that reads the text). The default is added to a help without
            "(default: ".
        names: names of the fields. Default: all.
        unset: options that are not given are None, for a configuration to fill in. The help tells the default.
    """
    for each in fields(kind):
        if names and each.name not in names:
            continue
        options = dict(each.metadata)
        if callable(options.get("choices")):
            options["choices"] = _Choices(options["choices"])
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if default is False:
            options |= {"action": "store_const", "const": True}
        elif default is not None:
            told = options.get("help", "")
            options["help"] = told if "(default: " in told else f"{told} (default: {default})"
        if options.get("type") in (int, float):
            options.setdefault("metavar", "N")
        options["default"] = None if unset else default
        parser.add_argument(as_option(each.name), **options)


class _Choices:
    """Choices that a function returns. It is called late, because a plugin of --user-dir may add some."""

    def __init__(self, names: Callable[[], Collection[str]]):
        self._names = names

    def __contains__(self, name) -> bool:
        return name in self._names()

    def __iter__(self):
        return iter(self._names())


def count(text: str) -> int:
    """
    Raises:
        UserError: the text is not an integer above 0.
    """
    if not text.strip().isdecimal() or int(text) < 1:
        raise UserError(f"{text!r} is not a whole number above 0")
    return int(text)


def count_or_zero(text: str) -> int:
    """
    Raises:
        UserError: the text is not an integer of at least 0.
    """
    if not text.strip().isdecimal():
        raise UserError(f"{text!r} is neither 0 nor a whole number above it")
    return int(text)


def parse_bytes(text: str) -> int:
    """A number of bytes such as 16G, 800M or 1.5g; K, M, G and T are powers of 1,024.

    Raises:
        UserError: it is none.
    """
    number, unit = text.strip().upper().removesuffix("B").removesuffix("I"), ""
    if number[-1:] in UNITS:
        number, unit = number[:-1], number[-1:]
    try:
        size = int(float(number) * UNITS[unit])
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise UserError(f"{text!r} is not a size in bytes above 0; give one such as 16G or 800M")
    return size


def format_bytes(size: float) -> str:
    """For people: 1.5 GiB."""
    unit = min(4, max(0, int(size).bit_length() - 1) // 10)
    return f"{size / 1024**unit:.{min(unit, 1)}f} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


def budget_bytes(memory_budget: int | str) -> int:
    """The argument of that name in bytes.

    Raises:
        UserError: it is no size.
    """
    try:
        return parse_bytes(str(memory_budget))
    except UserError as error:
        raise UserError(error.sentence, "memory_budget") from error


def counts(text: str) -> list[int]:
    """Comma-separated numbers, each once."""
    return list(dict.fromkeys(map(count, text.split(","))))


def read_path(text: str | os.PathLike) -> Path:
    """A path. It may begin with ~ or ~user, which a shell replaces by a folder in `--option ~/file` alone."""
    return Path(os.path.expanduser(text))


def choices(known: Collection[str]) -> Callable[[str], list[str]]:
    """A reader of comma-separated names without duplicates. It raises a `UserError` for unknown names."""

    def read(text: str) -> list[str]:
        names = list(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in known:
                raise UserError(f"{name!r} is unknown; choose from {', '.join(known)}")
        return names

    return read


def read_input(text: str) -> Path | None:
    """The path of an input; None for "-", the standard input."""
    return None if text == "-" else read_path(text)


def is_sweep(arguments: Sequence[str]) -> bool:
    """Whether a command line is for Hydra: it has one of its options, or an override NAME=VALUE.

    An argument after an option is the value of the option, and an existing file is a file name.
    """
    before = takewhile(lambda argument: argument != "--", arguments)
    for previous, argument in pairwise(["", *before]):
        if _HYDRA_OPTION.match(argument):
            return True
        is_value = previous.startswith("--") and "=" not in previous
        if OVERRIDE.match(argument) and not is_value and not os.path.exists(argument):
            return True
    return False
