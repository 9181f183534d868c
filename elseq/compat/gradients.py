"""Gradients: what fairseq's training does with them on any version."""

import torch
from fairseq import utils

from elseq.compat.patching import Overlay, wrap


def clip_gradients_where_they_are():
    """Clipping gathers the norms of all gradients on the GPU if the machine has one, even those of a training with
    --cpu, which then ends in "scalar tensor is expected to be on cpu"."""
    wrap(utils, "clip_grad_norm_", _clip_grad_norm)


def _clip_grad_norm(clip, params, *args, **kwargs):
    params = [params] if isinstance(params, torch.Tensor) else list(params)
    if any(parameter.grad is not None and parameter.grad.device.type != "cpu" for parameter in params):
        return clip(params, *args, **kwargs)
    utils.torch = Overlay(torch, cuda=Overlay(torch.cuda, is_available=lambda: False))
    try:
        return clip(params, *args, **kwargs)
    finally:
        utils.torch = torch
