"""Jobs without Hydra: what each writes, what is read again, and when a job is not run."""

import json

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from elseq.benchmark.rows import Row
from elseq.errors import UserError
from elseq.sweeps.jobs import RESULTS, Result, read_results, recorded


def configuration(folder, sweep, number=0, overrides=()):
    """Hydra's part."""
    parts = {
        "job": {"num": number},
        "overrides": {"task": list(overrides)},
        "runtime": {"output_dir": str(folder), "cwd": str(sweep)},
        "sweep": {"dir": str(sweep)},
    }
    return OmegaConf.create({"hydra": parts})


def write(folder, sweep, number, row, *overrides, **others):
    folder.mkdir(parents=True, exist_ok=True)
    Result(row, **others).write(configuration(folder, sweep, number, overrides))


def test_results_of_a_sweep_by_number(tmp_path):
    write(tmp_path / "b", tmp_path, 1, Row("el", failure="out of memory"), "decode=el", "+model.layers=3")
    stock = Row("stock", 8, 4, samples_per_second=2.0)
    write(tmp_path / "c", tmp_path, 0, stock, "decode=stock", title=[["model"]], outputs=["é"], configuration={"a": 1})
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / RESULTS).write_text('{"rows": [')  # of a job that is about to end
    (tmp_path / RESULTS).write_text('{"title": "of the sweep", "rows": []}')
    first, second = read_results(tmp_path)
    assert (first.number, first.row, first.outputs, first.title) == (0, stock, ["é"], [["model"]])
    assert (first.configuration, first.folder) == ({"a": 1}, tmp_path / "c")
    assert second.overrides == {"decode": "el", "model.layers": "3"}
    assert second.row == Row("el", failure="out of memory")


def test_the_result_of_one_job(tmp_path):
    assert read_results(tmp_path) == []
    write(tmp_path, tmp_path, 0, Row("kv"))
    [found] = read_results(tmp_path)
    assert (found.row, found.folder) == (Row("kv"), tmp_path)


def test_a_number_that_a_launcher_has_not_given_yet(tmp_path):
    config = configuration(tmp_path, tmp_path)
    config.hydra.job.num = "???"
    Result(Row("kv")).write(config)
    assert json.loads((tmp_path / RESULTS).read_text())["number"] == 0


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a job whose work is given, with a configuration of so many sources."""
    folder = tmp_path / "job"
    folder.mkdir()
    monkeypatch.setattr(HydraConfig, "instance", lambda: OmegaConf.create({"cfg": configuration(folder, tmp_path)}))

    def run(work, **changes):
        cfg = {"decode": {"mode": "kv"}, "sources": 3} | changes
        recorded(lambda known: Row(known["decode"]["mode"], known["sources"]))(work)(OmegaConf.create(cfg))
        [result] = read_results(folder)
        return result

    run.folder = folder
    return run


def test_a_job_with_a_result_is_not_run_again(run):
    runs = []

    def work(cfg, folder):
        runs.append((cfg.sources, folder))
        return Result(Row("kv", samples_per_second=1.0))

    assert run(work).configuration == {"decode": {"mode": "kv"}, "sources": 3}
    run(work)
    run(work, sources=4)
    assert runs == [(3, run.folder), (4, run.folder)]


@pytest.mark.parametrize(
    ("error", "failure", "logged"),
    [(UserError("--beam 9 is too large"), "--beam 9 is too large", False), (ValueError("no"), "ValueError: no", True)],
)
def test_errors_are_rows_and_their_jobs_are_run_again(run, caplog, error, failure, logged):
    def fail(cfg, folder):
        raise error

    assert run(fail).row == Row("kv", 3, failure=failure)
    assert ("the job failed" in caplog.text) == logged
    assert run(lambda cfg, folder: Result(Row("kv", 3))).row.failure is None


@pytest.mark.parametrize("mode", [None, 3, ["kv"]])
def test_what_names_no_method_leaves_no_result(run, capsys, mode):
    with pytest.raises(UserError, match="^decode.mode .* is no name of a decoding method: give one$"):
        run(lambda cfg, folder: pytest.fail("it has been run"), decode={"mode": mode})
    assert not (run.folder / RESULTS).exists()


@pytest.mark.parametrize("place", ["job", "."])
def test_no_input_is_written(run, tmp_path, place):
    """Here one that is the table of the job, or of its sweep."""
    (tmp_path / place / "table.md").write_text("precious")
    with pytest.raises(UserError, match="table.md is an input: give another"):
        run(lambda cfg, folder: pytest.fail("it has been run"), data={"input": str(tmp_path / place / "table.md")})
    assert not (run.folder / RESULTS).exists()
