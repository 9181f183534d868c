"""elseq-benchmark multi-query with tiny models; no figure of time is asserted."""

import json
import sys

import pytest
import torch

from elseq.benchmark.failures import describe_failure
from elseq.benchmark.measure import Measurement
from elseq.benchmark.multi_query import plan
from elseq.benchmark.multi_query.measure import measure
from elseq.benchmark.multi_query.variants import PARTS, VARIANTS
from elseq.cli.benchmark import main
from elseq.errors import UserError
from tests.measuring import found_by

LENGTH, WIDTH, LAYERS, BATCH, HEADS = 16, 32, 2, 2, 8  # of --tiny
NUMBER_BYTES = 4


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command in this process; its runs are processes of their own unless `run_here` is asked for."""

    def run_command(*arguments):
        command = ["elseq-benchmark", "multi-query", "--threads=1", "--output", str(tmp_path), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        main()
        return json.loads((tmp_path / "multi_query.json").read_text())

    return run_command


@pytest.fixture
def run_here(monkeypatch, run):
    """As `run`, without the seconds that a process takes to import torch and fairseq; gives the requests as well."""

    def in_process(program, request, folder):
        requests.append(request)
        if request["mode"] in fails and request["beam"] == 4 and len(request["sources"]) > fails[request["mode"]]:
            return Measurement(failure=describe_failure(MemoryError()))
        return found_by(measure, request)

    def run_command(*arguments):
        return run("--tiny", "--repeats=1", *arguments)

    requests, fails = [], {}
    monkeypatch.setattr(plan, "in_process", in_process)
    run_command.requests, run_command.fails = requests, fails
    return run_command


def test_whole_table(run_here, tmp_path, capsys):
    results = run_here()
    rows = {(row["variant"], row["column"]): row for row in results["rows"]}
    assert list(rows) == [(name, column) for name in VARIANTS for column in ("training", "greedy", "beam")]
    assert [request["beam"] for request in run_here.requests[:3]] == [0, 1, 4]
    for (name, column), row in rows.items():
        assert "failure" not in row
        assert row["batch_size"] == BATCH
        assert list(row["microseconds_per_token"]) == [part for kind, part in PARTS if kind == column]
        assert all(value > 0 for value in row["microseconds_per_token"].values())
        assert row["published_microseconds_per_token"].keys() == row["microseconds_per_token"].keys()
        if column != "training":
            assert row["output_lengths"] == [LENGTH]
            assert ("gigabytes_per_second" in row) == (not name.endswith("local"))
    positions = {"greedy": BATCH * 2 * LENGTH, "beam": BATCH * (1 + 4) * LENGTH}  # of source and target
    for column, count in positions.items():
        state = 2 * NUMBER_BYTES * LAYERS * count * WIDTH  # keys and values
        assert rows["multi-head", column]["state_bytes"] == state
        assert rows["multi-query", column]["state_bytes"] == state // HEADS
        assert rows["multi-head-local", column]["state_bytes"] < state
        # fairseq keeps a byte of padding mask for each position, too, or none
        copied = 2 * NUMBER_BYTES * LAYERS * WIDTH * BATCH * (1 if column == "greedy" else 4) * 2 * LENGTH
        assert copied <= rows["stock", column]["state_bytes"] < 1.05 * copied
    assert [row["copied"] for row in results["rows"] if row["column"] == "beam"] == [False, True, False, False, False]

    local, stock, plain = (
        next(ratio for ratio in results["ratios"] if ratio["variants"][0] == name)
        for name in ("multi-head-local", "stock", "multi-head")
    )
    assert plain["variants"] == ["multi-head", "multi-query"]
    assert plain["state"] == local["state"] == {"greedy": HEADS, "beam": HEADS}
    assert stock["state"]["beam"] > HEADS
    assert plain["published_time"]["greedy decoder"] == pytest.approx(46 / 3.8)

    text = capsys.readouterr().out
    assert text.strip() == (tmp_path / "multi_query.md").read_text().strip()
    times, memory = (table.splitlines() for table in text.split("\n\n")[1:3])
    assert len(times) == 2 + len(VARIANTS) + 3 and len(memory) == 2 + len(VARIANTS) + 3
    assert len({line.count("|") for line in times}) == 1
    assert len({line.count("|") for line in memory}) == 1
    assert "(203)" in times[2] and "(12.1)" in times[7]
    assert str(tmp_path) not in (tmp_path / "multi_query.json").read_text()


def test_int8(run_here, capsys):
    """Decoding alone; stock is in float32 beside it."""
    results = run_here("--dtype=int8", "--variants=multi-head,stock,multi-query")
    assert [(request["mode"], request["column"], request["dtype"]) for request in run_here.requests] == [
        (mode, column, dtype)
        for mode, dtype in (("kv", "int8"), ("stock", "float32"), ("kv", "int8"))
        for column in ("greedy", "beam")
    ]
    rows = {(row["variant"], row["column"]): row for row in results["rows"]}
    for (variant, column), row in rows.items():
        assert "failure" not in row
        assert row.get("dtype") == ("float32" if variant == "stock" else None)
        assert row["output_lengths"] == [LENGTH]
        assert row["parameters"] == rows["multi-query" if variant == "multi-query" else "stock", column]["parameters"]
    assert results["dtype"] == "int8"
    text = capsys.readouterr().out
    assert ", int8; torch " in text.splitlines()[0]
    assert "int8: linear layers in int8, all else in float32; stock fairseq has no int8 and is in float32." in text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--columns=greedy,training"], "^--columns training has no int8, in which models only decode: leave it out$"),
        (["--device=cuda"], "^--dtype int8 is for a CPU: on a GPU give float16 or bfloat16$"),
    ],
)
def test_what_int8_is_not_for(run, monkeypatch, options, sentence):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=sentence):
        run("--dtype=int8", *options)


@pytest.mark.slow
def test_runs_are_processes_of_their_own(run):
    [row] = run("--tiny", "--repeats=2", "--variants=multi-query-local", "--columns=greedy")["rows"]
    assert 0 < row["loaded_mebibytes"] <= row["peak_mebibytes"]
    assert {part: len(seconds) for part, seconds in row["seconds"].items()} == {"encoder": 2, "decoder": 2}


@pytest.mark.parametrize(("options", "sizes"), [([], [2, 1]), (["--batch-beam=2"], [2])])
def test_out_of_memory_is_a_row_and_a_default_batch_is_halved(run_here, capsys, options, sizes):
    run_here.fails["stock"] = 1
    results = run_here("--variants=stock,multi-query", "--columns=greedy,beam", *options)
    beam = [len(request["sources"]) for request in run_here.requests if request["mode"] == "stock"][1:]
    assert beam == sizes
    failed = [row for row in results["rows"] if "failure" in row]
    text = capsys.readouterr().out
    if options:
        assert [(row["variant"], row["failure"]) for row in failed] == [("stock", "out of memory")]
        assert "multi-head, stock fairseq, beam 4, batch 2: out of memory." in text
    else:
        assert not failed
        assert "; multi-head, stock fairseq, beam 4 1." in text
    [ratio] = results["ratios"]
    assert list(ratio["state"]) == ["greedy"]  # batches of different sizes, or none, are not compared


def test_nothing_measured_is_an_error(run_here):
    run_here.fails["kv"] = 0
    with pytest.raises(UserError, match="nothing could be measured; multi-query, beam 4, batch 3: out of memory$"):
        run_here("--variants=multi-query", "--columns=beam", "--batch=3")


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--variants=multi-tail", "^--variants 'multi-tail' is unknown; choose from multi-head, stock, multi-query"),
        ("--columns=beams", "^--columns 'beams' is unknown; choose from training, greedy, beam"),
        ("--batch=0", "^--batch '0' is not a whole number above 0"),
        ("--dtype=float8", "argument --dtype: invalid choice: 'float8'"),
        ("--device=tpu", "--device tpu is unknown"),
    ],
)
def test_bad_input_is_one_sentence(run, option, sentence):
    with pytest.raises(UserError, match=sentence):
        run(option)
