"""elseq-benchmark top-k with tiny layers; no figure of time is asserted."""

import json
import sys

import pytest

from elseq.benchmark.failures import describe_failure
from elseq.benchmark.measure import Measurement
from elseq.benchmark.top_k import measure, plan
from elseq.benchmark.top_k.arguments import METHODS
from elseq.cli.benchmark import main
from elseq.errors import UserError
from tests.measuring import found_by

SIZES = {"attention": [32, 64], "feed-forward": [32, 64], "chunks": [16, 32]}  # of --tiny


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command in this process; its runs are processes of their own unless `run_here` is asked for."""

    def run_command(*arguments):
        options = ["--tiny", "--threads=1", "--repeats=1", "--output", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["elseq-benchmark", "top-k", *options, *arguments])
        main()
        return json.loads((tmp_path / "top_k.json").read_text())

    return run_command


@pytest.fixture
def run_here(monkeypatch, run):
    """As `run`, without the seconds that a process takes to import torch and fairseq; gives the requests as well."""

    def in_process(program, request, folder):
        run.requests.append(request)
        if (request["method"], request["length"]) in run.fails:
            return Measurement(failure=describe_failure(MemoryError()))
        return found_by(measure.measure, request)

    run.requests, run.fails = [], []
    monkeypatch.setattr(plan, "in_process", in_process)
    return run


def test_everything(run_here, tmp_path, capsys):
    results = run_here()
    cells = [(row["what"], row["size"], row["method"]) for row in results["rows"]]
    assert cells == [(what, size, method) for what in SIZES for size in SIZES[what] for method in METHODS[what]]
    for row in results["rows"]:
        assert "failure" not in row
        assert len(row["seconds"]) == 1
        assert row["peak_mebibytes"] >= 0
    assert {(ratio["what"], ratio["method"]) for ratio in results["ratios"]} == {
        ("attention", "chunked"),
        ("attention", "top-k"),
        ("attention", "sdpa"),
        ("feed-forward", "top-k"),
    }
    chunks = [request["query_chunk_size"] for request in run_here.requests if request["layer"] == "attention"]
    assert chunks == [None] * 8 + [16, 16, 32, 32]
    text = capsys.readouterr().out
    assert text.strip() == (tmp_path / "top_k.md").read_text().strip()
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert [len(table) - 2 for table in tables] == [4, 4, 7, 2, 2, 3, 2, 2]
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)
    assert {path.name for path in tmp_path.glob("*.png")} == {f"top_k_{what}.png" for what in SIZES}
    assert str(tmp_path) not in (tmp_path / "top_k.json").read_text()


def test_layers_have_projections_and_another_k(run_here, capsys):
    results = run_here("--what=attention", "--layers=12", "--lengths=16")
    assert [row["method"] for row in results["rows"] if "seconds" in row] == list(METHODS["attention"])
    assert "12 layers with projections" in capsys.readouterr().out
    assert [point["size"] for point in results["published"]["attention"]] == [2048] * 4


@pytest.mark.slow
def test_runs_are_processes_of_their_own(run):
    [row] = run("--what=attention", "--methods=top-k", "--lengths=256", "--repeats=2")["rows"]
    assert len(row["seconds"]) == 2
    assert row["loaded_mebibytes"] > 0 and row["peak_mebibytes"] >= 0


def test_memory_limit_of_a_process_is_a_row(run, monkeypatch):
    monkeypatch.setattr(plan, "estimate_bytes", lambda request: 0)
    with pytest.raises(UserError, match="attention, length 8,192, vanilla: out of memory$"):
        run("--what=attention", "--methods=vanilla", "--lengths=8192", "--memory-limit=0.3")


def test_out_of_memory_ends_a_method(run_here, capsys):
    run_here.fails.append(("vanilla", 32))
    rows = run_here("--what=attention", "--methods=vanilla,top-k")["rows"]
    failures = {(row["size"], row["method"]): row.get("failure") for row in rows}
    assert failures == {
        (32, "vanilla"): "out of memory",
        (32, "top-k"): None,
        (64, "vanilla"): "skipped, out of memory at 32 already",
        (64, "top-k"): None,
    }
    assert "- attention, length 64, vanilla: skipped, out of memory at 32 already." in capsys.readouterr().out


def test_what_needs_too_much_memory_is_skipped(run_here):
    rows = run_here("--what=attention", "--methods=vanilla,sdpa", "--lengths=32,131072", "--memory-limit=64")["rows"]
    assert "skipped, needs about" in rows[2]["failure"] and "and has 64.0 GiB" in rows[2]["failure"]


def test_what_takes_too_long_is_skipped(run_here):
    rows = run_here("--what=attention", "--methods=sdpa", "--seconds-limit=1e-9")["rows"]
    assert "seconds" in rows[0]
    assert rows[1]["failure"].startswith("skipped, would take about ")
    assert rows[1]["failure"].endswith(" s (the limit is 1e-09 s)")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--what=attentions"], "^--what 'attentions' is unknown; choose from attention, feed-forward, chunks"),
        (["--methods=performer"], "^--methods 'performer' is unknown; choose from vanilla, chunked, top-k, sdpa"),
        (["--what=chunks", "--methods=sdpa"], "--methods sdpa has none for --what chunks"),
        (["--lengths=0"], "^--lengths '0' is not a whole number above 0"),
        (["--seconds-limit=-1"], "^--seconds-limit '-1' is not a number above 0"),
        (["--memory-limit=much"], "^--memory-limit 'much' is not a number above 0"),
        (["--dtype=float8"], "argument --dtype: invalid choice: 'float8'"),
        (["--device=tpu"], "--device tpu is unknown"),
    ],
)
def test_bad_input_is_one_sentence(run, options, sentence):
    with pytest.raises(UserError, match=sentence):
        run(*options)
