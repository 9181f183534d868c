"""The ways in which a repair changes fairseq."""

import contextlib
import functools
import sys
import types
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.trainer import Trainer


def wrap(owner, name, wrapper):
    """Replace `owner.name` by a function that calls `wrapper(original, *arguments)`."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args, **kwargs):
        return wrapper(original, *args, **kwargs)

    setattr(owner, name, wrapped)


def wrap_in_command(command: types.ModuleType, name, wrapper):
    """As `wrap`, in a module of a command, also where that is the program: python -m fairseq_cli.train."""
    for module in (command, sys.modules["__main__"]):
        if getattr(module, "__file__", None) == command.__file__:
            wrap(module, name, wrapper)


def is_known(*classes: type) -> bool:
    """Whether classes are of fairseq or of elseq. What those of a plugin can do is not known."""
    return {each.__module__.partition(".")[0] for each in classes} <= {"fairseq", "elseq"}


def after_parsing(check: Callable[[Namespace], None]) -> None:
    """Have a function check, or correct, the options of a command of fairseq."""

    def parse_args_and_arch(parse, *args, **kwargs):
        parsed = parse(*args, **kwargs)
        check(parsed[0] if isinstance(parsed, tuple) else parsed)  # beside what is not known, by parse_known
        return parsed

    wrap(options, "parse_args_and_arch", parse_args_and_arch)


def before_training(check: Callable) -> None:
    """Have a function check the configuration of a training, its task, model and criterion, when these are built."""

    def init(original, self, cfg, task, model, criterion, *args, **kwargs):
        check(convert_namespace_to_omegaconf(cfg) if isinstance(cfg, Namespace) else cfg, task, model, criterion)
        original(self, cfg, task, model, criterion, *args, **kwargs)

    wrap(Trainer, "__init__", init)


@contextlib.contextmanager
def setting(variable: ContextVar, value: object) -> Iterator[None]:
    """A variable by which a repair knows in what it is called has this value here."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


class Overlay(types.ModuleType):
    """A module that replaces a few names of another module, which is not changed.

    In place of an imported module it changes one file of fairseq, and nothing else in the process.
    """

    def __init__(self, module, **names):
        super().__init__(module.__name__)
        self._module = module
        vars(self).update(names)

    def __getattr__(self, name):
        return getattr(self._module, name)
