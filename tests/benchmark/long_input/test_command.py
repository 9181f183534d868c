"""elseq-benchmark long-input with a tiny model; no figure of time is asserted."""

import json
import sys

import pytest

from elseq.benchmark.long_input import measure as program
from elseq.benchmark.long_input import plan, report
from elseq.benchmark.long_input.plan import Row
from elseq.cli.benchmark import main
from elseq.errors import UserError
from tests.measuring import take_turns_here

LAYERS, WIDTH, NUMBER_BYTES = 2, 32, 4  # of --tiny


@pytest.fixture
def run(monkeypatch, tmp_path):
    def run_command(*arguments):
        command = ["elseq-benchmark", "long-input", "--tiny", "--threads=1", "--output", str(tmp_path), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        main()
        return json.loads((tmp_path / "long_input.json").read_text())

    return run_command


def test_whole_table(run, tmp_path, capsys, monkeypatch):
    calls = take_turns_here(monkeypatch, plan, program.measure)
    rows = run("--repeats=2", "--batch=2")["rows"]
    assert calls == [(["-m", "elseq.benchmark.long_input.measure"], True)] * 2
    cells = [(row["length"], row["method"], row["scores"]) for row in rows]
    assert cells == [
        (16, "kv", "exact"),
        (16, "el", "exact"),
        (64, "kv", "exact"),
        (64, "kv", "top-k"),
        (64, "el", "exact"),
        (64, "el", "top-k"),
    ]
    for row in rows:
        assert "failure" not in row
        assert row["output_lengths"] == [5]
        assert [len(seconds) for seconds in row["seconds"].values()] == [2, 2]
        of_source = 2 * row["length"] * WIDTH * NUMBER_BYTES * (2 * LAYERS if row["method"] == "kv" else 1)
        assert of_source < row["state_bytes"] <= row["predicted_bytes"]
    text = (tmp_path / "long_input.md").read_text()
    sizes = "sizes: tiny, for a test"
    assert text.startswith(
        f"bart_large, {sizes}, random weights, windows of 16, overlap 8, k 16; batch 2, beam 4, output 5; cpu"
    )
    assert "milliseconds per output token" in text
    assert (tmp_path / "long_input.png").stat().st_size
    assert "written: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_for_each_run(run):
    assert all("failure" not in row for row in run("--repeats=1", "--lengths=64")["rows"])


def test_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(program, "free_memory_bytes", lambda device: 1000)
    monkeypatch.setattr(program, "batch_bytes", lambda *sizes: 3 * 2**20)
    monkeypatch.setattr(program, "TimedSearch", lambda request: type("Engine", (), {"model": None, "generator": None}))
    found = program.measure({"device": "cpu", "sources": [[1]], "source_length": 1})
    assert found.failure == "out of memory (it needs 3.0 MiB and 1000 bytes are free)"


def test_ratios():
    def row(scores, seconds):
        return Row(64, "el", scores, seconds={"encoder": [1.0], "decoder": [seconds]})

    assert report.compare([row("exact", 4.0), row("top-k", 3.0)]) == [{"length": 64, "method": "el", "decoder": 0.75}]
    assert report.compare([row("top-k", 3.0)]) == []


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--source-window=2000"], "^--source-window 2000 is more than the encoder's 1024 positions"),
        (["--source-window-overlap=16"], "^--source-window-overlap 16 does not go with windows of 16 tokens"),
        (["--arch=transformer_lm"], "^--arch transformer_lm is a language model, which has no encoder"),
        (["--lengths=1"], "^source_length 1 leaves no room for a word"),
    ],
)
def test_what_cannot_be_measured(run, options, sentence):
    with pytest.raises(UserError, match=sentence):
        run("--repeats=1", *options)
