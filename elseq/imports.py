"""Imports that take less time."""

import contextlib
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, SimpleNamespace


@contextlib.contextmanager
def uncollected(is_command: bool) -> Iterator[None]:
    """Python's garbage collector does not look through what is imported inside, of which nothing is garbage.

    Args:
        is_command: nothing but imports is in this process yet. Then the collector leaves alone what there is, to the
            end of the process. With a program's own objects that would not do, as they may become garbage.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        if is_command:
            gc.freeze()
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """Ctrl-C ends a command at once while it imports: numpy and torch may lose an exception that is raised as they are
    initialized, and the command would go on with half of a module, or abort."""

    def end(number, frame):
        with contextlib.suppress(OSError):
            os.write(2, b"elseq: interrupted\n")
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def imported_when_called(*names: str, by: tuple[str, ...]) -> Iterator[None]:
    """The modules `by`, where they are imported inside, get stand-ins of other modules that take long to import:
    functions that import them when they are called. So they can use functions only. No other module gets the stand-ins,
    nor do these if the package is imported already.

    Args:
        names: of the others, each a module of a package: package.module.
    """

    def find_spec(name, path, target=None):
        if name not in by:
            return None
        spec = PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            with _stand_ins(names):
                execute(module)

        spec.loader.exec_module = exec_module
        return spec

    finder = SimpleNamespace(find_spec=find_spec)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@contextlib.contextmanager
def _stand_ins(names: tuple[str, ...]) -> Iterator[None]:
    modules = {}
    for name in names:
        package, _, module = name.partition(".")
        if package not in sys.modules:
            modules[name] = _StandIn(name)
            setattr(modules.setdefault(package, _StandIn(package)), module, modules[name])
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)


class _StandIn(ModuleType):
    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # for those who ask whether there is such a module

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **options):
            return getattr(importlib.import_module(self.__name__), name)(*args, **options)

        return call
