"""A linear layer under a precision, and out of it."""

import pytest
import torch
from torch import nn

from elseq.precision.linear import DecodingLinear, Product, activated, original_weight


class Doubled(Product):
    """Twice the layer's output: a product that a test can tell from the layer's own."""

    activations = ("relu",)

    def __init__(self, linear, keeps=True):
        self.kept = linear.weight.detach().clone()
        self.bias = linear.bias
        self.keeps = keeps

    def multiply(self, x, activation=None):
        output = 2 * nn.functional.linear(x, self.kept, self.bias)
        return output.relu() if activation == "relu" else output

    def weight(self):
        return self.kept if self.keeps else None


@pytest.fixture
def linear():
    return nn.Linear(6, 4)


@torch.no_grad()
def test_the_product_is_made_at_the_first_call_and_again_when_the_weight_changes(linear):
    made = []
    decoding = DecodingLinear(linear, lambda layer: made.append(layer) or Doubled(layer), recover=None)
    x = torch.randn(3, 6)
    assert not made
    for _ in range(2):
        torch.testing.assert_close(decoding(x), 2 * linear(x))
    assert len(made) == 1
    linear.weight.mul_(3)
    torch.testing.assert_close(decoding(x), 2 * linear(x))
    assert len(made) == 2


@torch.no_grad()
def test_a_released_weight_comes_back_for_whoever_reads_it(linear):
    weight = linear.weight.detach().clone()
    parameter = linear.weight
    decoding = DecodingLinear(linear, Doubled, recover=None)
    decoding.releases = True
    x = torch.randn(3, 6)
    expected = linear(x)
    torch.testing.assert_close(decoding(x), 2 * expected)
    assert linear.weight.isnan().all() and linear.weight.untyped_storage().nbytes() == 4
    torch.testing.assert_close(decoding.ordinary(x), expected)
    assert linear.weight is parameter and linear.weight.equal(weight)


@torch.no_grad()
def test_a_lost_weight_is_asked_for(linear):
    weight = linear.weight.detach().clone()
    decoding = DecodingLinear(linear, lambda layer: Doubled(layer, keeps=False), lambda: decoding.put_back(weight))
    decoding.releases = True
    decoding(torch.randn(3, 6))
    linear.__dict__["decoding"] = decoding
    assert original_weight(linear).equal(weight)


@torch.no_grad()
def test_an_activation_in_the_same_pass_or_after_it(linear):
    x = torch.randn(3, 6)
    assert activated(linear, x, "relu", torch.relu).equal(linear(x).relu())
    linear.__dict__["forward"] = DecodingLinear(linear, Doubled, recover=None)
    assert activated(linear, x, "relu", lambda x: pytest.fail("twice")).equal(linear(x).relu())
    assert activated(linear, x, "tanh", torch.tanh).equal(linear(x).tanh())
