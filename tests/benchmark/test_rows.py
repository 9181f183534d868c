import pytest

from elseq.benchmark.measure import Measurement
from elseq.benchmark.rows import Row, as_json, fill


def test_what_is_not_known_is_not_written():
    row = Row("kv", failure="out of memory", identical=0, scores={})
    assert as_json(row) == {"mode": "kv", "failure": "out of memory", "identical": 0, "scores": {}}
    assert as_json(row, ("beam", "mode")) == as_json(row) | {"beam": None}


def test_a_row_has_what_was_found_and_has_a_place_for():
    row = Row("kv", 8, peak_mebibytes=5.0)
    fill(row, Measurement(seconds=[1.0], state_bytes=0, hypotheses=[[[4]]]))
    assert row == Row("kv", 8, peak_mebibytes=5.0, seconds=[1.0], state_bytes=0)


def test_memory_that_is_not_known_is_written_of_rows_that_were_measured():
    assert Row("kv").to_dict() == {"mode": "kv", "beam": None}
    measured = Row("ctranslate2", 8, 4, tokens_per_second=1.0, loaded_mebibytes=3.0).to_dict()
    assert (measured["peak_mebibytes"], measured["loaded_mebibytes"]) == (None, 3.0)


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (Row("el", 8, 4, samples_per_second=2.0), "el, batch 8, beam 4: 2 samples/s"),
        (Row("el", 8, 4, "int8", samples_per_second=2.0), "el, batch 8, beam 4, int8: 2 samples/s"),
        (Row("el", beam=1, settings={"k": "2"}, failure="gone."), "el, beam 1, k=2: gone."),
        (Row("el", 8, failure="out of memory"), "el, batch 8: out of memory."),
    ],
)
def test_lines(row, line):
    assert row.line == line
