"""The clock and the memory of a GPU; here PyTorch's answers are given by the test."""

from contextlib import nullcontext

import pytest
import torch

from elseq import gpu

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def test_kinds_of_devices():
    assert [gpu.device_kind(device) for device in (CPU, "cpu", GPU, "cuda", "meta")] == ["cpu"] * 2 + ["other"] * 3


def test_only_a_gpu_can_be_current(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: device)
    assert gpu.on_device(GPU) == GPU
    assert isinstance(gpu.on_device(CPU), nullcontext)


@pytest.fixture
def clock(monkeypatch):
    """A GPU that a host needs some cycles to launch a run on, and that takes 3 ms for all of them."""
    told, waits = [], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            told.append("record")

        def synchronize(self):
            told.append("synchronize")

        def query(self):
            return waits[-1] < clock.launching

        def elapsed_time(self, end):
            return 3.0

    def sleep(cycles):
        told.append("sleep")
        waits.append(cycles)

    def clock():
        told.append("call")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", sleep, raising=False)
    clock.told, clock.waits, clock.launching = told, waits, 0
    return clock


def test_it_starts_when_all_has_been_launched_and_ends_when_it_is_done(clock):
    assert gpu.seconds(clock, 2) == pytest.approx(3e-3 / 2)
    assert clock.told == ["sleep", "record", "call", "call", "record", "synchronize"]


@pytest.mark.parametrize(("launching", "waits"), [(2_000_000, 1), (2_000_001, 2), (30_000_000, 3), (10**12, 4)])
def test_the_gpu_waits_longer_where_launching_takes_longer(clock, launching, waits):
    clock.launching = launching
    assert gpu.seconds(clock) == pytest.approx(3e-3)
    assert clock.waits == gpu.HEAD_STARTS[:waits]
    assert clock.told.count("call") == waits


@pytest.mark.parametrize(("share", "expected"), [(1.0, 50), (0.5, 50 - 30), (0.05, 5 - 30)])
def test_memory(monkeypatch, share, expected):
    """Of 100 bytes 50 are free, 30 reserved, and 10 of these in use."""
    for name, value in (
        ("mem_get_info", (50, 100)),
        ("memory_reserved", 30),
        ("memory_allocated", 10),
        ("get_per_process_memory_fraction", share),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert gpu.unreserved_bytes(GPU) == expected
    assert gpu.free_bytes(GPU) == expected + 20
