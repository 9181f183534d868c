"""The time of cross-attention under a decoding method, measured once on a machine."""

from dataclasses import astuple
from functools import cache, partial

import torch

from elseq import gpu
from elseq.attention import Attention, DecodingMethod
from elseq.generation.cuda_graphs import CapturedWork
from elseq.generation.planner import Workload
from elseq.measurements import measured, power_of_two, seconds_on_cpu
from elseq.precision import prepared

# Positions that are measured at once, by type of device: the time is proportional to them beyond.
MOST_POSITIONS = {"cpu": 1 << 11, "other": 1 << 16}
FEWEST_POSITIONS = 32  # that are measured
TIMED_CALLS = 3  # the fastest one counts


def cross_attention_seconds(method: DecodingMethod, attention: Attention, workload: Workload) -> float:
    """Seconds of a layer's cross-attention for a whole batch, if every sentence takes the most steps.

    The measured layer has the same sizes and type, and other weights. Lengths and numbers of sentences are
    powers of two.

    Args:
        method: keeps and reads the source.
        attention: the layer.
        workload: sizes of the batch.
    """
    weight = next(attention.parameters())  # not by its layer, which would bring back a weight that was dropped
    most = MOST_POSITIONS[gpu.device_kind(weight.device)]
    positions = min(most, max(FEWEST_POSITIONS, power_of_two(workload.source_length)))
    sentences = min(power_of_two(workload.sentences), most // positions)
    sizes = (attention.embed_dim, *astuple(attention.sizes))
    top_k = attention.top_k if attention.top_k is not None and attention.top_k < positions else None
    once, step = _measured(method, sizes, top_k, weight.dtype, weight.device, sentences, workload.beam, positions)
    scale = workload.sentences * workload.source_length / (sentences * positions)
    return scale * (once + workload.target_length * step)


@cache
def _measured(
    method: DecodingMethod,
    sizes: tuple[int, ...],
    top_k: int | None,
    dtype: torch.dtype,
    device: torch.device,
    *batch: int,
) -> tuple[float, float]:
    """Seconds of making the memory of a layer, and of a step; batch: sentences, beam and positions."""
    chosen = [] if top_k is None else [f"top {top_k}"]
    name = " ".join(map(str, ("attention", method.name, *sizes, *chosen, dtype, *batch)))
    once, step = measured(name, device, partial(_measure, method, sizes, top_k, dtype, device, *batch))
    return once, step


@torch.no_grad()
def _measure(method, sizes, top_k, dtype, device, sentences, beam, positions) -> tuple[float, float]:
    embed_dim, heads, head_dim, kv_heads, width = sizes
    with torch.random.fork_rng(devices=[]):
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
        step = _seconds(lambda: work(lambda: layer(query, need_weights=False, memory=memory)), device)
    finally:
        precision.end()
    return once, step


def _seconds(call, device: torch.device) -> float:
    clock = gpu.seconds if device.type == "cuda" else seconds_on_cpu
    with gpu.on_device(device):
        times = [clock(call) for _ in range(1 + TIMED_CALLS)]
    return min(times[1:])  # the first one compiles and allocates, and the second one captures
