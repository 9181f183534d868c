"""Tables and ratios of rows that are made up."""

import pytest

from elseq.benchmark.multi_query import report
from elseq.benchmark.multi_query.plan import Row
from elseq.options import INT8
from tests.benchmark.multi_query.test_plan import PLAN
from tests.helpers import table_rows


def decoded(variant, column, times, state_bytes, batch_size=4, **others):
    parts = dict(zip(("encoder", "decoder"), times, strict=True))
    others |= {"microseconds_per_token": parts, "state_bytes": state_bytes, "peak_mebibytes": 100.0}
    return Row(variant, column, batch_size, **others)


ROWS = [
    decoded("multi-head", "greedy", (2.0, 40.0), 2**23, gigabytes_per_second=1.5),
    decoded("multi-head", "beam", (2.0, 200.0), 2**25),
    decoded("multi-query", "greedy", (1.0, 4.0), 2**20, seconds={"encoder": [1.0, 1.0], "decoder": [1.0, 1.5]}),
    decoded("multi-query", "beam", (1.0, 40.0), 2**20, batch_size=2),
    Row("stock", "greedy", 4, failure="out of memory"),
    decoded("stock", "beam", (2.0, 300.0), 2**26),
]


def test_ratios_of_the_same_batch():
    [ratio] = report.compare(ROWS)
    assert ratio["variants"] == ["multi-head", "multi-query"]
    assert ratio["time"] == {"greedy encoder": 2.0, "greedy decoder": 10.0}
    assert ratio["published_time"] == {"greedy encoder": 1.7 / 1.5, "greedy decoder": pytest.approx(46 / 3.8)}
    assert ratio["state"] == {"greedy": 8.0}
    assert report.compare(ROWS[:2]) == []


def test_tables():
    times, memory, failed = report.tables(PLAN, ROWS).split("\n\n")
    assert failed == "- multi-head, stock fairseq, greedy, batch 4: out of memory."
    times, memory = table_rows(times), table_rows(memory)
    assert times[0][1:] == ["greedy: encoder", "greedy: decoder", "beam 4: encoder", "beam 4: decoder"]
    assert times[2] == ["multi-head", "2.00 (1.7)", "40.0 (46)", "2.00 (2)", "200 (203)"]
    assert times[4] == ["multi-head, stock fairseq", "- (1.7)", "- (46)", "2.00 (2)", "300 (203)"]
    assert times[5] == ["multi-head : multi-query", "2.00 (1.13)", "10.0 (12.1)", "-", "-"]
    assert memory[0][1:] == [
        "state MiB, greedy", "state MiB, beam 4", "peak MiB, greedy", "peak MiB, beam 4", "GB/s, greedy", "GB/s, beam 4"
    ]  # fmt: skip
    assert memory[2] == ["multi-head", "8.00", "32.0", "100", "100", "1.50", "-"]
    assert memory[4] == ["multi-head, stock fairseq", "-", "64.0", "-", "100", "-", "-"]
    assert memory[5] == ["multi-head : multi-query", "8.00", "-", "", "", "", ""]


def test_lines_of_progress():
    assert ROWS[0].line == "multi-head, greedy, batch 4: encoder 2.00, decoder 40.0 microseconds per token"
    assert ROWS[4].line == "multi-head, stock fairseq, greedy, batch 4: out of memory."


def test_notes():
    found = report.notes(PLAN, ROWS)
    assert "Sentences in a batch: greedy 4; beam 4 4; multi-query, beam 4 2." in found
    assert "Repeats differed by more than 20% (was the machine busy?): multi-query, greedy, batch 4." in found
    assert "int8" not in found
    in_int8 = type(PLAN)(**vars(PLAN) | {"dtype": INT8})
    assert "int8: linear layers in int8, all else in float32." in report.notes(in_int8, ROWS)
    told = report.notes(in_int8, [decoded("stock", "beam", (1.0, 1.0), 8, dtype="float32")])
    assert "all else in float32; stock fairseq has no int8 and is in float32." in told


def test_numbers_have_three_digits():
    assert [report.number(value) for value in (0.1234, 8.0, 12.14, 1234.5)] == [
        "0.123",
        "8.00",
        "12.1",
        "1,234",
    ]
