"""Layers that are measured, against each other in float64."""

import pytest
import torch

from elseq.attention.top_k import top_k_attention
from elseq.benchmark.top_k import measure
from elseq.benchmark.top_k.arguments import METHODS

REQUEST = {
    "layer": "attention", "length": 24, "heads": 2, "head_width": 4, "layers": 2, "top_k": 24, "query_chunk_size": 5,
    "dtype": "float64", "device": "cpu", "threads": 1, "repeats": 3, "seconds_limit": 60, "memory_limit_bytes": None,
}  # fmt: skip
FEED_FORWARD = REQUEST | {"layer": "feed-forward", "width": 6, "units": 10, "top_k": 10}


def test_methods_of_attention_agree():
    torch.manual_seed(1)
    states = [torch.randn(1, 2, 50, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    contexts = [
        measure.vanilla_attention(*states),
        measure.chunked_attention(*states, 16),
        top_k_attention(*states, 50, causal=True),
        torch.nn.functional.scaled_dot_product_attention(*states, is_causal=True, scale=1.0),
    ]
    gradient = torch.randn_like(contexts[0])
    expected = torch.autograd.grad(contexts[0], states, gradient)
    for context in contexts[1:]:
        torch.testing.assert_close(context, contexts[0])
        torch.testing.assert_close(torch.autograd.grad(context, states, gradient), expected)


def gradients(request):
    torch.manual_seed(1)
    layer = measure.Layer(request)
    layer.time()
    return [tensor.grad for tensor in layer.inputs]


@pytest.mark.parametrize("layers", [1, 2])
def test_layers_of_attention_agree(layers):
    """And so they do with projections; k is the length."""
    found = [gradients(REQUEST | {"layers": layers, "method": method}) for method in METHODS["attention"]]
    assert len(found[0]) == (3 if layers == 1 else 1 + 4 * layers)
    for others in found[1:]:
        torch.testing.assert_close(others, found[0])


def test_feed_forward_layers_agree():
    vanilla, top_k = (gradients(FEED_FORWARD | {"method": method}) for method in METHODS["feed-forward"])
    torch.testing.assert_close(top_k, vanilla)


@pytest.mark.parametrize(
    ("limit", "seconds", "expected"),
    [(60, 1.0, [1.0] * 3), (2.5, 1.0, [1.0] * 2), (60, 20.0, [20.0] * 3), (0.5, 1.0, [1.0])],
)
def test_as_many_repeats_as_fit_the_time(monkeypatch, limit, seconds, expected):
    """The first pass warms up, unless it takes long itself."""
    monkeypatch.setattr(measure.Layer, "time", lambda self: seconds)
    monkeypatch.setattr(measure, "reset_peak", lambda device: None)
    found = measure.measure(REQUEST | {"method": "sdpa", "seconds_limit": limit})
    assert found.seconds == expected
    assert found.loaded_mebibytes > 0 and found.peak_mebibytes >= 0
