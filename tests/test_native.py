import ctypes
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from elseq import native
from elseq.precision import int8, kernels


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


@pytest.mark.parametrize(
    "load, is_old", [(not_compiled, False), (other_processor, False), (other_sources, True), (other_interface, True)]
)
def test_without_the_library(load, is_old, monkeypatch, caplog):
    monkeypatch.setattr(ctypes, "CDLL", load)
    native.library.cache_clear()
    native._tell_of_other_sources.cache_clear()
    try:
        with caplog.at_level("INFO"):
            assert native.library() is None and int8.fastest() is int8.TorchProduct
        with pytest.raises(RuntimeError, match="AVX2"):
            native.loaded()
    finally:
        native.library.cache_clear()
    warned = [record.levelname == "WARNING" for record in caplog.records]
    told = [record.message for record in caplog.records]
    assert warned == [True] * is_old + [False]
    assert "which are slower" in told[-1] and all("install elseq again" in message for message in told[:-1])


@pytest.mark.parametrize(
    "available, asked", [(["avx512", "avx2"], 1), (["avx_vnni", "avx2"], 2), (["avx2"], 3), ([], 3)]
)
def test_the_fastest_instructions_of_the_processor_are_used(available, asked, monkeypatch):
    """The libraries for others are not even asked."""
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
    assert [name.split(".")[0] for name in found] == ["_native_avx512", "_native_avx_vnni", "_native_avx2"][:asked]


def test_not_available(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    with pytest.raises(RuntimeError, match="AVX2"):
        kernels.quantize_rows(torch.ones(1, 1))


@pytest.mark.skipif(native.library_for("avx512") is None, reason="not compiled, or no avx512")
def test_avx_vnni_in_the_encoding_of_avx512(tmp_path, monkeypatch):
    """AVX-512 VNNI has the same products in another encoding, which the assembler takes unless it is told not to."""
    compiler = ["g++", "-O3", "-std=c++17", "-fopenmp", "-fPIC", "-mavx2", "-mfma", "-mavxvnni", "-DELSEQ_AVX_VNNI"]
    try:
        subprocess.run([*compiler, "-E", "-xc++", os.devnull], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no compiler that has AVX-VNNI")
    source, assembly = Path(kernels.__file__).with_suffix(".cpp"), tmp_path / "kernels.s"
    library = assembly.with_suffix(".so")
    subprocess.run([*compiler, "-S", source, "-o", assembly], check=True)
    text = assembly.read_text()
    assert "{vex} vpdpbusd" in text
    assembly.write_text(text.replace("{vex} vpdpbusd", "vpdpbusd"))
    subprocess.run(["g++", "-shared", assembly, "-o", library], check=True)
    loaded = ctypes.CDLL(str(library))
    for name in ("elseq_columns", "elseq_lay_out", "elseq_quantize_rows", "elseq_linear_int8"):
        getattr(loaded, name).argtypes = native.FUNCTIONS[name]
    monkeypatch.setattr(native, "library", lambda: loaded)
    weight = torch.randint(-127, 128, (70, 301))
    weight[:, 7] = 127
    packed = kernels.PackedIntegers.of(weight.float())
    for rows in (*range(8), 160):
        x = torch.randint(-127, 128, (rows, 301))
        x[:, 300] = 127  # scales are 1, and float32 has all sums
        assert kernels.linear_int8(kernels.quantize_rows(x.float()), packed).equal((x @ weight.t()).float())
