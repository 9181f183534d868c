import types
from contextvars import ContextVar

import pytest
from fairseq.tasks.translation import TranslationTask

from elseq.compat.patching import Overlay, is_known, setting, wrap
from elseq.tasks.translation import ElseqTranslationTask


class Owner:
    def method(self, value, more=0):
        """What it is for."""
        return value + more


def test_wrap(monkeypatch):
    monkeypatch.setattr(Owner, "method", Owner.method)  # so that it is itself again in the end
    original = Owner.method
    wrap(Owner, "method", lambda original, self, value, more=5: 10 * original(self, value, more))
    assert Owner().method(1) == 60 and Owner().method(1, more=2) == 30
    assert Owner.method.__wrapped__ is original  # by which a test takes a repair away
    assert (Owner.method.__name__, Owner.method.__doc__) == ("method", "What it is for.")


def test_overlay():
    """The module itself is as before; what is not replaced is read from it at the time."""
    module = types.ModuleType("module")
    module.one, module.two = 1, 2
    overlay = Overlay(module, two=20)
    assert (overlay.__name__, overlay.one, overlay.two, module.two) == ("module", 1, 20, 2)
    module.one = 100
    assert overlay.one == 100 and not hasattr(overlay, "three")


def test_setting():
    variable = ContextVar("variable", default=0)
    with setting(variable, 1):
        with pytest.raises(KeyError), setting(variable, 2):
            assert variable.get() == 2
            raise KeyError
        assert variable.get() == 1
    assert variable.get() == 0


def test_whose_classes_are_known():
    plugins = type("Task", (TranslationTask,), {"__module__": "plugin.tasks"})
    assert is_known(TranslationTask, ElseqTranslationTask) and not is_known(TranslationTask, plugins)
