import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from elseq import native
from elseq.precision import kernels


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


@pytest.mark.parametrize("available, asked", [(["avx512", "avx2"], 1), (["avx2"], 2), ([], 2)])
def test_the_fastest_instructions_of_the_processor_are_used(available, asked, monkeypatch):
    """The library for others is not even asked."""
    found = []

    def load(path):
        found.append(Path(path).name)
        is_there = any(f"_native_{name}." in found[-1] for name in available)
        functions = {name: SimpleNamespace() for name in native.FUNCTIONS}
        return SimpleNamespace(elseq_available=lambda: native.INTERFACE * is_there, **functions)

    monkeypatch.setattr(ctypes, "CDLL", load)
    native.library.cache_clear()
    try:
        assert (native.library() is not None) == bool(available)
    finally:
        native.library.cache_clear()
    assert ["avx512" in name for name in found] == [True, False][:asked]


def test_not_available(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    assert not kernels.available()
    with pytest.raises(RuntimeError, match="AVX2"):
        kernels.quantize_rows(torch.ones(1, 1))
