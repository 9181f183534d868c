"""The grid with measurements that are made up, and its comparisons by hand."""

from types import SimpleNamespace

import pytest

from elseq.benchmark import runs
from elseq.benchmark.cost import Sizes
from elseq.benchmark.measure import Measurement
from elseq.benchmark.runs import Grid, run_grid

FOUND = {  # by mode: seconds, and all hypotheses of both sources
    "stock": ([2.0, 1.0, 9.0], [[[7, 8], [7]], [[9, 9, 9, 9], [5]]]),
    "kv": ([0.5], [[[7, 8], [7]], [[9], [5]]]),
}
SIZES = Sizes(10, 8, 2, 3, 1, 4, 1, 4, 4, (4,), (4,), 2, 2)


@pytest.fixture
def grid(monkeypatch):
    def measured(request):
        grid_requests.append(request)
        if request["mode"] not in FOUND:
            return Measurement(failure="out of memory")
        seconds, hypotheses = FOUND[request["mode"]]
        return Measurement(seconds=seconds, hypotheses=hypotheses, copied=False, sizes=SIZES.to_dict(), state_bytes=5)

    grid_requests = []
    monkeypatch.setattr(runs, "in_turns", lambda program, requests, folder, interleave: map(measured, requests))
    model_file = SimpleNamespace(to_dict=dict, is_language_model=False)
    sources, search = [[4, 2], [4, 5, 2]], {}
    where = {"device": "cpu", "threads": 1, "repeats": 3, "interleave": True}
    return lambda modes, *dtypes: Grid(
        model_file, sources, [2, 3], False, modes, [2], [2], search, list(dtypes or ["float32"]), **where
    )


def rows_of(grid):
    found = {}
    run_grid(grid, lambda row, best: found.update({row.mode: (row, best), (row.mode, row.dtype): (row, best)}))
    return found


def test_figures_by_hand(grid):
    found = rows_of(grid(["stock", "el", "kv"]))
    (stock, stock_best), (el, el_best), (kv, _) = found["stock"], found["el"], found["kv"]
    assert (stock_best, el_best) == ([[7, 8], [9, 9, 9, 9]], None)
    assert stock.seconds == [2.0, 1.0, 9.0]  # whose median is 2
    assert (stock.samples_per_second, stock.tokens_per_second, stock.output_length) == (1.0, 3.0, 3.0)
    assert (stock.ratio_to_stock, stock.identical, stock.identical_share) == (1.0, 2, 1.0)
    assert (kv.samples_per_second, kv.ratio_to_stock, kv.identical, kv.identical_share) == (4.0, 4.0, 1, 0.5)
    assert el.to_dict() == {"mode": "el", "batch_size": 2, "beam": 2, "dtype": "float32", "failure": "out of memory"}
    # one batch of 3 positions: encoder and its attention, keys and values, then 3 + 5 steps of 2 hypotheses
    encoder = 2 * 3 * 2 * 10 + 2 * 4 * 4 * 3**2 + 2 * 3 * 2 * 2
    pairs = 2 * (6 + 15) + 2 * 8 * 3
    assert stock.gigaflops_per_second == pytest.approx((encoder + 2 * 8 * 2 * 9 + pairs * 16) / 2 / 1e9)


def test_without_stock_nothing_is_compared(grid):
    row, _ = rows_of(grid(["kv"]))["kv"]
    assert row.ratio_to_stock is None and row.identical is None


def test_int8_reads_weights_of_a_byte_and_is_compared_with_float32(grid):
    found = rows_of(grid(["stock", "kv"], "int8", "bfloat16"))
    stock, half_stock, kv, half_kv = (
        found[mode, dtype][0]
        for mode in ("stock", "kv")
        for dtype in ("float32" if mode == "stock" else "int8", "bfloat16")
    )
    assert ("stock", "int8") not in found
    assert [row.ratio_to_stock for row in (stock, half_stock, kv, half_kv)] == [1.0, 1.0, 4.0, 4.0]
    assert (kv.identical, half_kv.identical) == (1, 1)
    weights = (
        10 + 2 + 3 * (8 - 2 + 3)
    )  # the encoder's, the keys' and values' of its output, the others' in each of 3 steps
    assert half_stock.gigabytes_per_second == pytest.approx(stock.gigabytes_per_second / 2)
    assert kv.gigabytes_per_second == pytest.approx(half_kv.gigabytes_per_second * 2 - 3 * weights / 0.5 / 1e9)


def test_order_of_the_cells():
    grid = Grid(None, [], [], True, ["stock", "el"], [8, 4], [1, 2], {}, ["float32"], "cpu", 1, 1, True)
    assert grid.cells()[:3] == [("stock", 8, 1, "float32"), ("el", 8, 1, "float32"), ("stock", 8, 2, "float32")]
    assert len(grid.cells()) == 8
