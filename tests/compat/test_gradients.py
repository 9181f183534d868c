"""Clipping on a machine with a GPU, without one."""

import torch
from fairseq import utils


def test_norms_are_gathered_where_the_gradients_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: torch.device("meta"))
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.tensor([3.0, 4.0])
    assert utils.clip_grad_norm_(iter(parameters), 1.0).item() == torch.tensor(50.0).sqrt().item()
    torch.testing.assert_close(parameters[0].grad.norm(), torch.tensor(0.5**0.5))
    assert utils.torch is torch
