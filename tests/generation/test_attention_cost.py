from contextlib import nullcontext

import pytest
import torch

from elseq.attention import Attention
from elseq.attention.methods import EL, KV
from elseq.generation import attention_cost
from elseq.generation.attention_cost import cross_attention_seconds
from elseq.generation.planner import Workload

WORKLOAD = Workload(sentences=3, beam=2, source_length=50, target_length=10)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    attention_cost._measured.cache_clear()
    yield
    attention_cost._measured.cache_clear()


@pytest.fixture(scope="module")
def attention():
    return Attention(16, 4, 2, encoder_decoder_attention=True).eval()


@pytest.fixture
def measured(monkeypatch):
    """Measurements without a stopwatch: what was measured is recorded."""
    calls = []

    def measure(method, sizes, top_k, dtype, device, sentences, beam, positions):
        calls.append((method, sizes, dtype, sentences, beam, positions))
        return 4.0, 0.5

    monkeypatch.setattr(attention_cost, "_measure", measure)
    return calls


def test_a_batch_is_scaled_from_what_was_measured(attention, measured):
    seconds = cross_attention_seconds(KV, attention, WORKLOAD)
    assert measured == [(KV, (16, 4, 4, 2, 16), torch.float32, 4, 2, 64)]
    assert seconds == (3 * 50) / (4 * 64) * (4 + 10 * 0.5)


def test_large_batches_are_measured_in_part(attention, measured):
    workload = Workload(sentences=1000, beam=1, source_length=1000, target_length=1)
    seconds = cross_attention_seconds(EL, attention, workload)
    [(*_, sentences, _, positions)] = measured
    assert (sentences, positions) == (2, 1024)
    assert seconds == 10**6 / 2048 * 4.5


def test_each_is_measured_once(attention, measured):
    for _ in range(2):
        attention_cost._measured.cache_clear()  # as another process
        for method in (KV, EL):
            for sentences in (3, 4):
                cross_attention_seconds(method, attention, Workload(sentences, 2, 50, 10))
    assert [call[0] for call in measured] == [KV, EL]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [KV, EL], ids=lambda method: method.name)
def test_measuring_draws_no_random_numbers_and_leaves_the_layer(attention, method, dtype):
    layer = Attention(16, 4, 2, encoder_decoder_attention=True, bias=False).eval().to(dtype)
    before, state = {name: value.clone() for name, value in layer.state_dict().items()}, torch.get_rng_state()
    assert 0 < cross_attention_seconds(method, layer, WORKLOAD) < 60
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_a_step_is_measured_as_a_search_runs_it(attention, monkeypatch):
    """Captured, where it is captured."""
    runs = []

    class Work(attention_cost.CapturedWork):
        def __call__(self, work):
            runs.append(self)
            super().__call__(work)

    monkeypatch.setattr(attention_cost, "CapturedWork", Work)
    assert cross_attention_seconds(KV, attention, WORKLOAD) > 0
    assert len(runs) == 1 + attention_cost.TIMED_CALLS >= 4 and len(set(runs)) == 1


def test_the_clock_of_a_gpu(monkeypatch):
    timed = []

    def seconds(call):
        call()
        timed.append(call)
        return 9.0 if len(timed) == 1 else float(len(timed))  # the first one compiles

    monkeypatch.setattr(attention_cost.gpu, "seconds", seconds)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    assert attention_cost._seconds(lambda: None, torch.device("cuda", 0)) == 2.0
    assert len(timed) == 1 + attention_cost.TIMED_CALLS


def test_long_sources_and_the_largest_scores(measured):
    """No more positions than are measured at once, and the same number of largest scores."""
    attention = Attention(16, 4, 2, encoder_decoder_attention=True, top_k=50).eval()
    tops = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_cost, "_measure", lambda *asked: tops.append((asked[2], asked[-1])) or (4.0, 0.5))
        for length in (40, 64, 100_000):
            attention_cost.cross_attention_seconds(KV, attention, Workload(1, 2, length, 10))
    assert tops == [(50, 64), (50, 2048)]  # that of 40 and 64 is one measurement
