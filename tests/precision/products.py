"""Which products evaluate linear layers, whatever is the fastest on this machine today."""

import pytest
import torch

from elseq import native
from elseq.precision import floats
from elseq.precision.floats import Float32Product
from elseq.precision.linear import Product
from elseq.precision.onednn import OneDNNProduct

KINDS = [OneDNNProduct, Float32Product, Product]


def evaluates(kind, dtype):
    """Whether products of this kind are there, and evaluate this type on this processor."""
    if kind is Product:
        return True
    if kind is Float32Product:
        return native.library() is not None and dtype == torch.float32
    mkldnn = torch.ops.mkldnn
    return hasattr(mkldnn, "_linear_pointwise") and (dtype == torch.float32 or mkldnn._is_mkldnn_bf16_supported())


def choose(monkeypatch, kind):
    """From now on they evaluate the types that they can; ordinary layers the others."""
    if not evaluates(kind, torch.float32):
        pytest.skip(f"no {kind.__name__} here")
    monkeypatch.setattr(floats, "fastest", lambda dtype: kind if evaluates(kind, dtype) else Product)
