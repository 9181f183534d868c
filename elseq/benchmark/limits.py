"""The limits of a device: bytes that it reads and writes per second, and floating-point operations per second.

As a program, it measures both on the device that a request names.
"""

from dataclasses import dataclass

import torch

from elseq.benchmark.measure import Measurement, main, seconds_of

COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}  # more than caches hold
MATMUL_ROWS = {"cpu": 2048, "cuda": 8192}
REPEATS = 5  # of which the fastest counts

# NVIDIA's data sheets, dense: GB/s, TFLOP/s of float16 (and bfloat16), of float32. By whole names: a longer
# name is another product, or a part of a device (MIG), with other figures.
_DATA_SHEETS = {
    "H200": (4800, 989, 67),
    "H100 80GB HBM3": (3350, 989, 67),
    "H100 PCIe": (2000, 756, 51),
    "A100-SXM4-80GB": (2039, 312, 19.5),
    "A100 80GB PCIe": (1935, 312, 19.5),
    "A100-SXM4-40GB": (1555, 312, 19.5),
    "A100-PCIE-40GB": (1555, 312, 19.5),
    "V100-SXM2-16GB": (900, 125, 15.7),
    "V100-SXM2-32GB": (900, 125, 15.7),
    "V100-PCIE-16GB": (900, 112, 14),
    "V100-PCIE-32GB": (900, 112, 14),
}


@dataclass(frozen=True)
class Limits:
    """The limits of a device in one dtype."""

    bytes_per_second: float
    operations_per_second: float
    source: str  # where they are from

    def share(self, read: float, operations: float, seconds: float) -> float:
        """The time that the device would need at its limits, as a share of the time that it took."""
        return max(read / self.bytes_per_second, operations / self.operations_per_second) / seconds


def known_limits(name: str, dtype: str) -> Limits | None:
    """The limits in the data sheet of a device, or None if the table does not have it.

    Args:
        name: the name of the device in torch.
        dtype: float32, float16 or bfloat16.
    """
    name = name.removeprefix("NVIDIA ").removeprefix("Tesla ")
    if name not in _DATA_SHEETS or name.startswith("V100") and dtype == "bfloat16":  # for which it has no units
        return None
    gigabytes, half, single = _DATA_SHEETS[name]
    return Limits(gigabytes * 1e9, (single if dtype == "float32" else half) * 1e12, "NVIDIA's data sheet")


def measured_limits(found: Measurement, device: str) -> Limits | None:
    """The limits that this program has measured, or None if it failed.

    Args:
        found: the result of this program.
        device: cpu, cuda or cuda:1.
    """
    if found.failure is not None:
        return None
    kind = device.partition(":")[0]
    copy, matmul = (min(found.seconds[part]) for part in ("copy", "matmul"))
    return Limits(2 * COPY_BYTES[kind] / copy, 2 * MATMUL_ROWS[kind] ** 3 / matmul, "measured by a copy and a product")


def measure(request: dict) -> Measurement:
    """Seconds of copying memory, and of a product of square matrices.

    Args:
        request: dtype, device, threads.
    """
    torch.set_num_threads(request["threads"])
    device = request["device"]
    kind = device.partition(":")[0]
    options = {"device": device, "dtype": getattr(torch, request["dtype"])}
    source = torch.zeros(COPY_BYTES[kind], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    one, other = (torch.rand(MATMUL_ROWS[kind], MATMUL_ROWS[kind], **options) for _ in range(2))
    seconds = {
        "copy": [seconds_of(device, lambda: target.copy_(source)) for _ in range(REPEATS + 1)][1:],
        "matmul": [seconds_of(device, lambda: one @ other) for _ in range(REPEATS + 1)][1:],
    }
    return Measurement(seconds=seconds)


if __name__ == "__main__":
    main(measure)
