"""Memory that goes back to the system."""

import platform
import resource
from pathlib import Path

import pytest
import torch

from elseq import heap
from elseq.heap import count_dropped, give_back_memory


def resident_mebibytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_unused_memory_goes_back_to_the_system():
    pieces = [torch.ones(20_000) for _ in range(2000)]  # 153 MiB, each too small for pages of its own
    last = pieces.pop()  # is above all others, which cannot go back by themselves
    del pieces
    before = resident_mebibytes()
    give_back_memory()
    assert before - resident_mebibytes() > 100
    assert last.sum() == 20_000


def test_memory_is_given_back_now_and_then(monkeypatch):
    calls = []
    monkeypatch.setattr(heap, "_dropped", 0)
    monkeypatch.setattr(heap, "give_back_memory", lambda: calls.append(None))
    count_dropped(2**24)
    assert not calls
    count_dropped(1)
    assert len(calls) == 1
