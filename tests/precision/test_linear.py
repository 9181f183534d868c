"""A linear layer under a precision, and out of it."""

import copy
import pickle

import pytest
import torch
from torch import nn

from elseq.precision import int8
from elseq.precision.linear import DecodingEmbedding, DecodingLinear, Product, activated
from elseq.precision.onednn import OneDNNProduct


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

    def embeds(self, weight):
        return True

    def embedding(self, indices):
        return 2 * self.kept[indices]

    def weight(self):
        return self.kept if self.keeps else None


@pytest.fixture
def linear():
    return nn.Linear(6, 4)


def searching(linear, make=Doubled, recover=None, releases=False):
    DecodingLinear.take(linear, make, recover)
    linear.decoding.searches = 1
    linear.decoding.releases = releases
    return linear


@torch.no_grad()
def test_the_product_is_made_at_the_first_call_and_again_when_the_weight_changes(linear):
    made = []
    plain = copy.deepcopy(linear)
    searching(linear, lambda layer: made.append(layer) or Doubled(layer))
    x = torch.randn(3, 6)
    assert not made
    for _ in range(2):
        torch.testing.assert_close(linear(x), 2 * plain(x))
    assert len(made) == 1
    for layer in (linear, plain):
        layer.weight.mul_(3)
    torch.testing.assert_close(linear(x), 2 * plain(x))
    assert len(made) == 2


@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize(
    "make", [OneDNNProduct, int8.TorchProduct, int8.fastest().maker()], ids=["oneDNN", "torch", "kernels"]
)
@torch.no_grad()
def test_autocast_changes_no_product(make, activation):
    """Not all processors multiply in bfloat16, and a product's weight is not in it."""
    layer, x = nn.Linear(64, 32), torch.randn(5, 64)
    try:
        searching(layer, make)(x)
    except (AttributeError, RuntimeError):
        pytest.skip("this torch has no packed products")

    def multiply(x):
        return layer(x) if activation is None else activated(layer, x, activation, nn.functional.gelu)

    expected = multiply(x.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        found = multiply(x.bfloat16())
    torch.testing.assert_close(found.float(), expected, rtol=1e-2 if found.dtype == torch.bfloat16 else 0, atol=0)


def readers():
    """Ways to read a layer's weight, for a layer that lost it; each returns a weight."""
    return {
        "attribute": lambda linear: linear.weight,
        "state_dict": lambda linear: linear.state_dict()["weight"],
        "deepcopy": lambda linear: copy.deepcopy(linear)._parameters["weight"],
        "pickle": lambda linear: pickle.loads(pickle.dumps(linear))._parameters["weight"],
        "double": lambda linear: linear.double()._parameters["weight"].float(),
        "forward": lambda linear: (linear(torch.eye(6)) - linear.bias).t(),
    }


@pytest.mark.parametrize("is_in_search", [False, True])
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("reader", readers())
@torch.no_grad()
def test_a_released_weight_comes_back_for_whoever_reads_it(linear, reader, keeps, is_in_search):
    if reader == "forward" and is_in_search:
        return
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    parameter, x = linear.weight, torch.randn(3, 6)
    searching(linear, lambda layer: Doubled(layer, keeps), lambda: linear.put_back(weight.clone()), releases=True)
    torch.testing.assert_close(linear(x), 2 * nn.functional.linear(x, weight, bias))
    assert parameter.isnan().all() and parameter.untyped_storage().nbytes() == 4
    linear.decoding.searches = int(is_in_search)
    torch.testing.assert_close(readers()[reader](linear), weight)
    assert linear._parameters["weight"] is parameter
    linear.float().decoding.searches = 1
    torch.testing.assert_close(linear(x), 2 * nn.functional.linear(x, weight, bias))
    if reader != "double":  # that made another weight
        assert parameter.isnan().all() != is_in_search  # a search that reads it once reads it again


@torch.no_grad()
def test_a_weight_that_is_loaded_or_changed_after_a_release(linear):
    x = torch.randn(3, 6)
    for change in (
        lambda: linear.load_state_dict(nn.Linear(6, 4).state_dict()),
        lambda: linear.weight.data.mul_(3),
    ):
        searching(linear, releases=True)(x)
        linear.decoding.searches = 0
        change()
        expected = linear(x)
        linear.decoding.searches = 1
        torch.testing.assert_close(linear(x), 2 * expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), None])
@torch.no_grad()
def test_copies_and_layers_that_are_left_are_ordinary(linear, copied):
    plain = copy.deepcopy(linear)
    searching(linear, releases=True)(torch.randn(3, 6))
    if copied is None:
        linear.leave()
    other = linear if copied is None else copied(linear)
    assert type(other) is nn.Linear and vars(other).keys() == vars(plain).keys()
    x = torch.randn(3, 6)
    assert other(x).equal(plain(x))


@torch.no_grad()
def test_an_embedding_that_is_tied_to_the_layer(linear):
    embedding = nn.Embedding(4, 6)
    embedding.weight = linear.weight
    plain, names = copy.deepcopy(embedding), list(embedding.state_dict())
    searching(linear, releases=True)
    DecodingEmbedding.take(embedding, linear)
    indices = torch.tensor([[3, 0, 3]])
    assert embedding(indices).equal(2 * plain(indices))
    assert embedding._parameters["weight"].isnan().all()
    copied = copy.deepcopy(embedding)
    assert type(copied) is nn.Embedding and copied(indices).equal(plain(indices))
    linear.decoding.searches = 0
    assert embedding(indices).equal(plain(indices)) and list(embedding.state_dict()) == names
    embedding.leave()
    assert type(embedding) is nn.Embedding and vars(embedding).keys() == vars(plain).keys()


@torch.no_grad()
def test_an_activation_in_the_same_pass_or_after_it(linear):
    x = torch.randn(3, 6)
    assert activated(linear, x, "relu", torch.relu).equal(linear(x).relu())
    searching(linear)
    assert activated(linear, x, "relu", lambda x: pytest.fail("twice")).equal(linear(x).relu())
    assert activated(linear, x, "tanh", torch.tanh).equal(linear(x).tanh())
