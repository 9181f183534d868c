import ctypes
from types import SimpleNamespace

import pytest

from elseq import native


class Function:
    """What ctypes has of one."""

    __hash__ = None


def not_compiled(_):
    raise OSError


def other_processor(_):
    return SimpleNamespace(elseq_available=lambda: 0, **{name: Function() for name in native.FUNCTIONS})


def other_sources(_):
    return SimpleNamespace(elseq_available=lambda: native.INTERFACE)


def other_interface(_):
    return SimpleNamespace(
        elseq_available=lambda: native.INTERFACE + 1, **{name: Function() for name in native.FUNCTIONS}
    )


@pytest.mark.parametrize("load", [not_compiled, other_processor, other_sources, other_interface])
def test_without_the_library(load, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", load)
    native.library.cache_clear()
    try:
        assert native.library() is None
        with pytest.raises(RuntimeError, match="AVX-512 VNNI"):
            native.loaded()
    finally:
        native.library.cache_clear()
