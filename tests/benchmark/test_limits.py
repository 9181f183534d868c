"""Data sheets, and what a device is measured to do."""

import pytest

from elseq.benchmark import limits
from elseq.benchmark.limits import Limits, known_limits, measured_limits
from elseq.benchmark.measure import Measurement


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "float16", (3.35e12, 989e12)),
        ("NVIDIA H100 80GB HBM3", "float32", (3.35e12, 67e12)),
        ("NVIDIA H100 PCIe", "bfloat16", (2e12, 756e12)),
        ("NVIDIA H200", "float16", (4.8e12, 989e12)),
        ("NVIDIA A100-SXM4-80GB", "float16", (2.039e12, 312e12)),
        ("NVIDIA A100 80GB PCIe", "float16", (1.935e12, 312e12)),
        ("NVIDIA A100-SXM4-40GB", "float32", (1.555e12, 19.5e12)),
        ("Tesla V100-SXM2-16GB", "float16", (9e11, 125e12)),
        ("Tesla V100-SXM2-16GB", "bfloat16", None),  # it has no units for that
        ("NVIDIA H100 NVL", "float16", None),
        ("NVIDIA H200 NVL", "float16", None),
        ("NVIDIA GH200 480GB", "float16", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "float16", None),
        ("cpu", "float32", None),
    ],
)
def test_data_sheets(name, dtype, expected):
    found = known_limits(name, dtype)
    assert (found and (found.bytes_per_second, found.operations_per_second)) == (expected and pytest.approx(expected))


def test_the_nearer_limit_counts():
    device = Limits(1000.0, 100.0, "by hand")
    assert device.share(500, 10, 1.0) == 0.5
    assert device.share(500, 80, 1.0) == 0.8


def test_measured(monkeypatch):
    monkeypatch.setattr(limits, "COPY_BYTES", {"cpu": 2**16})
    monkeypatch.setattr(limits, "MATMUL_ROWS", {"cpu": 16})
    found = limits.measure({"device": "cpu", "dtype": "float32", "threads": 1})
    assert {part: len(seconds) for part, seconds in found.seconds.items()} == {"copy": 5, "matmul": 5}
    device = measured_limits(Measurement(seconds={"copy": [2.0, 1.0], "matmul": [4.0, 8.0]}), "cpu")
    assert (device.bytes_per_second, device.operations_per_second) == (2**17, 2 * 16**3 / 4)
    assert measured_limits(Measurement(failure="out of memory"), "cpu") is None
