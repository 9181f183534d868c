"""elseq's products of float32 against float64, and the choice of the fastest products."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from elseq import measurements, native
from elseq.precision import floats, kernels
from elseq.precision.floats import Float32Product, fastest
from elseq.precision.linear import Product
from elseq.precision.onednn import OneDNNProduct
from tests.attention.reference import quick, seeds
from tests.helpers import peak_memory

ACTIVATIONS = {None: lambda x: x, "relu": nn.functional.relu, "gelu": nn.functional.gelu}
needs_kernels = pytest.mark.usefixtures("kernels_for")


@needs_kernels
@quick
@given(
    seeds,
    st.integers(0, 20),
    st.integers(1, 600),
    st.integers(1, 200),
    st.sampled_from(list(ACTIVATIONS)),
    st.booleans(),
)
@torch.no_grad()
def test_the_product(seed, rows, inputs, outputs, activation, has_bias):
    torch.manual_seed(seed)
    linear, x = nn.Linear(inputs, outputs, bias=has_bias), torch.randn(rows, inputs)
    found = Float32Product(linear).multiply(x, activation)
    expected = ACTIVATIONS[activation](linear.double()(x.double()))
    assert found.dtype == torch.float32 and found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=2e-6)


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 700, 1000), (32, 768, 771), (500, 129, 130), (10000, 20, 70), (49, 12000, 65)])
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch_nor_on_the_threads(shape, threads):
    rows, inputs, outputs = shape
    torch.manual_seed(0)
    linear, x = nn.Linear(inputs, outputs), torch.randn(rows, inputs)
    product = Float32Product(linear)
    together = product.multiply(x)
    some = torch.arange(0, rows, max(1, rows // 20))
    for row in some:
        assert product.multiply(x[row : row + 1])[0].equal(together[row])
    torch.testing.assert_close(together[some].double(), linear.double()(x[some].double()), rtol=4e-6, atol=4e-6)
    torch.set_num_threads(1)
    assert product.multiply(x).equal(together)


@needs_kernels
@torch.no_grad()
def test_shapes_and_scattered_numbers():
    product, x = Float32Product(nn.Linear(24, 40)), torch.randn(7, 3, 24)
    flat = product.multiply(x.view(21, 24))
    assert product.multiply(x).equal(flat.view(7, 3, 40))
    assert product.multiply(x.transpose(0, 1)).equal(flat.view(7, 3, 40).transpose(0, 1))
    assert product.multiply(x[0, 0]).equal(flat[0])
    assert product.multiply(x[:0]).shape == (0, 3, 40)


@needs_kernels
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@torch.no_grad()
def test_what_is_no_number_stays_none(activation, value):
    linear = nn.Linear(24, 40)
    linear.weight[3, 5] = torch.nan
    x = torch.randn(4, 24)
    x[2, 7] = value
    found = Float32Product(linear).multiply(x, activation)
    assert found[:, 3].isnan().all()
    rows = [0, 1, 3]
    assert found[rows].isnan().sum() == 3
    if activation != "gelu" or value is torch.nan:  # torch's of minus infinity is no number
        expected = ACTIVATIONS[activation](linear(x))
        torch.testing.assert_close(found[2], expected[2], equal_nan=True)


@needs_kernels
@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.no_grad()
def test_operations_that_are_recorded_are_those_of_torch(activation):
    """What a kernel computes, a mode of torch does not see."""
    linear, x = nn.Linear(24, 40), torch.randn(7, 24)
    product = Float32Product(linear)
    with FlopCounterMode(display=False) as counter:
        found = product.multiply(x, activation)
    assert counter.get_total_flops() == 2 * 7 * 24 * 40
    torch.testing.assert_close(found, product.multiply(x, activation), rtol=1e-5, atol=1e-6)


@needs_kernels
@pytest.mark.parametrize("outputs", [1, 16, 50, 64, 200])
def test_the_weight_and_its_rows(outputs):
    linear = nn.Linear(33, outputs)
    weight = linear.weight.detach()
    product = Float32Product(linear)
    assert product.weight().equal(weight) and product.embeds(weight)
    indices = torch.randint(outputs, (3, 5))
    assert product.embedding(indices).equal(nn.functional.embedding(indices, weight))
    assert product.embedding(indices[:0]).shape == (0, 5, 33)
    for index in (outputs, -1):
        with pytest.raises(IndexError):
            product.embedding(torch.tensor([index]))


@needs_kernels
@pytest.mark.parametrize("is_scattered", [True, False])
@pytest.mark.parametrize("rows, inputs, outputs", [(1, 32, 16), (160, 100, 500), (1000, 64, 128)])
@torch.no_grad()
def test_the_memory_of_a_product(rows, inputs, outputs, is_scattered):
    product = Float32Product(nn.Linear(inputs, outputs))
    x = torch.randn(inputs, rows).t() if is_scattered else torch.randn(rows, inputs)
    planned = product.multiplying_bytes(rows, inputs, outputs, 4, is_scattered and rows > 1)
    assert peak_memory(lambda: product.multiply(x)) == planned


@needs_kernels
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"x": torch.randn(8, 31)}, "x is"),
        ({"x": torch.randn(8, 30).double()}, "x is"),
        ({"bias": torch.ones(71)}, "bias"),
        ({"activation": "tanh"}, "tanh"),
    ],
)
def test_linear_refuses(wrong, message):
    packed = kernels.PackedFloats.of(torch.randn(70, 30))
    with pytest.raises(ValueError, match=message):
        kernels.linear_float32(**{"x": torch.randn(8, 30), "packed": packed, **wrong})


@pytest.fixture
def times(monkeypatch, tmp_path):
    """What is measured of each kind of product; the choice is made anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = {}

    def measured(calls, inputs):
        owners = [getattr(call, "__self__", None) for call in calls]
        return tuple(found.get(type(owner), 1.0) for owner in owners)

    monkeypatch.setattr(floats, "_times", measured)
    fastest.cache_clear()
    yield found
    fastest.cache_clear()


@needs_kernels
@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no packed products")
@pytest.mark.parametrize(
    "packed, kernel, best",
    [
        (0.9, 0.8, Float32Product),
        (0.7, 0.8, OneDNNProduct),
        (1.2, 0.8, Float32Product),
        (0.96, 0.97, Product),  # as much as runs differ
        (1.2, 1.3, Product),
    ],
)
def test_the_fastest_is_chosen_if_it_pays(times, packed, kernel, best):
    times.update({OneDNNProduct: packed, Float32Product: kernel})
    assert fastest(torch.float32) is best


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_other_products_layers_are_ordinary(times, monkeypatch, dtype):
    monkeypatch.setattr(kernels.native, "library", lambda: None)
    monkeypatch.setattr(floats, "OneDNNProduct", lambda linear: torch.ops.mkldnn.no_such_operation(linear.weight))
    monkeypatch.setattr(floats, "_times", lambda *_: pytest.fail("there is nothing to choose from"))
    assert fastest(dtype) is Product


@needs_kernels
def test_wrong_products_are_not_used(times, monkeypatch):
    class Wrong(Float32Product):
        def multiply(self, x, activation=None):
            return super().multiply(x, activation) + 0.01

    times[Wrong] = 0.1
    monkeypatch.setattr(floats, "Float32Product", Wrong)
    assert fastest(torch.float32) is not Wrong


def test_processes_choose_alike(times, monkeypatch):
    """Whatever else the machine does meanwhile: the last digits of the results differ."""
    times[Float32Product] = times[OneDNNProduct] = 0.5
    first = fastest(torch.float32)
    fastest.cache_clear()  # as another process
    monkeypatch.setattr(floats, "_times", lambda *_: pytest.fail("it was measured anew"))
    assert fastest(torch.float32) is first


@pytest.mark.parametrize("around", [lambda: torch.autocast("cpu"), FlopCounterMode], ids=["autocast", "recording"])
def test_what_is_around_the_first_search_changes_nothing(times, monkeypatch, around):
    """All processes use the times that are measured there."""
    found = []

    def measured(calls, inputs):
        found.extend(call(inputs[0]).dtype for call in calls)
        return tuple(0.5 if native.is_recorded() else 1.0 for _ in calls)

    monkeypatch.setattr(floats, "_times", measured)
    with around():
        fastest(torch.float32)
    assert found and set(found) == {torch.float32}
    assert set(sum(measurements._read().values(), [])) == {1.0}


def test_the_trial_draws_no_random_numbers():
    """Of a search that was seeded before."""
    fastest.cache_clear()
    torch.manual_seed(1)
    fastest(torch.float32)
    found = torch.rand(3)
    torch.manual_seed(1)
    assert torch.rand(3).equal(found)
