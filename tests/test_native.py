import ctypes
from types import SimpleNamespace

import pytest

from elseq import native


def not_compiled(_):
    raise OSError


def other_processor(_):
    return SimpleNamespace(elseq_available=lambda: 0)


@pytest.mark.parametrize("load", [not_compiled, other_processor])
def test_without_the_library(load, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", load)
    native.library.cache_clear()
    try:
        assert native.library() is None
        with pytest.raises(RuntimeError, match="AVX-512 VNNI"):
            native.loaded()
    finally:
        native.library.cache_clear()
