"""What is on disk and printed after each run of a benchmark, at its end, and when it is interrupted."""

import json
import sys
from types import SimpleNamespace

import pytest

from elseq.benchmark import report
from elseq.benchmark.publishing import publish_plan, run_and_publish
from elseq.benchmark.rows import Row
from elseq.errors import UserError

FAST, SLOW = Row("kv", 8, 4, samples_per_second=2.0), Row("stock", 8, 4, samples_per_second=1.0)
FAILED = Row("el", 8, 4, failure="out of memory")


@pytest.fixture
def publish(tmp_path):
    def publish(run, plot=lambda rows: []):
        text = "{0} rows\n".format
        files = tmp_path / "results.json", tmp_path / "table.md"
        run_and_publish(run, 3, *files, lambda rows: {"count": len(rows)}, lambda rows: text(len(rows)), plot)

    publish.found = lambda: json.loads((tmp_path / "results.json").read_text())
    publish.table = tmp_path / "table.md"
    return publish


def test_all_is_written_with_each_row(publish, tmp_path, capsys):
    def run(done):
        for number, row in enumerate((SLOW, FAILED, FAST), start=1):
            done(row)
            assert publish.found()["count"] == len(publish.found()["rows"]) == number
            assert publish.table.read_text() == f"{number} rows\n"

    publish(run, lambda rows: [tmp_path / f"{len(rows)}.png"])
    assert publish.found()["rows"] == [row.to_dict() for row in (SLOW, FAILED, FAST)]
    out, err = capsys.readouterr()
    assert out == "3 rows\n\n"
    assert "el, batch 8, beam 4: out of memory." in err and "kv, batch 8, beam 4: 2 samples/s" in err
    assert err.endswith(f"written: {tmp_path}/results.json, {tmp_path}/table.md, {tmp_path}/3.png\n")


def test_there_is_nothing_to_measure(tmp_path):
    files = tmp_path / "results.json", tmp_path / "table.md"
    with pytest.raises(UserError, match="^the options leave nothing to measure: give other modes, or other sizes$"):
        run_and_publish(pytest.fail, 0, *files, lambda rows: {}, lambda rows: "", lambda rows: [])
    assert not any(file.exists() for file in files)


def test_without_matplotlib_there_is_no_picture(publish, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    publish(lambda done: done(FAST), lambda rows: report.plot(tmp_path / "bars.png", "Title", rows))
    err = capsys.readouterr().err
    assert "no picture is drawn, because matplotlib.figure is not installed\n" in err
    assert err.endswith(f"written: {tmp_path}/results.json, {tmp_path}/table.md\n")


def test_where_every_run_failed_there_is_no_picture(publish, capsys):
    with pytest.raises(UserError, match="^nothing could be measured; el, batch 8, beam 4: out of memory$"):
        publish(lambda done: done(FAILED), lambda rows: pytest.fail("nothing is to be drawn"))
    assert publish.found()["count"] == 1 and capsys.readouterr().out == "1 rows\n\n"


@pytest.mark.parametrize("rows", [[], [FAST], [FAILED]])
def test_interruptions(publish, capsys, rows):
    def run(done):
        for row in rows:
            done(row)
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        publish(run)
    assert ended.value.code == 130
    out, err = capsys.readouterr()
    assert out == "" and "interrupted; what was measured:\n" in err
    assert ("1 rows" in err) == publish.table.exists() == bool(rows)


def test_ratios_and_text_of_a_plan(tmp_path, capsys):
    paper = SimpleNamespace(
        compare=lambda rows: [len(rows)],
        tables=lambda plan, rows: f"table of {len(rows)} of {plan.runs()}",
        notes=lambda plan, rows: "What it means.",
        plot=lambda plan, rows, path, title: [path.with_suffix(".png")],
    )
    plan = SimpleNamespace(runs=lambda: 2)
    publish_plan(plan, lambda plan, done: done(FAST), paper, tmp_path / "paper", {"sizes": "tiny"}, "Title")
    found = json.loads((tmp_path / "paper.json").read_text())
    assert found == {"sizes": "tiny", "ratios": [1], "rows": [FAST.to_dict()]}
    assert (tmp_path / "paper.md").read_text() == "Title\n\ntable of 1 of 2\n\nWhat it means.\n"
    assert "paper.png" in capsys.readouterr().err
