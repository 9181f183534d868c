"""Imports that take less time."""

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """What is imported here stays to the end of the process, so Python's collector does not look for garbage in it: a
    third of the time from start to exit goes into that. What was garbage before is collected, since what is there
    afterwards stays as well."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def imported_when_called(package: str, *submodules: str) -> Iterator[None]:
    """Modules that are imported here get functions of this package that import it when they are called.

    A package that is imported already stays as it is.
    """
    if package in sys.modules:
        yield
        return
    stands_for = {name: _Later(name) for name in (package, *(f"{package}.{name}" for name in submodules))}
    for name in submodules:
        setattr(stands_for[package], name, stands_for[f"{package}.{name}"])
    sys.modules.update(stands_for)
    try:
        yield
    finally:
        for name in stands_for:
            del sys.modules[name]


class _Later(ModuleType):
    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **options):
            return getattr(importlib.import_module(self.__name__), name)(*args, **options)

        return call
