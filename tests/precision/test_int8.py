"""int8 products against brute force on integers, and their three ways against each other."""

from functools import partial

import pytest
import torch
from torch import nn

from elseq import native
from elseq.precision import int8, kernels
from elseq.precision.int8 import Int8Product, QuantizedInputs, TorchProduct, quantize_symmetric
from tests.helpers import peak_memory


def brute_force(linear, x):
    """In float64 on the quantized numbers: the sums are exact."""
    weight, column_scale = quantize_symmetric(linear.weight.detach())
    rows = x.reshape(-1, x.size(-1)).double()
    found = []
    for row in rows:
        largest = row.abs().max().float()
        step = (largest / 127).double()
        quantized = torch.zeros_like(row) if step == 0 else (row * (torch.tensor(127.0) / largest).double()).round()
        found.append((weight.double() @ quantized) * step * column_scale.flatten().double())
    result = torch.stack(found) if found else rows.new_zeros(0, len(weight))
    if linear.bias is not None:
        result = result + linear.bias.detach().double()
    return result.view(*x.shape[:-1], len(weight))


def test_another_thread_may_forget_the_input():
    class Forgotten(QuantizedInputs):
        """Between two lines of `quantize`."""

        @property
        def _newest(self):
            known, self.known = self.known, None
            return known

        @_newest.setter
        def _newest(self, known):
            self.known = known

    inputs, x = Forgotten(), torch.randn(3, 48)
    for _ in range(2):
        assert all(map(torch.equal, inputs.quantize(x), QuantizedInputs().quantize(x)))


def products():
    kernel = partial(Int8Product, inputs=QuantizedInputs())
    return [TorchProduct, *([kernel] if native.library() is not None else [])]


@pytest.mark.parametrize("product", products())
@pytest.mark.parametrize("shape", [(1, 48), (5, 3, 48), (300, 48), (0, 48)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_the_product(product, shape, bias):
    linear = nn.Linear(48, 70, bias=bias)
    x = torch.randn(*shape) * torch.rand(*shape[:-1], 1) * 10
    torch.testing.assert_close(product(linear).multiply(x).double(), brute_force(linear, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("product", products())
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(product):
    made = product(nn.Linear(100, 60))
    x = torch.randn(200, 100)
    together = made.multiply(x)
    assert torch.cat([made.multiply(rows) for rows in x.split([1, 6, 60, 133])]).equal(together)


@pytest.mark.parametrize("product", products())
@torch.no_grad()
def test_rows_of_zeros_and_rows_without_numbers(product):
    linear = nn.Linear(32, 8)
    x = torch.randn(4, 32)
    x[1] = 0
    x[2, 5] = torch.nan
    x[3, 5] = torch.inf
    found = product(linear).multiply(x)
    assert found[1].equal(linear.bias)
    assert found[2:].isnan().all()
    assert found[0].isfinite().all()


@torch.no_grad()
def test_an_output_without_weights():
    linear = nn.Linear(16, 3)
    linear.weight[1] = 0
    for product in products():
        assert product(linear).multiply(torch.randn(2, 16))[:, 1].equal(linear.bias[1].expand(2))


def test_quantized_rows_are_within_half_a_step():
    x = torch.randn(20, 30)
    quantized, scale = quantize_symmetric(x)
    assert quantized.dtype == torch.int8 and quantized.abs().max() == 127
    assert ((quantized * scale - x).abs() <= scale * 0.5001).all()


@pytest.mark.parametrize("inputs", [64, 1000, 3000])
def test_integer_products_without_those_of_torch(monkeypatch, inputs):
    rows = torch.randint(-127, 128, (9, inputs), dtype=torch.int8)
    weight = torch.randint(-127, 128, (17, inputs), dtype=torch.int8)
    exact = rows.long() @ weight.long().t()
    assert int8.integer_product(rows, weight).long().equal(exact)
    monkeypatch.setattr(int8, "_torch_multiplies_int8", lambda: False)
    torch.testing.assert_close(int8.integer_product(rows, weight), exact.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("product", products())
def test_rows_of_the_table(product):
    linear = nn.Linear(20, 70)
    weight, scale = quantize_symmetric(linear.weight.detach())
    indices = torch.tensor([[3, 69, 3], [0, 64, 63]])
    assert product(linear).embedding(indices).equal((weight * scale)[indices])


@pytest.mark.skipif(native.library() is None, reason="needs the kernels")
@torch.no_grad()
def test_an_input_of_several_layers_is_quantized_once(monkeypatch):
    calls = []
    quantize = kernels.quantize_rows
    monkeypatch.setattr(kernels, "quantize_rows", lambda x: calls.append(len(x)) or quantize(x))
    inputs = QuantizedInputs()
    query, key = nn.Linear(8, 8), nn.Linear(8, 8)
    made = [Int8Product(layer, inputs) for layer in (query, key)]
    calls.clear()
    x = torch.randn(5, 8)
    for product, layer in zip(made, (query, key), strict=True):
        torch.testing.assert_close(product.multiply(x).double(), brute_force(layer, x), rtol=1e-5, atol=1e-5)
    assert len(calls) == 1
    x.mul_(2)  # the same tensor, other numbers
    torch.testing.assert_close(made[0].multiply(x).double(), brute_force(query, x), rtol=1e-5, atol=1e-5)
    assert len(calls) == 2
    del x
    assert inputs._newest is None


@pytest.mark.parametrize("product", products())
def test_the_weight_that_it_was_made_of(product):
    linear = nn.Linear(20, 70)
    with torch.no_grad():
        linear.weight[3, 4] = torch.nan
    weight = linear.weight.detach().clone()
    made = product(linear)
    assert made.is_of(weight)
    weight[5] *= -1
    assert not made.is_of(weight)


@pytest.mark.parametrize("product", products())
def test_in_inference_mode_and_with_another_default_type(product):
    linear = nn.Linear(20, 70)
    x = torch.randn(3, 20)
    expected = product(linear).multiply(x)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            assert product(linear).multiply(x.clone()).equal(expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.skipif(native.library() is None, reason="needs the kernels")
def test_both_ways_have_the_same_integers():
    x = torch.randn(4000, 64) * 10.0 ** torch.randint(-6, 6, (4000, 1))
    x[0], x[1, 5], x[2, 5], x[3] = 0, torch.nan, torch.inf, 1e-37
    x[4:1000] = x[4:1000].round(decimals=1)  # many ties
    integers, scale = kernels.quantize_rows(x)
    found, found_scale = quantize_symmetric(x)
    numbers = scale.isfinite()
    assert numbers.sum() == 3998
    assert found[numbers].int().equal(integers[numbers].int() - 128)
    torch.testing.assert_close(found_scale.flatten(), scale, rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(native.library() is None, reason="needs the kernels")
def test_a_table_is_packed_in_blocks():
    """Nothing as large as the table is made beside what is kept of it, in pages of its own."""
    linear, made = nn.Linear(128, 20000, bias=False), []
    peak = peak_memory(lambda: made.append(Int8Product(linear, QuantizedInputs())))
    assert peak < 0.2 * 128 * 20000
    assert made[0].is_of(linear.weight)
    with torch.no_grad():
        linear.weight[19999, 5] += 1
    assert not made[0].is_of(linear.weight)
