"""Memory that goes back to the system."""

import platform
import resource
from pathlib import Path

import pytest
import torch

from elseq import heap
from elseq.heap import available_bytes, count_dropped, give_back_memory


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


@pytest.fixture
def machine(tmp_path):
    """A folder with proc and sys, given the groups of this process and numbers of their files: paths and contents."""

    def make(groups, **files):
        written = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n", "proc/self/cgroup": groups, **files}
        for path, content in written.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(content)
        return tmp_path

    return make


def group(path, limit, used, unused_files=0, version=2):
    """The files of a control group."""
    folder = f"sys/fs/cgroup/{path}" if version == 2 else f"sys/fs/cgroup/memory/{path}"
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    stat = f"anon 1\n{'' if version == 2 else 'total_'}inactive_file {unused_files}\n"
    contents = dict(zip(names, (f"{limit}\n", f"{used}\n"), strict=True), **{"memory.stat": stat})
    return {f"{folder}/{name}": content for name, content in contents.items()}


MACHINE = 8000 * 1024


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {}, MACHINE),
        ("0::/\n", group("", "max", 5), MACHINE),
        ("0::/\n", group("", 3_000_000, 1_000_000, 400_000), 2_400_000),
        ("0::/\n", group("", 10**12, 5), MACHINE),
        ("0::/\n", group("", 1000, 2000), 0),
        ("0::/a/b\n", group("a/b", "max", 7) | group("a", 500_000, 100_000), 400_000),
        ("0::/a/b\n", group("a/b", 90_000, 7) | group("a", 500_000, 100_000), 89_993),
        ("0::/of/the/host\n", group("", 70_000, 0), 70_000),
        ("4:cpu,memory:/x\n0::/\n", group("x", 60_000, 10_000, 5_000, version=1), 55_000),
        ("4:memory:/of/the/host\n", group("", 60_000, 10_000, version=1), 50_000),
        ("4:cpu:/x\n", group("x", 60_000, 10_000, version=1), MACHINE),
    ],
)
def test_a_container_has_less(machine, groups, files, expected):
    assert available_bytes(machine(groups, **files)) == expected


def test_memory_of_systems_without_these_files(tmp_path):
    assert 0 < available_bytes(tmp_path) < 100 * available_bytes()
