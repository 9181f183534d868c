"""Tables, ratios and picture of rows that are made up."""

import pytest

from elseq.benchmark.long_input import report
from elseq.benchmark.long_input.plan import Row
from tests.benchmark.long_input.test_plan import PLAN
from tests.helpers import table_rows


def row(length, method, scores, seconds, **others):
    found = {"state_bytes": 2**21, "predicted_bytes": 2**22, "loaded_mebibytes": 10.0, "peak_mebibytes": 14.0}
    parts = {"encoder": [0.5], "decoder": seconds}
    return Row(length, method, scores, seconds=parts, output_lengths=[5], **found | others)


ROWS = [
    row(64, "el", "exact", [4.0, 3.0, 9.0]),
    row(64, "el", "top-k", [3.0]),
    row(1024, "el", "exact", [8.0], loaded_mebibytes=None),
    Row(1024, "el", "top-k", failure="out of memory."),
    row(1024, "kv", "top-k", [1.0]),
]


def test_ratios_to_all_scores():
    assert report.compare(ROWS) == [{"length": 64, "method": "el", "decoder": 0.75}]
    assert report.compare(ROWS[1:]) == []


def test_tables():
    *tables, failed = report.tables(PLAN, ROWS).split("\n\n")
    decoder, encoder, state, peak, predicted = map(table_rows, tables)
    assert decoder[0] == ["milliseconds per output token", "64", "1,024"]
    assert decoder[2:] == [["el, exact", "800", "1,600"], ["el, top-k", "600", "-"], ["kv, top-k", "-", "200"]]
    assert encoder[2] == ["el, exact", "0.500", "0.500"]
    assert (state[2][1], predicted[2][1]) == ("2.00", "4.00")
    assert peak[2] == ["el, exact", "4.00", "-"]
    assert failed == "- 1,024 tokens, el, top-k: out of memory."


@pytest.mark.parametrize(
    ("each", "line"),
    [
        (ROWS[0], "64 tokens, el, exact: encoder 0.500 s, decoder 4.00 s"),
        (ROWS[3], "1,024 tokens, el, top-k: out of memory."),
    ],
)
def test_lines_of_progress(each, line):
    assert each.line == line


def test_notes():
    told = report.notes(PLAN, ROWS)
    assert told.startswith("Median of 2; ") and "top-k: to the 16 of the largest scores" in told
    assert told.endswith("(was the machine busy?): 64 tokens, el, exact.")


def test_picture(tmp_path):
    assert report.plot(PLAN, ROWS, tmp_path / "long_input", "title") == [tmp_path / "long_input.png"]
    assert (tmp_path / "long_input.png").read_bytes().startswith(b"\x89PNG")
