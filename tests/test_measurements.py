import json

import pytest
import torch

from elseq.measurements import cache_file, measured, power_of_two

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
