"""elseq-benchmark long-input with a tiny model; no figure of time is asserted."""

import json
import sys

import pytest

from elseq.benchmark.long_input import measure as program
from elseq.benchmark.long_input import plan
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
