"""What cross-attention costs under a decoding method: measured once on a machine, and kept in a file of the user's."""

import contextlib
import json
import os
import platform
import time
from dataclasses import astuple
from functools import cache
from pathlib import Path

import torch

from elseq.attention import Attention, DecodingMethod
from elseq.attention.kernels.trial import HEAD_START, current
from elseq.errors import UserError
from elseq.files import written_whole
from elseq.generation.cuda_graphs import CapturedWork
from elseq.generation.planner import Workload
from elseq.precision import prepared

# Positions that are measured at once, by type of device: the time is proportional to them beyond.
MOST = {"cpu": 1 << 11, "cuda": 1 << 16}
SHORTEST = 32
CALLS = 3


def cross_attention_seconds(method: DecodingMethod, attention: Attention, workload: Workload) -> float:
    """Seconds of a layer's cross-attention for a whole batch, if every sentence takes the most steps.

    Measured are a layer of the same sizes and type with other weights, and lengths and numbers of sentences that are
    powers of two.

    Args:
        method: keeps and reads the source.
        attention: the layer.
        workload: sizes of the batch.
    """
    weight = next(attention.parameters())  # not by its layer, which would bring back a weight that was dropped
    most = MOST.get(weight.device.type, MOST["cuda"])
    positions = min(most, max(SHORTEST, _power_of_two(workload.source_length)))
    sentences = min(_power_of_two(workload.sentences), most // positions)
    sizes = (attention.embed_dim, *astuple(attention.sizes))
    top_k = attention.top_k if attention.top_k is not None and attention.top_k < positions else None
    once, step = _measured(method, sizes, top_k, weight.dtype, weight.device, sentences, workload.beam, positions)
    scale = workload.sentences * workload.source_length / (sentences * positions)
    return scale * (once + workload.target_length * step)


def _power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


@cache
def _measured(
    method: DecodingMethod,
    sizes: tuple[int, ...],
    top_k: int | None,
    dtype: torch.dtype,
    device: torch.device,
    sentences: int,
    beam: int,
    positions: int,
) -> tuple[float, float]:
    """Seconds of making the memory of a layer, and of a step. From the file if it has them."""
    chosen = [] if top_k is None else [f"top {top_k}"]
    name = " ".join(map(str, (method.name, *sizes, *chosen, dtype, _machine(device), sentences, beam, positions)))
    known = _read()
    if name not in known:
        known[name] = list(_measure(method, sizes, top_k, dtype, device, sentences, beam, positions))
        _write(known)
    once, step = known[name]
    return once, step


@torch.no_grad()
def _measure(method, sizes, top_k, dtype, device, sentences, beam, positions) -> tuple[float, float]:
    embed_dim, heads, head_dim, kv_heads, width = sizes
    with torch.random.fork_rng(devices=[]):  # a search may have been seeded
        generator = torch.Generator().manual_seed(0)
        options = {"head_dim": head_dim, "encoder_decoder_attention": True, "top_k": top_k}
        layer = Attention(embed_dim, heads, kv_heads, width, width, **options)
        hidden = torch.randn(positions, sentences, width, generator=generator).to(device, dtype)
        query = torch.randn(1, sentences * beam, embed_dim, generator=generator).to(device, dtype)
    layer = layer.to(device, dtype).eval()
    precision = prepared(layer)
    precision.begin(only_decodes=True)
    try:
        once = _seconds(lambda: method.memories([layer], hidden, None), device)
        [memory] = method.memories([layer], hidden, None)
        work = CapturedWork(device)  # as a search's steps
        step = _seconds(lambda: work(lambda: layer(query, need_weights=False, state=memory)), device)
    finally:
        precision.end()
    return once, step


def _seconds(call, device: torch.device) -> float:
    clock = _seconds_on_gpu if device.type == "cuda" else _seconds_on_cpu
    with current(device):
        times = [clock(call) for _ in range(1 + CALLS)]
    return min(times[1:])  # the first one compiles and allocates, and the second one captures


def _seconds_on_cpu(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _seconds_on_gpu(call) -> float:
    """By its own clock: it waits until all has been launched."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(HEAD_START)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


@cache
def _machine(device: torch.device) -> str:
    """What runs the products, as far as their times depend on it."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:
        return next(line for line in file if line.startswith("model name")).partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cache_file() -> Path:
    """Where the measurements are kept. It may be removed at any time."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "elseq" / "attention_seconds.json"


def _read() -> dict[str, list[float]]:
    """What is in the file; nothing, where it is missing or spoilt."""
    try:
        found = json.loads(cache_file().read_text())
        return {name: [float(seconds) for seconds in pair] for name, pair in found.items() if len(pair) == 2}
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError):  # RuntimeError: no home
        return {}


def _write(known: dict[str, list[float]]) -> None:
    with contextlib.suppress(OSError, RuntimeError, UserError):  # then it is measured again by the next process
        cache_file().parent.mkdir(parents=True, exist_ok=True)
        with written_whole(cache_file()) as file:
            json.dump(known, file, indent=1)
