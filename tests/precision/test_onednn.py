"""Packed products against products in float64."""

import pytest
import torch
from torch import nn

from elseq.precision import onednn
from elseq.precision.linear import Product
from elseq.precision.onednn import OneDNNProduct
from tests.helpers import peak_memory
from tests.precision.products import evaluates

ACTIVATIONS = {None: lambda x: x, "gelu": nn.functional.gelu}
needs_packing = pytest.mark.skipif(
    not evaluates(OneDNNProduct, torch.float32), reason="this torch has no packed products"
)


def skip_unless_packed(dtype):
    if not evaluates(OneDNNProduct, dtype):
        pytest.skip(f"oneDNN has no packed products of {dtype} here")


@needs_packing
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 24), (7, 3, 24), (0, 2, 24), (300, 24)])
@torch.no_grad()
def test_the_product(shape, bias, activation):
    linear = nn.Linear(24, 40, bias=bias)
    x = torch.randn(*shape)
    expected = ACTIVATIONS[activation](linear.double()(x.double()))
    linear.float()
    found = OneDNNProduct(linear).multiply(x, activation)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@needs_packing
@pytest.mark.parametrize("activation", [None, *OneDNNProduct.activations])
@torch.no_grad()
def test_what_is_no_number_stays_none(activation):
    linear = nn.Linear(24, 40)
    linear.weight[3, 5] = torch.nan
    x = torch.randn(4, 24)
    x[2, 7] = torch.nan
    found = OneDNNProduct(linear).multiply(x, activation).isnan()
    assert found[2].all() and found[:, 3].all() and found.sum() == 40 + 3


@needs_packing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weight_is_kept_exactly(dtype):
    skip_unless_packed(dtype)
    linear = nn.Linear(33, 50).to(dtype)
    assert OneDNNProduct(linear).weight().equal(linear.weight)


@needs_packing
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch():
    product = OneDNNProduct(nn.Linear(96, 200))
    x = torch.randn(64, 96)
    together = product.multiply(x)
    for rows in (x[:8], x[8:40], x[40:]):
        torch.testing.assert_close(product.multiply(rows), together[: len(rows)], rtol=1e-6, atol=1e-6)
        together = together[len(rows) :]


def test_there_are_few_numbers_of_rows():
    """oneDNN keeps half a megabyte for each."""
    numbers = {rows: onednn.rounded(rows) for rows in range(4097)}
    assert all(rows <= number <= max(2 * rows, 1) for rows, number in numbers.items())
    assert all(number <= rows * 9 / 8 for rows, number in numbers.items() if rows > 128)
    assert len(set(numbers.values())) == 53


@needs_packing
@torch.no_grad()
def test_the_product_for_any_number_of_rows():
    linear = nn.Linear(24, 40)
    product, x = OneDNNProduct(linear), torch.randn(300, 24)
    expected = linear(x)
    for rows in (*range(70), 129, 300):
        torch.testing.assert_close(product.multiply(x[:rows]), expected[:rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(300, 128), (64, 16), (1, 8), (1030, 24)])
def test_rows_of_a_packed_weight(shape, dtype):
    """The layout is tried: either all rows are right, or it is not used."""
    skip_unless_packed(dtype)
    outputs, inputs = shape
    linear = torch.nn.Linear(inputs, outputs).to(dtype)
    weight = linear.weight.detach()
    product = OneDNNProduct(linear)
    if product.embeds(weight):
        indices = torch.randint(outputs, (3, 5))
        assert product.embedding(indices).equal(nn.functional.embedding(indices, weight))
        for index in (outputs, -1):
            with pytest.raises(IndexError):
                product.embedding(torch.tensor([index]))
    other = weight.clone()
    other[outputs - 1, 0] += 1
    assert not product.embeds(other)


@pytest.mark.parametrize("kind", ["packed", "ordinary"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows, inputs, outputs", [(1, 32, 16), (5, 16, 64), (160, 100, 500), (1000, 64, 128)])
@torch.no_grad()
def test_the_memory_of_a_product(rows, inputs, outputs, dtype, kind):
    if kind == "packed":
        skip_unless_packed(dtype)
    linear, x = nn.Linear(inputs, outputs).to(dtype), torch.randn(rows, inputs).to(dtype)
    product, multiply = (OneDNNProduct, OneDNNProduct(linear).multiply) if kind == "packed" else (Product, linear)
    multiply(x)  # the first time oneDNN compiles
    planned, peak = product.multiplying_bytes(rows, inputs, outputs, dtype.itemsize), peak_memory(lambda: multiply(x))
    assert peak <= planned <= peak + torch.get_num_threads() * 2**16
