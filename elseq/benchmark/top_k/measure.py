"""One measured run of the top-k benchmark: read a request, go forward and backward some times, write a result.

Run as a program, so that its memory is this run's alone. The methods of attention:

vanilla: matmul, softmax, matmul; all scores at once, hidden ones filled in place.
chunked: the same for a chunk of queries at a time and the keys it sees; chunks are computed again for the gradients.
top-k: `elseq.attention.top_k_attention`.
sdpa: `torch.nn.functional.scaled_dot_product_attention`.
"""

import gc
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from elseq.attention.top_k import MOST_QUERIES, top_k_attention, top_k_feed_forward
from elseq.benchmark.measure import Measurement, limit_memory, main, memory_mebibytes, reset_peak, seconds_of
from elseq.gpu import device_kind

WARM_UP_SECONDS = 10  # a first pass that takes longer is one of the repeats
SMALL = {"length": 64, "units": 256}  # of the pass before the memory is looked at, which loads code


def measure(request: dict) -> Measurement:
    """Go forward and backward `repeats` times by the clock, or fewer if they take longer than seconds_limit together.

    Args:
        request: layer and its sizes, method, top_k, dtype, device, threads, repeats, seconds_limit.

    Returns:
        seconds of each repeat; memory in MiB with the inputs loaded, and the peak of the first pass above that:
        outputs, what is kept for the backward pass, what is alive for a moment, and gradients.
    """
    torch.set_num_threads(request["threads"])
    limit_memory(request["device"], request["memory_limit_bytes"])
    torch.manual_seed(1)
    small = {key: min(size, request[key]) for key, size in SMALL.items() if key in request}
    Layer({**request, **small}).time()
    layer = Layer(request)
    gc.collect()
    loaded = memory_mebibytes(request["device"])[0] or 0.0
    peak_includes_loading = reset_peak(request["device"])
    seconds = [layer.time()]
    peak = memory_mebibytes(request["device"])[1]
    warm_up = 1 if seconds[0] < WARM_UP_SECONDS else 0
    while len(seconds) < request["repeats"] + warm_up and sum(seconds) < request["seconds_limit"]:
        seconds.append(layer.time())
    return Measurement(
        seconds=seconds[warm_up:] or seconds,
        loaded_mebibytes=loaded,
        peak_mebibytes=max(0.0, peak - loaded),
        peak_includes_loading=peak_includes_loading,
    )


class Layer:
    """The layer of a request, with random inputs, weights and gradients of its output."""

    def __init__(self, request: dict):
        self.request = request
        make = feed_forward if request["layer"] == "feed-forward" else attention
        self.forward, self.inputs = make(request)
        for tensor in self.inputs:
            tensor.requires_grad_()
        self.gradient = _random(request, *self.inputs[0].shape)

    def time(self) -> float:
        """Seconds of a forward and backward pass."""
        for tensor in self.inputs:
            tensor.grad = None
        return seconds_of(self.request["device"], lambda: self.forward(*self.inputs).backward(self.gradient))


def attention(request: dict) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """A layer and its queries, keys and values [1, H, L, K]; of several layers, states [1, L, H K] and projections."""
    heads, length, head_width = request["heads"], request["length"], request["head_width"]
    attend = _attend(request)
    if request["layers"] == 1:
        query, key, value = (_random(request, 1, heads, length, head_width) for _ in range(3))
        return attend, [query * head_width**-0.5, key, value]
    width = heads * head_width

    def stack(states: Tensor, *weights: Tensor) -> Tensor:
        for into_query, into_key, into_value, out_of in zip(*[iter(weights)] * 4, strict=True):
            query, key, value = (
                F.linear(states, weight).view(1, length, heads, head_width).transpose(1, 2)
                for weight in (into_query, into_key, into_value)
            )
            context = attend(query * head_width**-0.5, key, value)
            states = states + F.linear(context.transpose(1, 2).reshape(1, length, width), out_of)
        return states

    weights = [_random(request, width, width) * width**-0.5 for _ in range(4 * request["layers"])]
    return stack, [_random(request, 1, length, width), *weights]


def _attend(request: dict) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Causal attention of scaled queries [1, H, L, K] to keys and values of the same shape."""
    method, top_k, chunk_size = request["method"], request["top_k"], request["query_chunk_size"]
    if method == "vanilla":
        return vanilla_attention
    if method == "chunked":
        chunk_size = chunk_size or MOST_QUERIES[device_kind(request["device"])]
        return lambda *states: chunked_attention(*states, chunk_size)
    if method == "top-k":
        return lambda *states: top_k_attention(*states, top_k, causal=True, query_chunk_size=chunk_size)
    return lambda *states: F.scaled_dot_product_attention(*states, is_causal=True, scale=1.0)


def vanilla_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The last query sees all keys, the one before it all but one, and so on."""
    scores = query @ key.transpose(-1, -2)
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
    hidden.triu_(key.size(-2) - query.size(-2) + 1)
    return scores.masked_fill_(hidden, float("-inf")).softmax(dim=-1) @ value


def chunked_attention(query: Tensor, key: Tensor, value: Tensor, chunk_size: int) -> Tensor:
    """`vanilla_attention` of as many queries as keys; scores and weights of a chunk are not kept."""
    contexts = []
    for start in range(0, query.size(-2), chunk_size):
        stop = min(start + chunk_size, query.size(-2))
        chunk = query[..., start:stop, :], key[..., :stop, :], value[..., :stop, :]
        contexts.append(checkpoint(vanilla_attention, *chunk, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(contexts, dim=-2)


def feed_forward(request: dict) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """A feed-forward layer with ReLU and without biases; states [L, C] and weights [F, C] and [C, F]."""
    length, width, units = request["length"], request["width"], request["units"]
    states = _random(request, length, width)
    weights = _random(request, units, width) * width**-0.5, _random(request, width, units) * units**-0.5
    if request["method"] == "vanilla":
        return lambda x, into, out_of: F.linear(F.linear(x, into).relu(), out_of), [states, *weights]
    return (
        lambda x, into, out_of: top_k_feed_forward(x, into, None, out_of, None, request["top_k"], "relu"),
        [states, *weights],
    )


def _random(request: dict, *shape: int) -> Tensor:
    return torch.randn(shape, device=request["device"], dtype=getattr(torch, request["dtype"]))


if __name__ == "__main__":
    main(measure)
