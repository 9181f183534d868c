"""elseq-benchmark el-attention with tiny models; no figure of time is asserted."""

import json
import sys

import pytest

from elseq.benchmark.el_attention import command, plan
from elseq.benchmark.el_attention import measure as kept
from elseq.benchmark.measure import measure_cases
from elseq.cli.benchmark import main
from elseq.errors import UserError
from tests.measuring import found_by

LAYERS, WIDTH, NUMBER_BYTES, BEAM = 2, 32, 4, 4  # of --tiny


@pytest.fixture
def run(monkeypatch, tmp_path):
    def run_command(*arguments):
        command = ["elseq-benchmark", "el-attention", "--tiny", "--threads=1", "--output", str(tmp_path), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        main()
        return json.loads((tmp_path / "el_attention.json").read_text())

    return run_command


@pytest.fixture
def run_here(monkeypatch, run):
    """As `run`, without the seconds that a process takes to import torch and fairseq; gives the requests as well."""

    def one_by_one(program, request, folder):
        requests.append(request)
        return found_by(kept.measure if program[0] == "-m" else measure_cases, request)

    requests = run.requests = []
    monkeypatch.setattr(plan, "one_by_one", one_by_one)
    monkeypatch.setattr(command, "find_limits", lambda plan: None)
    return run


def test_largest_batches(run_here, capsys, tmp_path):
    results = run_here(
        "--tables=speed", "--models=transformer_270m,gpt2_124m", "--modes=stock-copied,stock-shared,kv,el"
    )
    rows = {(row["model"], row["search"], row["mode"]): row for row in results["rows"]}
    assert len(rows) == len(results["rows"]) == 4 * 2 + 3 + 3 * 2  # stock shares nothing in a greedy search or a prompt
    for (model, search, mode), row in rows.items():
        assert "failure" not in row
        assert (row["batch_size"], row["output_lengths"]) == (3, [6])
        assert row["beam"] == (1 if search == "greedy" else BEAM)
        assert row["copied"] is (mode == "stock-copied" and row["beam"] > 1)
        assert ("published" in row) == (mode in ("stock-copied", "el"))
        assert ("step_seconds" in row) == model.startswith("Transformer")
    assert rows["Transformer 270M, SQuAD", "beam", "el"]["published"] == 173.6  # in float32
    groups = {case["search"].get("diverse_beam_groups") for case in run_here.requests[0]["cases"]}
    assert groups == {None, 2}
    [ratio] = [
        each["ratio"]
        for each in results["ratios"]
        if (each["model"], each["search"], each["mode"]) == ("Transformer 270M, SQuAD", "greedy", "kv")
    ]
    kv, stock = (rows["Transformer 270M, SQuAD", "greedy", mode] for mode in ("kv", "stock-copied"))
    assert ratio == pytest.approx(kv["samples_per_second"] / stock["samples_per_second"])
    assert (tmp_path / "el_attention.png").stat().st_size
    assert capsys.readouterr().out.strip() == (tmp_path / "el_attention.md").read_text().strip()


def test_programs_decode_what_each_case_asks_for(run_here):
    """State by hand: keys and values of all layers or, in el, hidden states of the source once."""
    rows = run_here("--tables=batch,nvidia", "--modes=kv,el")["rows"]
    assert [(row["table"], row["mode"], row["batch_size"]) for row in rows] == [
        (table, mode, size) for mode in ("kv", "el") for table in ("batch", "nvidia") for size in (2, 3)
    ]
    for row in rows:
        beam = 1 if row["table"] == "nvidia" else BEAM
        positions = 8 * beam * LAYERS + 16 * (1 if row["mode"] == "el" else LAYERS)
        assert row["state_bytes"] == row["batch_size"] * positions * WIDTH * NUMBER_BYTES * (
            2 if row["mode"] == "kv" else 1
        )
    lengths = [len(source) for source in run_here.requests[0]["sources"]]
    assert lengths[:3] == [15] * 3 and lengths[3] == 15 and set(lengths[4:]) <= set(range(7, 16))


def test_memory_is_what_is_counted(run_here):
    rows = run_here("--tables=memory")["rows"]
    assert {row["mode"] for row in rows} == {"stock-copied", "stock-shared", "kv", "el"}
    for row in rows:
        positions = row["batch_size"] * row["source_length"]
        numbers = {"stock-copied": 2 * LAYERS * BEAM, "stock-shared": 2 * LAYERS, "kv": 2 * LAYERS, "el": 1}[
            row["mode"]
        ]
        assert row["state_bytes"] == row["predicted_bytes"] == positions * numbers * WIDTH * NUMBER_BYTES


def test_what_does_not_fit(monkeypatch, run_here, capsys):
    monkeypatch.setattr(kept, "free_memory_bytes", lambda device: 20_000)
    rows = run_here("--tables=memory", "--modes=stock-copied,el", "--batch-sizes=2", "--lengths=16")["rows"]
    assert rows[0]["failure"] == "out of memory (it needs 64.0 KiB and 19.5 KiB are free)"
    assert rows[0]["predicted_bytes"] == 2**16 and "failure" not in rows[1]
    assert " OOM |" in capsys.readouterr().out


def test_a_program_that_cannot(run_here, monkeypatch, capsys):
    monkeypatch.setitem(plan.FOREIGN_MODES, "ctranslate2", "no_such_package")
    results = run_here("--tables=nvidia", "--modes=kv,ctranslate2")
    assert {row.get("failure") for row in results["rows"] if row["mode"] == "ctranslate2"} == {
        "no_such_package is not installed"
    }
    assert "ctranslate2, batch 3: no_such_package is not installed." in capsys.readouterr().out


@pytest.mark.slow
def test_everything(run_here):
    """Every table with every program; one after the other in this process, but for exports."""
    results = run_here()
    assert len(results["rows"]) == len({json.dumps(row) for row in results["rows"]})
    failures = {(row["mode"], row.get("failure")) for row in results["rows"] if "failure" in row}
    assert {mode for mode, _ in failures} <= set(plan.FOREIGN_MODES)
    told = "no diverse beam search", "is not installed", "transformers does not take this model: Hugging Face's BART"
    assert all(any(words in reason for words in told) for _, reason in failures)
    assert {row["table"] for row in results["rows"]} == {"speed", "batch", "memory", "nvidia"}


@pytest.mark.slow
def test_a_process_for_each_program(run):
    results = run("--tables=batch,memory", "--modes=kv,el", "--batch-sizes=2", "--lengths=8")
    assert len(results["rows"]) == 4 and not any("failure" in row for row in results["rows"])
    decoded = [row for row in results["rows"] if row["table"] == "batch"]
    assert all(0 < row["loaded_mebibytes"] <= row["peak_mebibytes"] for row in decoded)
    assert all(row["share_of_limit"] > 0 for row in decoded)
    assert results["limits"]["source"] == "measured by a copy and a product"


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--tables=speeds", "^--tables 'speeds' is unknown; choose from speed, batch, memory, nvidia$"),
        ("--models=bart", "^--models 'bart' is unknown; choose from transformer_270m, "),
        ("--modes=stock", "^--modes 'stock' is unknown; choose from stock-copied, stock-shared, kv, el, "),
        ("--memory-cap=much", "^--memory-cap 'much' is not a size in bytes above 0; give one such as 16G or 800M$"),
        ("--memory-cap=nvidia=1G", "^--memory-cap 'nvidia' is unknown; choose from batch, speed$"),
        ("--batch-sizes=0", "^--batch-sizes '0' is not a whole number above 0$"),
        ("--device=tpu", "^--device tpu is unknown"),
    ],
)
def test_bad_input_is_one_sentence(run, option, sentence):
    with pytest.raises(UserError, match=sentence):
        run(option)
