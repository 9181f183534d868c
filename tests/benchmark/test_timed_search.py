"""Repeats of an engine that is made up, and an encoder that is timed apart from the rest."""

from types import SimpleNamespace

import pytest

from elseq.benchmark import timed_search
from elseq.benchmark.measure import Measurement
from elseq.benchmark.timed_search import TimedSearch, time_parts


@pytest.fixture
def memory(monkeypatch):
    """Each look at the memory finds a mebibyte more than the last, and a peak of ten times that."""
    looks = iter(range(1, 100))
    monkeypatch.setattr(timed_search, "memory_mebibytes", lambda device: ((now := next(looks)), 10.0 * now))
    monkeypatch.setattr(timed_search, "reset_peak", lambda device: True)


class Engine:
    def __init__(self, repeats):
        self.request, self.found, self.done = {"device": "cpu", "repeats": repeats}, Measurement(), []

    def warm_up(self):
        self.done.append("warm-up")

    def time(self):
        self.done.append("time")
        return {"encoder": 1.0, "decoder": float(len(self.done))}


def test_repeats_by_part(memory):
    engine, waits = Engine(2), []
    found = time_parts(engine, lambda mebibytes: waits.append((mebibytes, *engine.done)))
    assert engine.done == ["warm-up", "time", "time"]
    assert found.seconds == {"encoder": [1.0, 1.0], "decoder": [2.0, 3.0]}
    assert (found.loaded_mebibytes, found.peak_mebibytes, found.peak_includes_loading) == (1, 40.0, True)
    assert waits == [(20.0, "warm-up"), (30.0, "warm-up", "time")]  # the peak so far


def test_the_encoder_s_part(monkeypatch):
    """A clock that runs a second for the encoder and three for the whole search."""
    clock = [0.0]
    monkeypatch.setattr(timed_search, "now", lambda device: clock[0])

    def encode(net_input):
        clock[0] += 1
        return net_input

    def inference_step(generator, models, sample):
        models[0].encoder.forward_torchscript(sample)
        clock[0] += 2
        return [[{"tokens": [4, 5, 2]}], [{"tokens": [4, 2]}, {"tokens": [5, 6, 7, 2]}]]

    search = TimedSearch.__new__(TimedSearch)
    search.request, search.is_stock, search.found = {"device": "cpu"}, True, Measurement()
    search.model = SimpleNamespace(encoder=SimpleNamespace(forward_torchscript=encode))
    search.task, search.generator, search.sample = SimpleNamespace(inference_step=inference_step), None, "sample"
    search._watch_encoder()
    assert search.time() == {"encoder": 1.0, "decoder": 2.0}
    assert search.found.output_lengths == [2, 3]
