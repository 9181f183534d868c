"""What is measured and what is skipped; the runs are made up."""

import math
from dataclasses import replace

import pytest

from elseq.benchmark.measure import Measurement
from elseq.benchmark.top_k import command, plan
from elseq.benchmark.top_k.arguments import METHODS, parse
from elseq.benchmark.top_k.plan import GIBIBYTE, estimate_bytes, estimate_seconds, run_plan

PLAN = command._plan(parse(["--tiny", "--threads=1", "--repeats=2", "--memory-limit=1"]))


@pytest.fixture
def run(monkeypatch):
    """The rows of a plan; each run takes as many seconds as its length, but for those that fail."""

    def in_process(program, request, folder):
        run.requests.append(request)
        failure = run.fails.get((request["layer"], request["method"], request["length"]))
        return Measurement(failure=failure) if failure else Measurement(seconds=[float(request["length"])] * 2)

    def run(plan):
        rows = []
        run_plan(plan, rows.append)
        return rows

    monkeypatch.setattr(plan, "in_process", in_process)
    run.requests, run.fails = [], {}
    return run


def test_order_of_the_cells(run):
    rows = run(replace(PLAN, seconds_limit=1000))
    assert [(row.what, row.size, row.method) for row in rows] == PLAN.cells()
    assert PLAN.cells()[:2] == [("attention", 32, "vanilla"), ("attention", 32, "chunked")]
    assert {(what, method) for what, _, method in PLAN.cells()} == {
        (what, method) for what, methods in METHODS.items() for method in methods
    }
    assert all(row.seconds for row in rows)
    assert {request["memory_limit_bytes"] for request in run.requests} == {GIBIBYTE}
    assert replace(PLAN, methods=["sdpa"]).cells() == [("attention", size, "sdpa") for size in (32, 64)]


def test_requests():
    attention, chunks = PLAN.request("attention", 32, "top-k"), PLAN.request("chunks", 16, "top-k")
    assert (attention["length"], attention["query_chunk_size"], attention["top_k"]) == (32, None, 8)
    assert (chunks["layer"], chunks["length"], chunks["query_chunk_size"]) == ("attention", 64, 16)
    layer = PLAN.request("feed-forward", 48, "vanilla")
    assert (layer["length"], layer["width"], layer["units"], layer["top_k"]) == (64, 16, 48, 8)


def test_out_of_memory_ends_a_method_and_no_other_error_does(run):
    run.fails = {
        ("attention", "vanilla", 32): "out of memory (the system ended the process)",
        ("attention", "sdpa", 32): "ValueError: no such layer",
    }
    found = {(row.size, row.method): row.failure for row in run(replace(PLAN, sizes={"attention": [32, 64]}))}
    assert found[64, "vanilla"] == "skipped, out of memory at 32 already"
    assert found[32, "sdpa"] == "ValueError: no such layer" and found[64, "sdpa"] is None


def test_what_would_take_too_much_is_skipped(run):
    one = replace(PLAN, sizes={"attention": [32, 64, 2**20]}, methods=["vanilla"], seconds_limit=40.0)
    rows = run(one)
    assert [row.failure is None for row in rows] == [True, False, False]
    assert rows[1].failure == "skipped, would take about 128 s (the limit is 40 s)"  # four times as long, at most
    assert rows[2].failure.startswith("skipped, needs about ") and rows[2].failure.endswith(" and has 1.0 GiB")
    assert len(run.requests) == 1


def test_defaults_depend_on_the_layers():
    assert [command._plan(parse([f"--layers={layers}"])).attention_top_k for layers in (1, 12)] == [128, 64]
    assert command._plan(parse(["--lengths=64,32,64"])).sizes["attention"] == [32, 64]


def test_estimate_of_time():
    assert estimate_seconds("attention", 4, []) == 0
    assert estimate_seconds("attention", 4, [(2, 1.0)]) == pytest.approx(4)
    assert estimate_seconds("attention", 4, [(1, 1.0), (2, 2.0)]) == pytest.approx(4)
    assert estimate_seconds("attention", 4, [(1, 1.0), (2, 2**1.5)]) == pytest.approx(8)
    assert estimate_seconds("attention", 4, [(1, 1.0), (2, 0.5)]) == pytest.approx(1)  # time does not shrink
    assert estimate_seconds("chunks", 4, [(2, 3.0)]) == 3.0


@pytest.mark.parametrize(
    ("what", "method"), [(what, method) for what in ("attention", "feed-forward") for method in METHODS[what]]
)
def test_estimate_of_memory_grows_as_the_method_does(what, method):
    request = PLAN.request(what, 64, method)
    sizes = [{**request, "length": length, "query_chunk_size": 16} for length in (2**20, 2**21)]
    power = math.log2(estimate_bytes(sizes[1]) / estimate_bytes(sizes[0]))
    assert power == pytest.approx(2 if (what, method) == ("attention", "vanilla") else 1, abs=0.1)
