"""A trial's verdict on kernels that are right, wrong, slow or cannot run; the times are given by the test."""

import math
from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import torch

from elseq import kernel_trials
from elseq.errors import UserError
from elseq.kernel_trials import Trial, Verdict, draw, error_of, usable, verdicts

DEVICE = torch.device("cpu")
NUMBERS = torch.tensor([1.0, -2.0, 4.0])


@pytest.fixture(autouse=True)
def no_verdicts(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ELSEQ_GPU_KERNELS", raising=False)
    monkeypatch.setattr(kernel_trials, "_verdicts", {})
    monkeypatch.setattr(kernel_trials, "_postponed", {})
    monkeypatch.setattr(kernel_trials, "find_spec", lambda name: name)
    time(monkeypatch, 1.0, 2.0)


def time(monkeypatch, kernel, plain):
    """What a measurement finds, in milliseconds."""
    monkeypatch.setattr(kernel_trials, "_seconds", lambda case: (kernel / 1000, plain / 1000))


def case(found=NUMBERS, dtype=torch.float32):
    return Trial(lambda: found.to(dtype), lambda: NUMBERS.to(dtype), NUMBERS.double())


def test_a_kernel_that_is_right_and_faster(caplog):
    assert usable("sums", DEVICE, case)
    assert not caplog.records


def test_one_verdict_for_each_name_and_device():
    def fails():
        raise AssertionError("tried again")

    assert usable("sums", DEVICE, case)
    assert usable("sums", DEVICE, fails)
    assert not usable("products", DEVICE, fails)
    assert not usable("products", DEVICE, case)
    assert not usable("sums", torch.device("meta"), fails)


@pytest.mark.parametrize(
    "found, reason",
    [
        (NUMBERS + torch.tensor([0.0, 0.0, 0.1]), "errs by 0.1, and 4e-05 is allowed"),
        (NUMBERS * torch.nan, "errs by nan"),
        (NUMBERS * torch.inf, "errs by inf"),
        (NUMBERS[:2], r"returns \[2\] instead of \[3\]"),
    ],
)
def test_wrong_numbers(found, reason, caplog):
    assert not usable("sums", DEVICE, lambda: case(found))
    [record] = caplog.records
    assert record.getMessage().startswith("sums: the kernel is not used on cpu, because the kernel ")
    caplog.clear()
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(record.getMessage())


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_finite_number_is_the_same(number):
    expected = torch.tensor([1.0, 2.0, number])
    found = torch.tensor([1.0, 2.00001, number])
    assert error_of("a sum", found, expected) is None
    assert error_of("a sum", found + 0.1, expected) == "a sum errs by 0.1, and 2e-05 is allowed"
    for other in {3.0, math.nan, math.inf, -math.inf} - {number}:
        assert error_of("a sum", torch.tensor([1.0, 2.0, other]), expected).endswith(", and 2e-05 is allowed")


@pytest.mark.parametrize("dtype", kernel_trials.TOLERANCES)
def test_rounding_is_no_error(dtype):
    rounding = 2 * torch.finfo(dtype).eps
    assert usable("sums", DEVICE, lambda: case(NUMBERS.double() * (1 + rounding), dtype))


def test_other_types_are_exact():
    assert usable("places", DEVICE, lambda: case(dtype=torch.int64))
    assert not usable("ranks", DEVICE, lambda: case(NUMBERS + 1, dtype=torch.int64))


@pytest.mark.parametrize("kernel", [2.0, 2.5])
def test_a_kernel_that_is_not_faster(kernel, monkeypatch, caplog):
    time(monkeypatch, kernel, 2.0)
    assert not usable("sums", DEVICE, case)
    [record] = caplog.records
    assert record.getMessage().endswith(f"because the kernel takes {kernel:.3f} ms, and what it replaces 2.000 ms")


def test_a_kernel_that_cannot_run(caplog):
    def raises():
        raise RuntimeError("no compiler\nand a long output")

    assert not usable("sums", DEVICE, lambda: Trial(raises, raises, NUMBERS))
    [record] = caplog.records
    assert record.getMessage().endswith("because the kernel cannot run there: RuntimeError: no compiler")


def test_without_triton(monkeypatch, caplog):
    monkeypatch.setattr(kernel_trials, "find_spec", lambda name: None)
    assert not usable("sums", DEVICE, case)
    [record] = caplog.records
    assert record.getMessage().endswith("because Triton is not installed")


@pytest.mark.parametrize("capability, is_tried", [((7, 0), False), ((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_an_old_gpu(monkeypatch, caplog, capability, is_tried):
    """For which Triton's compiler may end the process."""
    monkeypatch.setattr(kernel_trials, "_free_bytes", lambda device: 0)
    monkeypatch.setattr(kernel_trials, "allocated", lambda device: 0)
    monkeypatch.setattr(kernel_trials.gpu, "on_device", lambda device: nullcontext())
    monkeypatch.setattr(kernel_trials, "measured", lambda name, device, measure: measure())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    tried = []
    device = torch.device("cuda", 0)
    for size in (1, 2):
        assert usable("sums", device, lambda: tried.append(1) or case(), (size,)) == is_tried
    assert len(tried) == 2 * is_tried
    old = "{}.{}".format(*capability)
    reason = f"because its compute capability is {old}, and kernels are for 8.0 and later"
    assert [record.getMessage() for record in caplog.records] == (
        [] if is_tried else [f"sums(1,): the kernel is not used on cuda:0, {reason}"]
    )


def test_only_the_first_of_its_sizes_is_a_warning(monkeypatch, caplog):
    caplog.set_level("DEBUG")
    assert usable("sums", DEVICE, case, (1,))
    time(monkeypatch, 2.0, 1.0)
    for size in (2, 3, 2):
        assert not usable("sums", DEVICE, case, (size,))
    assert not usable("products", DEVICE, case, (2,))
    assert [record.levelname for record in caplog.records] == ["DEBUG", "WARNING", "DEBUG", "WARNING"]
    assert "sums(1,): the kernel is used on cpu. It takes 1.000 ms" in caplog.records[0].getMessage()
    assert "sums(3,): the kernel is not used" in caplog.records[2].getMessage()


def test_all_verdicts_are_kept(monkeypatch):
    assert usable("sums", DEVICE, case, (1,))
    time(monkeypatch, 3.0, 2.0)
    assert not usable("sums", DEVICE, case, (2,))
    assert not usable("products", DEVICE, lambda: case(NUMBERS[:2]))
    used, slow, wrong = verdicts()
    assert used == Verdict("sums", (1,), DEVICE, True, None, 1.0, 2.0)
    assert slow == ("sums", (2,), DEVICE, False, "the kernel takes 3.000 ms, and what it replaces 2.000 ms", 3.0, 2.0)
    assert wrong == ("products", (), DEVICE, False, "the kernel returns [2] instead of [3]", None, None)


def test_the_times_are_measured_once_on_a_machine_and_the_numbers_compared_in_each_process(monkeypatch):
    assert usable("sums", DEVICE, case, (1,))
    time(monkeypatch, 3.0, 2.0)
    kernel_trials._verdicts.clear()  # as another process
    assert usable("sums", DEVICE, case, (1,))
    assert not usable("sums", DEVICE, case, (2,))
    kernel_trials._verdicts.clear()
    assert not usable("sums", DEVICE, lambda: case(NUMBERS + 1), (1,))


def test_what_is_timed_may_have_other_sizes(monkeypatch):
    """Those tell the measurements apart."""
    monkeypatch.undo()
    monkeypatch.setattr(kernel_trials, "find_spec", lambda name: name)
    monkeypatch.setattr(kernel_trials, "_verdicts", {})
    monkeypatch.setattr(kernel_trials, "_postponed", {})
    calls, times = [], {"large kernel": 1.0, "large plain": 2.0, "kernel": 2.0, "plain": 1.0}

    def function(name):
        return lambda: calls.append(name) or NUMBERS

    def seconds(call, runs):
        call()
        return times[calls[-1]]

    monkeypatch.setattr(kernel_trials.gpu, "seconds", seconds)
    names = []
    monkeypatch.setattr(kernel_trials, "measured", lambda name, device, measure: names.append(name) or measure())
    small = Trial(function("kernel"), function("plain"), NUMBERS.double())
    assert not usable("sums", DEVICE, lambda: small, (4,))
    calls.clear()
    large = small._replace(timed=lambda: (function("large kernel"), function("large plain")), timed_sizes=(7,))
    assert usable("sums", DEVICE, lambda: large, (8,))
    assert calls == ["kernel"] + ["large kernel", "large plain"] * (1 + kernel_trials.ROUNDS)
    assert names == ["kernel sums (4,)", "kernel sums (7,)"]


def test_they_can_be_switched_off(monkeypatch, caplog):
    def fails():
        raise AssertionError("tried")

    monkeypatch.setenv("ELSEQ_GPU_KERNELS", "off")
    assert not usable("sums", DEVICE, fails)
    assert caplog.records[0].getMessage() == "sums: the kernel is not used on cpu, because ELSEQ_GPU_KERNELS is off"
    monkeypatch.setenv("ELSEQ_GPU_KERNELS", "on")
    assert usable("products", DEVICE, case)
    monkeypatch.setenv("ELSEQ_GPU_KERNELS", "no")
    with pytest.raises(UserError, match="ELSEQ_GPU_KERNELS is 'no'; set it to on or off"):
        usable("ranks", DEVICE, case)


def test_where_memory_runs_out_it_is_tried_again(caplog):
    def runs_out():
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert not usable("sums", DEVICE, runs_out)
    assert not caplog.records
    assert usable("sums", DEVICE, case)


def test_it_is_not_tried_again_with_hardly_more_memory(monkeypatch):
    """A trial that runs out of memory empties PyTorch's cache, and each layer of each step asks."""
    free, tries = [100], []

    def runs_out():
        tries.append(free[0])
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(kernel_trials, "_free_bytes", lambda device: free[0])
    for now in (100, 100, 150, 199, 200, 300, 400):
        free[0] = now
        assert not usable("sums", DEVICE, runs_out)
    assert tries == [100, 200, 400]


def test_nothing_is_tried_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not usable("sums", DEVICE, case)
    assert not verdicts()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert usable("sums", DEVICE, case)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert usable("sums", DEVICE, case)


def test_draws_are_repeated_and_leave_the_generators_alone():
    torch.manual_seed(1)
    expected = torch.randn(5)
    torch.manual_seed(1)
    first = draw(3, 4, device=DEVICE)
    assert torch.equal(torch.randn(5), expected)
    assert torch.equal(first, draw(3, 4, device=DEVICE))
    assert not torch.equal(first, draw(3, 4, device=DEVICE, seed=1))


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_on_a_gpu(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    few, many = torch.ones(2**10, device="cuda"), torch.ones(2**26, device="cuda")
    less, more = (lambda: (few * 2)[:9]), (lambda: (many * 2)[:9])
    expected = torch.full((9,), 2.0, device="cuda")
    assert usable("little work", few.device, lambda: Trial(less, more, expected))
    assert not usable("much work", few.device, lambda: Trial(more, less, expected))
