"""Captures, those that fail, and those without memory; by a stand-in for a GPU, which replays work by doing it."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from elseq.generation import SequenceGenerator, captured_steps, cuda_graphs, kept_steps, steppers
from elseq.generation.cuda_graphs import CapturedWork, free_memory_bytes
from tests.tiny_models import assert_same_hypotheses, make_dictionary, make_models, make_sample, make_sources

DICTIONARY = make_dictionary(20)
GPU = torch.device("cuda")


class Gpu(TorchDispatchMode):
    """While work is captured nothing is written. The capture fails after a number of operations."""

    def __init__(self, fails_after):
        super().__init__()
        self.fails_after = fails_after

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.fails_after -= 1
        if self.fails_after < 0:
            raise torch.OutOfMemoryError("no memory is left\nat all")
        if function._schema.is_mutable:
            return (kwargs or {}).get("out", args[0])
        return function(*args, **(kwargs or {}))


@pytest.fixture
def gpu(monkeypatch):
    """After how many operations captures fail, how many bytes are free and how many PyTorch holds unused, and how many
    captures there were."""
    found = SimpleNamespace(fails_after=math.inf, free=1000, unused=0, captures=0, runs=0, emptied=0)

    def empty_cache():
        found.emptied += 1
        found.free, found.unused = found.free + found.unused, 0

    def run(work, pool, stream):
        found.captures += 1
        with Gpu(found.fails_after):
            work()
        return SimpleNamespace(replay=work)

    def allocated(self):
        found.runs += 1
        return 10 * found.runs

    monkeypatch.setattr(CapturedWork, "is_possible", True)
    monkeypatch.setattr(cuda_graphs, "allocated", allocated)
    monkeypatch.setattr(cuda_graphs, "_capture", run)
    monkeypatch.setattr(cuda_graphs, "_shared_by", lambda device: SimpleNamespace(pool=None, stream=None))
    monkeypatch.setattr(cuda_graphs, "unreserved_bytes", lambda device: found.free)
    monkeypatch.setattr(cuda_graphs, "free_bytes", lambda device: found.free + found.unused)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    cuda_graphs._log.cache_clear()
    return found


@pytest.fixture
def begin_to_capture(monkeypatch, gpu, as_on_gpu):
    def begin():
        monkeypatch.setattr(captured_steps, "ROOM", 5)
        monkeypatch.setattr(captured_steps, "CHEAP", 0)
        monkeypatch.setattr(captured_steps, "CapturedWork", lambda device: CapturedWork(GPU))
        monkeypatch.setattr(steppers, "can_capture", lambda *asked: True)

    return begin


SAMPLE = make_sample(DICTIONARY, make_sources(DICTIONARY, (3, 7, 1, 5, 2)))


def make_generator(method, beam):
    model = make_models("transformer", DICTIONARY)[method]
    return SequenceGenerator([model], DICTIONARY, beam_size=beam, min_len=8, max_len_b=17, no_repeat_ngram_size=3)


def generate(method, beam):
    return make_generator(method, beam).generate(None, SAMPLE)


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize("fails_after", [0, 1, 7, 40])
def test_a_capture_that_fails(begin_to_capture, gpu, caplog, method, beam, fails_after):
    expected = generate(method, beam)
    begin_to_capture()
    gpu.fails_after = fails_after
    assert_same_hypotheses(generate(method, beam), expected)
    assert gpu.captures == 1
    [record] = caplog.records
    assert record.getMessage() == (
        "decoding steps are slower, because they cannot be captured as CUDA graphs: no memory is left"
    )


@pytest.mark.parametrize("method", ["kv", "el"])
def test_too_little_memory(begin_to_capture, gpu, caplog, method):
    expected = generate(method, 3)
    begin_to_capture()
    gpu.free = 9
    assert_same_hypotheses(generate(method, 3), expected)
    assert gpu.captures == 0
    [record] = caplog.records
    assert record.getMessage() == (
        "decoding steps are slower, because the free memory is too small to capture them as CUDA graphs"
    )


@pytest.mark.parametrize("method", ["kv", "el"])
def test_captures_of_a_search(begin_to_capture, gpu, caplog, method):
    """One for each room: 5, 10 and 18 positions."""
    expected = generate(method, 3)
    begin_to_capture()
    assert_same_hypotheses(generate(method, 3), expected)
    assert gpu.captures == 3
    assert not caplog.records


@pytest.mark.parametrize("obstacle", ["a capture fails", "too little memory"])
def test_buffers_without_a_graph_are_not_kept(begin_to_capture, gpu, monkeypatch, obstacle):
    expected = generate("kv", 3)
    begin_to_capture()
    monkeypatch.setattr(captured_steps, "CHEAP", 2**28)
    monkeypatch.setattr(kept_steps, "can_keep", lambda device: True)
    generator = make_generator("kv", 3)
    assert_same_hypotheses(generator.generate(None, SAMPLE), expected)
    assert gpu.captures == 1
    cuda_graphs.release_memory()
    if obstacle == "a capture fails":
        gpu.fails_after = 7
    else:
        gpu.free = 9
    encoder, held = generator.models[0].encoder, []
    encode = encoder.forward_torchscript
    monkeypatch.setattr(
        encoder, "forward_torchscript", lambda net_input: held.append(cuda_graphs.held_bytes()) or encode(net_input)
    )
    for _ in range(3):
        assert_same_hypotheses(generator.generate(None, SAMPLE), expected)
    assert held == [0, 0, 0]
    assert gpu.captures == (2 if obstacle == "a capture fails" else 1)


def test_what_is_held_is_released(gpu):
    class Holder:
        size = 7

        def size_bytes(self):
            return self.size

        def release(self):
            self.size = 0

    before = cuda_graphs.held_bytes()
    first, second = Holder(), Holder()
    for holder in (first, second):
        cuda_graphs.holders.add(holder)
    assert cuda_graphs.held_bytes() == before + 14
    del holder, second
    assert cuda_graphs.held_bytes() == before + 7
    cuda_graphs.release_memory()
    assert cuda_graphs.held_bytes() == first.size == 0


@pytest.mark.parametrize(
    "free, unused, has_memory, emptied", [(9, 0, True, 0), (8, 1, True, 1), (8, 0, False, 0), (0, 7, False, 0)]
)
def test_unused_memory_is_given_back_where_that_is_enough(gpu, free, unused, has_memory, emptied):
    """The GPU is idle meanwhile, and what was given back is allocated anew."""
    gpu.free, gpu.unused = free, unused
    assert cuda_graphs.has_memory(GPU, 9) == has_memory
    assert gpu.emptied == emptied


def test_the_obstacle_is_the_last_one_and_told_once(gpu, caplog):
    """Also where it was met before, and forgotten."""
    for _ in range(2):
        CapturedWork.obstacle = None
        gpu.free = 0
        captured = CapturedWork(GPU)
        for _ in range(3):
            captured(lambda: None)
        assert "too small" in CapturedWork.obstacle
    assert len(caplog.records) == 1


def test_work_is_run_once_captured_once_and_then_replayed(gpu):
    captured, numbers = CapturedWork(GPU), torch.zeros(1)
    captures = []
    for _ in range(5):
        captured(lambda: numbers.add_(1))
        captures.append(captured.is_captured)
        assert gpu.captures == captured.is_captured
        assert not captured.has_failed
    assert captures == [False, True, True, True, True]
    assert numbers.item() == 5


def test_work_on_a_cpu_is_not_captured():
    captured, calls = CapturedWork(torch.device("cpu")), []
    for _ in range(3):
        captured(lambda: calls.append(1))
    assert len(calls) == 3


def test_free_memory():
    size = free_memory_bytes(torch.device("cpu"))
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    assert 0 < size <= total


def test_free_memory_of_a_gpu_is_what_the_process_may_allocate(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "free_bytes", {torch.device("cuda:0"): 70}.get)
    assert free_memory_bytes(torch.device("cuda:0")) == 70
