"""Tables, notes and JSON of rows that are written by hand."""

import json
from pathlib import Path

import pytest

from elseq.benchmark import report
from elseq.benchmark.rows import Row
from tests.helpers import table_rows

STOCK = Row("stock", 8, 4, samples_per_second=0.5, sentences=8, copied=False, state_bytes=3 * 2**20, identical=8)
EL = Row("el", 8, 4, samples_per_second=2.0, sentences=8, ratio_to_stock=4.0, state_bytes=0, identical=7)


def test_table_is_aligned():
    row = Row("stock", 8, 4, samples_per_second=0.5, copied=True)
    other = Row("auto", 8, 4, samples_per_second=1234.5, method="kv")
    failed = Row("el", 8, 4, failure="out of memory")
    text = report.table([row, other, failed])
    lines = text.splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[2].startswith("| stock (copied) |       8 |      4 |       0.500 |")
    assert lines[3].startswith("| auto (kv)      |       8 |      4 |       1,234 |")
    assert lines[-1] == "- el, batch 8, beam 4: out of memory."


def test_whole_table():
    rows = [STOCK, EL, Row("kv", 8, 1, samples_per_second=1234.5, settings={"dtype": "float16"}, scores={"BLEU": 1.0})]
    heading, _, *lines = table_rows(report.table(rows))
    assert heading == ["mode", "batch", "beam", "dtype", "samples/s", "x stock", "identical", "of", "state MiB", "BLEU"]
    assert lines == [
        ["stock (shared)", "8", "4", "-", "0.500", "-", "8", "8", "3.00", "-"],
        ["el", "8", "4", "-", "2.00", "4.00", "7", "8", "-", "-"],
        ["kv", "8", "1", "float16", "1,234", "-", "-", "-", "-", "1.00"],
    ]


def test_precisions_are_a_column_where_they_differ():
    one, other = (Row("kv", 8, 4, dtype, samples_per_second=2.0) for dtype in ("float32", "int8"))
    assert "dtype" not in report.table([other, other])
    assert report.table([one, other]).splitlines()[0] == "| mode   |   batch |   beam |   dtype |   samples/s |"
    assert [row.line for row in (one, other)] == [
        "kv, batch 8, beam 4: 2 samples/s",
        "kv, batch 8, beam 4, int8: 2 samples/s",
    ]
    assert "int8: linear layers in int8" in report.notes([one, other])
    assert "int8" not in report.notes([one])


@pytest.mark.parametrize("name", ["transformer_270m_h100", "bart_large_h100"])
def test_results_from_before_there_were_precisions(name):
    results = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
    told = json.loads((results / f"{name}.json").read_text())["rows"]
    rows = [Row(**{key: value for key, value in row.items() if key != "evaluation"}) for row in told]
    first, _, *lines = report.table(rows).splitlines()
    assert first.startswith("| mode ") and "dtype" not in first
    assert len([line for line in lines if line.startswith("| ")]) == len([row for row in told if "failure" not in row])


def test_unsteady_rows_are_named():
    steady = Row("kv", 8, 1, seconds=[1.0, 1.1])
    unsteady = Row("el", 8, 1, seconds=[1.0, 1.3, 1.1])
    assert report.notes([steady, unsteady]).endswith(
        "Repeats differed by more than 20% (was the machine busy?): el, batch 8, beam 1."
    )
    assert "Repeats" not in report.notes([steady])


def test_notes_tell_what_the_columns_need():
    told = report.notes([STOCK, EL])
    assert "x stock: " in told and "copied or shared: " in told
    assert "GFLOP/s" not in told and "peak, loading" not in told
    assert report.notes([Row("el", 8, 4, failure="out of memory")]) == ""


def test_json_has_what_is_known(tmp_path):
    failed = Row("el", 8, None, failure="out of memory", settings={})
    measured = Row("kv", 8, 1, tokens_per_second=2.0, peak_mebibytes=1.5)
    report.write_json(tmp_path / "results.json", {"title": "all"}, [failed, measured])
    assert json.loads((tmp_path / "results.json").read_text()) == {
        "title": "all",
        "rows": [
            {"mode": "el", "batch_size": 8, "beam": None, "failure": "out of memory", "settings": {}},
            # a program whose memory nobody can tell, on a GPU, is told so
            {"mode": "kv", "batch_size": 8, "beam": 1, "tokens_per_second": 2.0, "peak_mebibytes": 1.5}
            | {"loaded_mebibytes": None},
        ],
    }


@pytest.mark.parametrize(
    ("together", "told"),
    [
        ([None], []),
        ([1, None, 1], ["3 repeats", "one run after the other"]),
        ([4, 4], ["3 repeats", "in turns of 4 processes"]),
        ([5, 2, 3, None], ["3 repeats", "in turns of 2 to 5 processes"]),
    ],
)
def test_turns(together, told):
    assert report.turns(3, [Row("kv", in_turns=number) for number in together]) == told


def test_machine():
    assert report.machine("cpu", 1, "float32") == ["cpu", "1 thread", "float32"]
    assert report.machine("cpu", 2, "float32")[1] == "2 threads"


def test_picture(tmp_path):
    report.plot(tmp_path / "plot.png", "a title", [STOCK, EL])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_what_ran_on_a_gpu():
    def verdict(name, reason=None):
        return {"name": name, "is_used": reason is None, "reason": reason}

    slow = verdict("flash-decoding", "the kernel takes 2.000 ms, and what it replaces 1.000 ms")
    captured = Row("kv", 8, 4, kernels=[verdict("reorder"), slow], captures=2)
    not_captured = Row("el", 8, 4, kernels=[verdict("reorder"), slow], captures=0, not_captured="no memory")
    assert report.notes([STOCK, captured]).endswith(
        "Kernels that were right and faster in some sizes: reorder. Kernels that were not used in some "
        "sizes: flash-decoding (the kernel takes 2.000 ms, and what it replaces 1.000 ms). Decoding steps were "
        "captured as CUDA graphs."
    )
    assert report.notes([captured, not_captured]).endswith(
        "Decoding steps were not captured as CUDA graphs in el, batch 8, beam 4 (no memory)."
    )
    assert "graphs" not in report.notes([STOCK])
