"""A step of training, against one that is written out with fairseq's own model."""

import copy

import pytest
import torch
import torch.nn.functional as F

from elseq.benchmark.models import load, random_model
from elseq.benchmark.multi_query.measure import Training
from elseq.benchmark.multi_query.plan import TINY
from elseq.benchmark.sources import random_sources


@pytest.fixture(scope="module")
def request_of_training(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model_file = random_model("transformer", 20, [*TINY.model_options, "--dropout=0"], folder)
    return {
        "model_file": model_file.to_dict(), "sources": random_sources(model_file, 6, 2), "target_length": 8,
        "mode": "kv", "dtype": "float32", "device": "cpu", "threads": 1,
    }, load(model_file, "stock", for_training=True)[0]  # fmt: skip


def test_targets(request_of_training):
    """Words of the source over again; each is predicted from those before it."""
    training = Training(request_of_training[0])
    source = training.net_input["src_tokens"]
    assert source.tolist() == request_of_training[0]["sources"]
    assert training.target.tolist() == [[*row, *row[:2]] for row in source.tolist()]
    expected = [[2, *row[:-1]] for row in training.target.tolist()]
    assert training.net_input["prev_output_tokens"].tolist() == expected


def test_a_step(request_of_training):
    """Of Adam with a gradient g, whose first step is the learning rate times its sign."""
    request, stock = request_of_training
    training = Training(request)
    before = copy.deepcopy(training.model.state_dict())
    logits = stock(**training.net_input)[0]
    F.cross_entropy(logits.flatten(end_dim=1), training.target.flatten()).backward()
    assert set(training.time()) == {"step"}
    for name, gradient in ((name, parameter.grad) for name, parameter in stock.named_parameters()):
        moved = training.model.state_dict()[name] - before[name]
        large = gradient.abs() > 1e-4
        torch.testing.assert_close(moved[large], -1e-4 * gradient[large].sign(), rtol=0.02, atol=1e-6)
    assert training.found.parameters == sum(parameter.numel() for parameter in stock.parameters())
