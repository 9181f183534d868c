"""Searches that are timed by their parts, and repeats of an engine that is made up."""

import time
from types import SimpleNamespace

import pytest

from elseq.benchmark import timed_search
from elseq.benchmark.measure import Measurement
from elseq.benchmark.models import random_model
from elseq.benchmark.timed_search import WARM_UP_SOURCE, WARM_UP_TOKENS, TimedSearch, time_parts

SOURCE = [5 + place % 20 for place in range(WARM_UP_SOURCE + 500)] + [2]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    sizes = [f"--{side}-{name}" for side in ("encoder", "decoder") for name in ("layers=1", "embed-dim=16")]
    options = [*sizes, "--encoder-attention-heads=2", "--decoder-attention-heads=2", "--max-source-positions=4096"]
    return random_model("transformer", 32, options, tmp_path_factory.mktemp("model"))


def test_a_cpu_is_warmed_up_by_less_than_all(model_file):
    request = {
        "mode": "kv",
        "model_file": model_file.to_dict(),
        "sources": [SOURCE],
        "target_length": WARM_UP_TOKENS + 4,
        "beam": 2,
        **{"dtype": "float32", "device": "cpu", "threads": 1},
    }
    engine = TimedSearch(request)
    encoder, read = engine.model.encoder, []
    encode = encoder.forward_torchscript
    encoder.forward_torchscript = lambda net_input: read.append(net_input["src_tokens"]) or encode(net_input)
    engine.warm_up()
    assert read.pop().tolist() == [SOURCE[-WARM_UP_SOURCE:]]
    assert engine.found.output_lengths == [WARM_UP_TOKENS]

    seconds = engine.time()
    assert read.pop().tolist() == [SOURCE]
    assert engine.found.output_lengths == [WARM_UP_TOKENS + 4]
    assert set(seconds) == {"encoder", "decoder"} and min(seconds.values()) > 0


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
    assert (found.loading_mebibytes, found.loaded_mebibytes) == (10.0, 1)
    assert (found.peak_mebibytes, found.peak_includes_loading) == (40.0, True)
    assert waits == [(20.0, "warm-up"), (30.0, "warm-up", "time")]  # the peak so far


def test_the_encoder_s_part(monkeypatch):
    """A clock that runs a second for the encoder and three for the whole search."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

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
    search.task, search.generator, search.sample = SimpleNamespace(inference_step=inference_step), None, {}
    search._watch_encoder()
    assert search.time() == {"encoder": 1.0, "decoder": 2.0}
    assert search.found.output_lengths == [2, 3]
