"""What is measured of sources in windows, in which order; the runs are made up."""

from dataclasses import replace

import pytest

from elseq.benchmark.long_input import plan
from elseq.benchmark.long_input.plan import Plan, run_plan
from elseq.benchmark.measure import Measurement
from elseq.benchmark.models import ModelFile
from elseq.errors import UserError

PLAN = Plan(
    arch="bart_large", lengths=[16, 64], methods=["kv", "el"], scores=["exact", "top-k"], window=16, overlap=8,
    top_k=16, batch=2, beam=4, output_length=5, model_options=("--encoder-layers=2",), vocabulary_size=64,
    dtype="float32", device="cpu", threads=1, repeats=2,
)  # fmt: skip


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The rows of a plan, and what the processes of each length are asked for."""

    def in_turns(program, requests, folder, interleave):
        run.calls.append((requests, interleave))
        for request in requests:
            yield Measurement(seconds={"encoder": [1.0], "decoder": [2.0]}, state_bytes=len(request["sources"][0]))

    def random_model(arch, vocabulary_size, options, folder):
        assert (arch, vocabulary_size, options) == ("bart_large", 64, ["--encoder-layers=2"])
        return ModelFile("model", "path", "data", str(tmp_path / "dict.txt"), "", False, 2, 1024, 1024)

    def run(plan):
        rows = []
        run_plan(plan, rows.append)
        return rows

    (tmp_path / "dict.txt").write_text("".join(f"w{number} 1\n" for number in range(5)))
    monkeypatch.setattr(plan, "in_turns", in_turns)
    monkeypatch.setattr(plan, "random_model", random_model)
    run.calls = []
    return run


def test_up_to_k_states_all_scores_are_kept():
    assert PLAN.cells() == [
        (16, "kv", "exact"), (16, "el", "exact"),
        (64, "kv", "exact"), (64, "kv", "top-k"), (64, "el", "exact"), (64, "el", "top-k"),
    ]  # fmt: skip
    assert replace(PLAN, top_k=64, scores=["top-k"]).cells() == []


def test_runs_of_a_length_take_turns(run):
    rows = run(PLAN)
    assert [(row.length, row.method, row.scores) for row in rows] == PLAN.cells()
    assert all(row.failure is None and row.seconds["decoder"] == [2.0] for row in rows)
    assert [(len(requests), interleave) for requests, interleave in run.calls] == [(2, True), (4, True)]
    run.calls.clear()
    run(replace(PLAN, device="cuda"))
    assert [interleave for _, interleave in run.calls] == [False, False]


def test_requests(run):
    run(PLAN)
    _, _, first, top_k = [request for requests, _ in run.calls for request in requests][:4]
    assert first["task_options"] == {"source_window": 16, "source_window_overlap": 8}
    assert top_k["task_options"] == first["task_options"] | {"apply_top_k": 16, "apply_top_k_in": "cross"}
    assert [len(source) for source in first["sources"]] == [64 - 1] * 2  # and <s>, which is BART's
    assert first["target_length"] == 5
    assert (first["threads"], first["repeats"], first["beam"]) == (1, 2, 4)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"arch": "transformer_lm"}, "^--arch transformer_lm is a language model, which has no encoder: give another$"),
        ({"window": 2000}, "^--source-window 2000 is more than the encoder's 1024 positions"),
    ],
)
def test_models_and_windows_that_do_not_go(run, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        run(replace(PLAN, **changes))
    assert not run.calls
