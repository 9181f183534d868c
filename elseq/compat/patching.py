"""The two ways in which a repair changes fairseq."""

import functools
import types


def wrap(owner, name, wrapper):
    """Replace `owner.name` by a function that calls `wrapper(original, *arguments)`."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args, **kwargs):
        return wrapper(original, *args, **kwargs)

    setattr(owner, name, wrapped)


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
