"""The int8 kernels, against sums in int64 and float64."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elseq.precision import kernels
from elseq.precision.kernels import PackedIntegers
from tests.attention.reference import quick, seeds

pytestmark = pytest.mark.usefixtures("kernels_for")
FUNCTIONS = {"none": lambda x: x, "relu": torch.relu, "gelu": torch.nn.functional.gelu}
activations = st.sampled_from(sorted(FUNCTIONS))


def draw(seed, rows, inputs, outputs):
    torch.manual_seed(seed)
    x = torch.randn(rows, inputs) * 10.0 ** torch.randint(-3, 3, (rows, 1))
    weight = torch.randn(outputs, inputs) * 10.0 ** torch.randint(-3, 0, (outputs, 1))
    return x, weight, torch.randn(outputs)


def linear(x, packed, *options):
    return kernels.linear_int8(kernels.quantize_rows(x), packed, *options)


def integers_of(rows):
    """What they are rounded to, int64, and the scale of each, float64."""
    quantized, scale = kernels.quantize_rows(rows)
    return quantized[:, : rows.size(1)].long() - 128, scale.double()


def expected(x, weight, bias, activation):
    """In float64, of the integers that the kernel rounds to."""
    (rows, row_scale), (columns, column_scale) = integers_of(x), integers_of(weight)
    products = (rows.unsqueeze(1) * columns.unsqueeze(0)).sum(2)
    result = products.double() * row_scale.unsqueeze(1) * column_scale
    return FUNCTIONS[activation](result if bias is None else result + bias.double())


def assert_close(actual, reference):
    assert actual.dtype == torch.float32 and actual.shape == reference.shape
    if reference.numel():
        largest = reference.abs().amax(1, keepdim=True).clamp(min=1)
        assert ((actual - reference).abs() / largest).max() < 1e-6


@quick
@given(seeds, st.integers(0, 20), st.integers(0, 150), st.integers(0, 200), activations, st.booleans())
def test_linear(seed, rows, inputs, outputs, activation, has_bias):
    x, weight, bias = draw(seed, rows, inputs, outputs)
    bias = bias if has_bias else None
    actual = linear(x, PackedIntegers.of(weight), bias, activation)
    assert_close(actual, expected(x, weight, bias, activation))


@pytest.mark.parametrize("shape", [(1, 700, 1000), (32, 768, 771), (500, 129, 130), (10000, 20, 70), (49, 12000, 65)])
def test_every_way_to_cut_a_product(shape, threads):
    x, weight, bias = draw(0, *shape)
    packed = PackedIntegers.of(weight)
    whole = linear(x, packed, bias, "gelu")
    some = torch.arange(0, len(x), max(1, len(x) // 20))
    assert_close(whole[some], expected(x[some], weight, bias, "gelu"))
    for row in some:
        assert torch.equal(linear(x[row : row + 1], packed, bias, "gelu")[0], whole[row])


def test_the_threads_change_nothing():
    x, weight, bias = draw(0, 300, 256, 257)
    before, results = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(linear(x, PackedIntegers.of(weight), bias))
    torch.set_num_threads(before)
    assert torch.equal(*results)


def test_largest_sums():
    weight = torch.full((64, kernels.MAX_INPUTS), -127.0)
    x = torch.ones(7, kernels.MAX_INPUTS)
    x[3] = -1
    actual = linear(x, PackedIntegers.of(weight))
    reference = torch.full((7, 64), -127.0 * kernels.MAX_INPUTS)
    reference[3] *= -1
    assert torch.allclose(actual, reference, rtol=1e-6)
    with pytest.raises(ValueError, match="at most 132104 inputs"):
        PackedIntegers.of(torch.zeros(1, kernels.MAX_INPUTS + 1))


@quick
@given(seeds, st.integers(0, 9), st.integers(1, 90))
def test_quantize_rows(seed, rows, width):
    x = draw(seed, rows, width, 1)[0]
    quantized, scale = kernels.quantize_rows(x)
    assert quantized.dtype == torch.uint8 and quantized.shape == (rows, (width + 3) // 4 * 4)
    assert (quantized[:, width:] == 128).all()
    assert torch.equal(scale, x.abs().amax(1) / 127)
    steps = x.double() / scale.double().unsqueeze(1)
    assert ((quantized[:, :width].double() - 128) - steps).abs().le(0.5 + 1e-4).all()


def test_quantize_rows_of_zeros_and_of_the_smallest_and_largest_numbers():
    largest = torch.finfo(torch.float32).max
    x = torch.tensor([[0.0, -0.0], [1e-40, 1e-37], [1e-35, -1e-35], [largest, -largest]])
    quantized, scale = kernels.quantize_rows(x)
    assert quantized[:, :2].tolist() == [[128, 128], [128, 128], [255, 1], [255, 1]]
    assert torch.equal(scale[:2], torch.zeros(2)) and torch.equal(scale[2:], x[2:, 0] / 127)


@pytest.mark.parametrize("activation", sorted(FUNCTIONS))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_row_with_a_number_that_is_none(value, activation):
    x, weight, bias = draw(0, 8, 37, 70)
    x[2, 35] = value
    actual = linear(x, PackedIntegers.of(weight), bias, activation)
    assert actual[2].isnan().all()
    assert not actual[[0, 1, 3, 4, 5, 6, 7]].isnan().any()


def test_gelu_is_the_exact_one():
    x = torch.arange(-45000, 45001) / 5000
    packed = PackedIntegers.of(torch.zeros(len(x), 1))
    actual = linear(torch.zeros(1, 1), packed, x, "gelu")[0]
    assert (actual - FUNCTIONS["gelu"](x.double())).abs().max() < 1e-6
    assert actual[len(x) // 2] == 0


def test_scattered_numbers():
    x, weight, bias = draw(0, 8, 30, 70)
    packed = PackedIntegers.of(weight)
    wide = torch.stack([x, -x], 2)  # every second number of it
    assert torch.equal(linear(wide[..., 0], packed), linear(x, packed))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"x": (torch.zeros(8, 32), torch.ones(8))}, "x is"),
        ({"x": (torch.zeros(8, 28, dtype=torch.uint8), torch.ones(8))}, "x is"),
        ({"x": (torch.zeros(8, 32, dtype=torch.uint8), torch.ones(7))}, "scale of x"),
        ({"bias": torch.ones(70).half()}, "bias"),
        ({"activation": "tanh"}, "tanh"),
    ],
)
def test_linear_refuses(wrong, message):
    x, weight, _ = draw(0, 8, 30, 70)
    with pytest.raises(ValueError, match=message):
        kernels.linear_int8(**{"x": kernels.quantize_rows(x), "packed": PackedIntegers.of(weight), **wrong})


@pytest.mark.parametrize("weight", [torch.zeros(3), torch.zeros(3, 3).half(), torch.zeros(3, 3, device="meta")])
@pytest.mark.parametrize("kind", [PackedIntegers, kernels.PackedFloats])
def test_packing_refuses(kind, weight):
    with pytest.raises(ValueError, match="float32"):
        kind.of(weight)


@pytest.mark.parametrize("kind", [PackedIntegers, kernels.PackedFloats])
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (63, 17), (300, 33), (700, 1030)])
def test_the_same_weight_in_other_memory(kind, shape, threads):
    weight = torch.randn(*shape)
    packed = kind.of(weight)
    scattered = kind.of(weight.t().contiguous().t())
    assert packed.tiles.equal(scattered.tiles)
    assert packed.tiles.equal(kind.of(torch._neg_view(-weight)).tiles)
    rows, scale = integers_of(weight)
    expected = weight if kind is kernels.PackedFloats else (rows * scale.unsqueeze(1)).float()
    assert packed.rows(torch.arange(len(weight))).equal(expected)


@quick
@given(seeds, st.integers(1, 130), st.integers(0, 40), st.lists(st.integers(0, 4), max_size=3))
def test_embedding(seed, outputs, inputs, shape):
    _, weight, _ = draw(seed, 1, inputs, outputs)
    indices = torch.randint(outputs, shape)
    rows, scale = integers_of(weight)
    actual = PackedIntegers.of(weight).rows(indices)
    assert torch.equal(actual, (rows * scale.unsqueeze(1)).float()[indices])


@pytest.mark.parametrize("index", [-1, 3])
def test_embedding_refuses(index):
    with pytest.raises(IndexError):
        PackedIntegers.of(torch.ones(3, 4)).rows(torch.tensor([index]))


def test_threads_are_those_of_torch():
    program = """
import os, torch
from elseq.precision import kernels
packed, x = kernels.PackedIntegers.of(torch.ones(1024, 1024)), kernels.quantize_rows(torch.ones(64, 1024))
def started(work):
    before = len(os.listdir("/proc/self/task"))
    work()
    return len(os.listdir("/proc/self/task")) - before
layer = lambda: kernels.linear_int8(x, packed)
torch.set_num_threads(1)
alone = started(layer)
torch.set_num_threads(2)
print(alone, started(lambda: torch.ones(1 << 20).exp()), started(layer))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["0", "1", "0"]
