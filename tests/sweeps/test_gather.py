"""The table of a sweep from folders of jobs that are made up."""

import json

import pytest
from omegaconf import OmegaConf

from elseq.benchmark.rows import Row
from elseq.errors import UserError
from elseq.sweeps.gather import Gather, _check_folder, common_title, compare_with_stock, with_settings
from elseq.sweeps.jobs import PLOT, RESULTS, TABLE, Result
from tests.sweeps.test_jobs import write


def result(mode, speed=1.0, outputs=("a", "b"), **overrides):
    row = Row(mode, samples_per_second=speed, sentences=len(outputs))
    return Result(row, outputs=list(outputs), overrides={"decode": mode} | overrides)


def test_settings_in_which_jobs_differ():
    """Without those that have a column of their own."""
    results = [result("stock", batch="8", lenpen="1"), result("kv", batch="4", lenpen="2", model="small")]
    assert [row.settings for row in with_settings(results)] == [
        {"lenpen": "1", "model": "-"},
        {"lenpen": "2", "model": "small"},
    ]
    same = [result("stock", lenpen="1"), result("kv", lenpen="1")]
    assert [row.settings for row in with_settings(same)] == [{}, {}]


@pytest.mark.parametrize(("dtype", "settings"), [(None, {"dtype": "int8"}), ("int8", {})])
def test_types_have_a_column_where_rows_tell_them(dtype, settings):
    results = [result("kv", dtype="int8"), result("kv", dtype="float32")]
    results[0].row.dtype = dtype
    assert with_settings(results)[0].settings == settings


def test_what_titles_have_in_common():
    titles = [[["model"], ["source 9", "output 6"]], [["model"], ["source 9", "output 8"]]]
    results = [result("kv"), result("stock"), result("el")]
    results[0].title, results[1].title = titles  # the third has failed
    assert common_title(results) == "model; source 9"
    assert common_title(results[2:]) == ""


def test_each_is_compared_with_stock_in_the_same_settings():
    stock, kv, other = result("stock", 2.0, beam="4"), result("kv", 5.0, ("a", "c"), beam="4"), result("kv", beam="1")
    shorter = result("el", outputs=("a",), beam="4")
    failed = Result(Row("auto", failure="out of memory"), overrides={"decode": "auto", "beam": "4"})
    compare_with_stock([other, kv, failed, shorter, stock])
    assert (kv.row.ratio_to_stock, kv.row.identical, kv.row.identical_share) == (2.5, 1, 0.5)
    assert (stock.row.ratio_to_stock, stock.row.identical) == (1.0, 2)
    assert other.row.ratio_to_stock is shorter.row.ratio_to_stock is failed.row.ratio_to_stock is None


def test_int8_is_compared_with_float32():
    stock, int8 = result("stock", 2.0, dtype="float32"), result("kv", 4.0, dtype="int8")
    half = result("kv", 4.0, dtype="bfloat16")
    compare_with_stock([stock, int8, half])
    assert (int8.row.ratio_to_stock, half.row.ratio_to_stock) == (2.0, None)


@pytest.fixture
def sweep(tmp_path):
    """A folder with three jobs, one of which has failed."""
    jobs = [
        (Row("stock", 8, 4, samples_per_second=2.0, sentences=2), ["a", "b"]),
        (Row("kv", 8, 4, samples_per_second=5.0, sentences=2), ["a", "c"]),
        (Row("el", 8, 4, failure="out of memory"), None),
    ]
    for number, (row, outputs) in enumerate(jobs):
        title = [["model"], ["cpu"]] if outputs else []
        write(tmp_path / str(number), tmp_path, number, row, f"decode={row.mode}", outputs=outputs, title=title)
    return tmp_path


def test_table_and_rows(sweep):
    rows, text = Gather().gather(sweep)
    assert [(row.mode, row.ratio_to_stock) for row in rows] == [("stock", 1.0), ("kv", 2.5), ("el", None)]
    assert text.splitlines()[0] == "model; cpu" and text == (sweep / TABLE).read_text()
    assert "el, batch 8, beam 4: out of memory." in text
    found = json.loads((sweep / RESULTS).read_text())
    assert found["title"] == "model; cpu" and len(found["rows"]) == 3
    assert Gather().gather(sweep) == (rows, text)  # the sweep's own file is no job


def test_published_with_a_picture(sweep, capsys):
    Gather().publish(sweep)
    out, err = capsys.readouterr()
    assert out == (sweep / TABLE).read_text() + "\n"
    assert err == f"written: {sweep / RESULTS}, {sweep / TABLE}, {sweep / PLOT}\n"
    assert (sweep / PLOT).read_bytes().startswith(b"\x89PNG")


def test_nothing_is_printed_of_jobs_that_all_failed(tmp_path, capsys):
    write(tmp_path / "0", tmp_path, 0, Row("kv", failure="out of memory"))
    assert [row.failure for row in Gather().publish(tmp_path)] == ["out of memory"]
    assert capsys.readouterr().out == "" and not (tmp_path / PLOT).exists()
    assert Gather().gather(tmp_path / "none") == ([], "\n")


def test_one_job_keeps_its_own_file(tmp_path):
    write(tmp_path, tmp_path, 0, Row("kv", 8, 4, samples_per_second=1.0), title=[["model"]])
    before = (tmp_path / RESULTS).read_text()
    Gather().gather(tmp_path)
    assert (tmp_path / RESULTS).read_text() == before and (tmp_path / TABLE).exists()


@pytest.mark.parametrize("has_job", [True, False])
def test_the_folder_of_another_sweep(tmp_path, has_job):
    before = {"hydra": {"job": {"config_name": "benchmark"}, "overrides": {"task": ["decode=kv,el"]}}}
    _check_folder(tmp_path, "hydra.sweep.dir", ["benchmark", "decode=kv"])  # there is none
    OmegaConf.save(OmegaConf.create(before), tmp_path / "multirun.yaml")
    if has_job:
        (tmp_path / "0" / ".hydra").mkdir(parents=True)
    _check_folder(tmp_path, "hydra.sweep.dir", ["benchmark", "decode=kv,el"])
    if not has_job:
        return _check_folder(tmp_path, "hydra.run.dir", None)
    for settings in (["benchmark", "decode=kv"], ["generate", "decode=kv,el"], None):
        with pytest.raises(UserError, match=r"\S+ is of another sweep, benchmark decode=kv,el: repeat it, or give"):
            _check_folder(tmp_path, "hydra.sweep.dir", settings)
    (tmp_path / "multirun.yaml").write_text("hydra: [")
    _check_folder(tmp_path, "hydra.sweep.dir", None)
