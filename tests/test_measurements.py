import json
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from elseq import measurements
from elseq.measurements import PACKAGE, TIMED, cache_file, measured, power_of_two

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "elseq"


@pytest.fixture
def measure():
    calls = []

    def measure():
        calls.append(len(calls))
        return 4.0, 0.5 + len(calls) - 1

    measure.calls = calls
    return measure


def test_each_is_measured_once(measure, cache):
    assert [measured(name, CPU, measure) for name in ("a", "b", "a")] == [[4.0, 0.5], [4.0, 1.5], [4.0, 0.5]]
    assert [path.name for path in cache.iterdir()] == ["measurements.json"]
    assert list(json.loads(cache_file().read_text()).values()) == [[4.0, 0.5], [4.0, 1.5]]


def test_another_number_of_threads_is_measured_anew(measure, monkeypatch):
    measured("a", CPU, measure)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert measured("a", CPU, measure) == [4.0, 1.5]


@pytest.fixture
def as_another_process():
    measurements._timed_code.cache_clear()
    yield measurements._timed_code.cache_clear
    measurements._timed_code.cache_clear()


@pytest.mark.parametrize(
    "changed", ["attention/kernels/a_triton.py", "precision/a.py", "generation/kernels/a_triton.py", "_native_a.so"]
)
def test_other_code_is_measured_anew(measure, monkeypatch, tmp_path, as_another_process, changed):
    file, other = tmp_path / "elseq" / changed, tmp_path / "elseq" / "text_files" / "a.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    other.parent.mkdir()
    monkeypatch.setattr(measurements, "PACKAGE", tmp_path / "elseq")
    found = []
    for changes, text in ((file, "BLOCK = 32"), (other, "1"), (file, "BLOCK = 64"), (other, "2"), (file, "BLOCK = 32")):
        changes.write_text(text)
        as_another_process()
        found += measured("a", CPU, measure)[1:]
    assert found == [0.5, 0.5, 1.5, 1.5, 0.5]


def test_what_is_timed_is_there():
    names = {path.relative_to(PACKAGE).as_posix() for pattern in TIMED for path in PACKAGE.glob(pattern)}
    triton = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*_triton.py")}
    assert len(triton) >= 3
    assert names >= {*triton, "attention/methods/el.py", "precision/floats.py"}
    assert any(name.startswith("_native_") for name in names) == bool(list(PACKAGE.glob("*.so")))


def test_another_triton_is_measured_anew(measure, monkeypatch, as_another_process):
    def missing(name):
        raise PackageNotFoundError(name)

    found = []
    for version in (lambda name: f"{name} 3.6", missing, lambda name: f"{name} 3.7", missing):
        monkeypatch.setattr(measurements, "version", version)
        as_another_process()
        found += measured("a", CPU, measure)[1:]
    assert found == [0.5, 1.5, 2.5, 1.5]


def test_processes_that_measure_at_once_choose_alike(measure):
    """The first one that has written is right."""

    def slow():
        measured("a", CPU, measure)
        return 9.0, 9.0

    assert measured("a", CPU, slow) == measured("a", CPU, measure) == [4.0, 0.5]


@pytest.mark.parametrize("content", ["", "[]", "null", '{"a": 1}', '{"a": [1, "b"]}', "\udcff"])
def test_a_spoilt_file_is_replaced(measure, cache, content):
    cache.mkdir()
    cache_file().write_text(content, errors="surrogateescape")
    assert measured("a", CPU, measure) == [4.0, 0.5]
    assert list(json.loads(cache_file().read_text()).values()) == [[4.0, 0.5]]


def test_a_folder_that_cannot_be_written(measure, cache):
    cache.write_text("a file")
    assert measured("a", CPU, measure) == [4.0, 0.5]
    assert measured("a", CPU, measure) == [4.0, 1.5]


@pytest.mark.parametrize("number, expected", [(0, 1), (1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_powers_of_two(number, expected):
    assert power_of_two(number) == expected
