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
        with pytest.raises(RuntimeError, match="AVX2"):
            native.loaded()
    finally:
        native.library.cache_clear()


def test_the_fastest_instructions_of_the_processor_are_used(monkeypatch):
    """The library for others is not even asked."""
    found = []

    def load(path):
        found.append(path)
        return SimpleNamespace(
            elseq_available=lambda: native.INTERFACE * ("avx512" not in path),
            **{name: SimpleNamespace() for name in native.FUNCTIONS},
        )

    monkeypatch.setattr(ctypes, "CDLL", load)
    native.library.cache_clear()
    try:
        assert native.library() is not None
    finally:
        native.library.cache_clear()
    assert ["avx512" in path for path in found] == [True, False]
