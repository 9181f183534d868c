"""The best tokens by the kernels, against float64; they run on CPU tensors, interpreted, where there is no GPU."""

import math
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elseq.generation.kernels import best_tokens as module
from elseq.generation.kernels.best_tokens import MOST_ON_GPU, best_tokens, has_kernel, sampled_tokens
from tests.attention.reference import quick, seeds

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def check(logits, count, forbidden):
    exact = torch.log_softmax(logits.double(), dim=1).scatter(1, forbidden, -math.inf)
    values, tokens = best_tokens(logits.clone(), count, forbidden)
    assert values.dtype == torch.float32 and tokens.dtype == torch.long
    expected = torch.topk(exact, count, dim=1)[0]
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)
    finite = expected.isfinite()
    torch.testing.assert_close(exact.gather(1, tokens)[finite], expected[finite])
    for row, is_one in zip(tokens.tolist(), finite.tolist(), strict=True):
        chosen = [word for word, one in zip(row, is_one, strict=True) if one]
        assert len(set(chosen)) == len(chosen)


@needs_triton
@quick
@given(seeds, st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), st.integers(1, 3), st.data())
def test_several_parts(seed, dtype, rows, data):
    torch.manual_seed(seed)
    width = data.draw(st.sampled_from([1, 7, 4095, 4096, 4097, 9000]))
    count = data.draw(st.integers(1, min(width, 9)))
    logits = (torch.randn(rows, width, device=DEVICE) * 4).to(dtype)
    forbidden = torch.randint(width, (rows, data.draw(st.integers(0, 5))), device=DEVICE)
    check(logits, count, forbidden)


@needs_triton
def test_rows_that_are_not_adjacent():
    check(torch.randn(3, 2, 50, device=DEVICE)[:, -1], 5, torch.tensor([[1]], device=DEVICE).expand(3, 1))


@needs_triton
def test_the_largest_may_be_forbidden_twice():
    logits = torch.tensor([[9.0, 1.0, 2.0, -math.inf, 3.0]], device=DEVICE)
    check(logits, 4, torch.tensor([[0, 4, 0]], device=DEVICE))


@needs_triton
def test_a_row_without_numbers():
    """The others are not concerned."""
    logits = torch.randn(3, 20, device=DEVICE)
    expected = torch.topk(torch.log_softmax(logits, dim=1), 3, dim=1)[0]
    logits[1, 4], logits[2] = math.nan, -math.inf
    values, _ = best_tokens(logits, 3, torch.zeros(3, 0, dtype=torch.long, device=DEVICE))
    torch.testing.assert_close(values[0], expected[0])
    assert values[1:].isnan().all()


@needs_triton
@pytest.mark.parametrize("width", [1, 7, 4097, 9000])
def test_a_drawn_word(width):
    """And its log-probability, of which forbidden tokens have their share; from the last part, too."""
    logits = torch.randn(3, width, device=DEVICE) * 4
    exact = torch.log_softmax(logits.double(), dim=1)
    forbidden = torch.arange(width - 1, device=DEVICE).expand(3, width - 1)
    values, tokens = sampled_tokens(logits.clone(), forbidden)
    assert tokens.tolist() == [[width - 1]] * 3 and values.dtype == torch.float32
    torch.testing.assert_close(values.double(), exact[:, -1:], rtol=1e-5, atol=1e-5)
    assert sampled_tokens(logits, forbidden[:, :0])[1].max() < width


@needs_triton
def test_no_drawn_word():
    """In rows where nothing is left, and that have no number."""
    logits = torch.randn(3, 20, device=DEVICE)
    logits[1, 4] = math.nan
    forbidden = torch.arange(20, device=DEVICE).repeat(3, 1)
    forbidden[1:] = 0
    values, tokens = sampled_tokens(logits, forbidden)
    assert values[0].isneginf() and values[1].isnan() and values[2].isfinite() and tokens.max() < 20


def test_tokens_are_drawn_by_their_probabilities(kernel_draws):
    """Pearson's statistic of 17 degrees of freedom, which exceeds 40.8 once in a thousand seeds."""
    torch.manual_seed(1)
    logits, rows = torch.randn(20) * 2, 20_000
    logits[[3, 17]] += 3
    forbidden = torch.tensor([3, 17]).expand(rows, 2)
    values, tokens = sampled_tokens(logits.repeat(rows, 1), forbidden)
    torch.testing.assert_close(values, logits.log_softmax(dim=0)[tokens])
    expected = rows * logits.index_fill(0, forbidden[0], -math.inf).softmax(dim=0)
    found = tokens.flatten().bincount(minlength=20)
    possible = expected > 0
    assert not found[~possible].any()
    assert ((found - expected) ** 2 / expected)[possible].sum() < 40.8


def test_no_kernel_on_a_cpu():
    assert not has_kernel(torch.randn(2, 20), 3)


@needs_triton
@pytest.mark.parametrize("dtype", module.TYPES)
def test_the_trial_expects_what_both_compute(dtype):
    trial = module._trial(torch.device(DEVICE), dtype, rows=2, width=300)
    for function in (trial.plain, trial.kernel):
        torch.testing.assert_close(function().double(), trial.expected, rtol=1e-5, atol=1e-5)


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from elseq.generation.kernels.best_tokens_triton import BLOCK, best, log_sums

types = {"logits": f"*{sys.argv[1]}", "sums": "*fp32", "values": "*fp32", "tokens": "*i64", "block": "constexpr"}
for kernel in (log_sums, best):
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index("block"),): BLOCK})
    assert compile(source, GPUTarget("cuda", int(sys.argv[2]), 32), {}).asm["cubin"]
"""


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(("number", "capability"), [("fp16", 80), ("bf16", 80), ("fp16", 90), ("fp32", 90)])
def test_they_compile_for_gpus(number, capability, tmp_path):
    """Which needs none of them."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE, number, str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", module.TYPES)
def test_on_a_gpu(dtype):
    logits = torch.randn(64, 50_264, device=DEVICE).to(dtype)
    assert has_kernel(logits, 9) and not has_kernel(logits, MOST_ON_GPU + 1)
    forbidden = torch.randint(50_264, (64, 140), device=DEVICE)
    check(logits, 9, forbidden)
    exact = torch.log_softmax(logits.double(), dim=1)
    values, tokens = sampled_tokens(logits, forbidden)
    torch.testing.assert_close(values.double(), exact.gather(1, tokens), rtol=1e-5, atol=1e-5)
    assert not (tokens == forbidden).any()
