"""What is measured, in which order, and with how many sentences; the runs are made up."""

from dataclasses import replace

import pytest

from elseq.benchmark.measure import Measurement
from elseq.benchmark.models import ModelFile
from elseq.benchmark.multi_query import command, plan
from elseq.benchmark.multi_query.arguments import CPU_BATCHES, parse
from elseq.benchmark.multi_query.plan import TINY, Plan, run_plan
from elseq.benchmark.multi_query.variants import VARIANTS
from elseq.options import INT8
from tests.benchmark.test_runs import SIZES

PLAN = Plan(
    variants=["multi-head", "stock"], columns=["greedy", "beam"], batches={"greedy": 4, "beam": 4}, halving={"beam"},
    sizing=TINY, dtype="float32", device="cpu", threads=1, repeats=2,
)  # fmt: skip


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The rows of a plan; a run of more sentences than there is room for has no memory."""

    def in_process(program, request, folder):
        run.requests.append(request)
        if len(request["sources"]) > run.room:
            return Measurement(failure="out of memory (here)")
        parts = ["step"] if request["column"] == "training" else ["encoder", "decoder"]
        seconds = {part: [3.0, 1.0] for part in parts}
        return Measurement(seconds=seconds, sizes=SIZES.to_dict(), copied=False, output_lengths=[16], state_bytes=64)

    def random_model(arch, vocabulary_size, options, folder):
        run.models.append((arch, "--local-attention-radius=4" in options))
        return ModelFile("model", "path", "data", str(tmp_path / "dict.txt"), "", False, 1, 64, 64)

    def run(plan):
        rows = []
        run_plan(plan, rows.append)
        return rows

    (tmp_path / "dict.txt").write_text("".join(f"w{number} 1\n" for number in range(5)))
    monkeypatch.setattr(plan, "in_process", in_process)
    monkeypatch.setattr(plan, "random_model", random_model)
    run.requests, run.models, run.room = [], [], 100
    return run


def test_microseconds_of_a_token(run):
    rows = run(
        replace(PLAN, variants=["multi-query-local"], columns=["training", "beam"], batches={"training": 2, "beam": 5})
    )
    training, beam = rows
    assert run.models == [("mq_transformer_shazeer", True)]
    assert [request["beam"] for request in run.requests] == [0, 4]
    assert training.microseconds_per_token == {"step": pytest.approx(2e6 / (2 * 16))}
    assert beam.microseconds_per_token == dict.fromkeys(["encoder", "decoder"], pytest.approx(2e6 / (5 * 16)))
    assert training.published_microseconds_per_token == {"step": 13.0}
    assert beam.published_microseconds_per_token == {"encoder": 1.6, "decoder": 16}
    assert beam.gigabytes_per_second is None  # the formulae know no local attention


def test_half_the_batch_where_it_does_not_fit(run):
    run.room = 1
    rows = run(replace(PLAN, variants=["stock"]))
    assert [(row.column, row.batch_size, row.failure) for row in rows] == [
        ("greedy", 4, "out of memory (here)"),
        ("beam", 1, None),
    ]
    assert [len(request["sources"]) for request in run.requests] == [4, 4, 2, 1]
    run.room = 0
    assert [row.batch_size for row in run(replace(PLAN, variants=["stock"]))] == [4, 1]


def test_stock_is_in_float32_beside_int8(run):
    rows = run(replace(PLAN, dtype=INT8, columns=["greedy"]))
    assert [request["dtype"] for request in run.requests] == [INT8, "float32"]
    assert [row.dtype for row in rows] == [None, "float32"]
    assert PLAN.dtype_of(VARIANTS["stock"]) == "float32"


def test_plan_of_the_options():
    found = command._plan(parse(["--columns=greedy,beam", "--batch-beam=3", "--threads=2"]))
    assert found.batches == {"greedy": CPU_BATCHES["greedy"], "beam": 3}
    assert found.halving == {"greedy"}
    assert (found.sizing.length, found.threads) == (128, 2)
    tiny = command._plan(parse(["--tiny", "--batch=5", "--columns=training"]))
    assert (tiny.batches, tiny.halving, tiny.sizing) == ({"training": 5}, set(), TINY)
    assert command._settings(tiny, True)["sizes"] == "tiny, for a test"
