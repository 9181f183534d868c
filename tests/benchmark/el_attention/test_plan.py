"""Cases and rows by hand."""

from dataclasses import replace

import pytest

from elseq.benchmark.cost import Sizes
from elseq.benchmark.el_attention import plan as module
from elseq.benchmark.el_attention.plan import Case, Plan, Row, _refused, _row
from elseq.benchmark.el_attention.settings import MEMORY, MODELS, NVIDIA_SETTING, SETTINGS, TINY_MODELS
from elseq.benchmark.limits import Limits
from elseq.benchmark.measure import Measurement
from elseq.benchmark.models import random_model
from elseq.benchmark.sources import check_positions

PLAN = Plan(
    tables=["speed", "batch", "memory", "nvidia"],
    models=list(SETTINGS),
    searches=["beam", "diverse", "greedy"],
    modes=["stock-copied", "stock-shared", "kv", "el", "auto", "ctranslate2"],
    batch_sizes=None,
    lengths=[256, 1024],
    most=1024,
    memory_caps=dict.fromkeys(["batch", "speed"], [16 * 2**30, None]),
    no_repeat_ngram_size=0,
    dtype="float16",
    device="cuda",
    threads=1,
    repeats=3,
)
BEAM = Case("batch", replace(SETTINGS["bart_large_cnn_dm"], source_length=10), "beam", 32)
SIZES = Sizes(100, 60, 16, 30, 1, 4, 2, 4, 4, (4, 4), (4, 4), 2, 2)


def test_the_cases_of_the_paper():
    cases = PLAN.cases()
    by_table = {table: [case for case in cases if case.table == table] for table in PLAN.tables}
    assert len(by_table["speed"]) == 2 * 13  # GPT-2 has no diverse beam search
    assert [(case.batch_size, case.memory_cap) for case in by_table["batch"]] == [
        (size, cap) for cap in PLAN.memory_caps["batch"] for size in (32, 64, 128, 320)
    ]
    assert [(case.batch_size, case.beam, case.memory_cap) for case in by_table["nvidia"]] == [
        (size, 1, None) for size in (32, 64, 128)
    ]
    assert {(size, length) for _, size, length in PLAN.memory_cases()} == set(MEMORY)
    assert PLAN.runs() == sum(len(PLAN.modes_of(case)) for case in cases) + 4 * 6


def test_tables_have_memory_caps_of_their_own():
    cases = replace(PLAN, memory_caps={"batch": [None], "speed": [7]}).cases()
    assert {(case.table, case.memory_cap) for case in cases} == {("batch", None), ("nvidia", None), ("speed", 7)}


def test_positions_suffice(tmp_path):
    """Those of the true models, which the small ones have too."""
    models = {name: random_model(each.arch, 64, list(each.options), tmp_path) for name, each in TINY_MODELS.items()}
    for setting in (*SETTINGS.values(), NVIDIA_SETTING):
        check_positions(models[setting.model], [setting.source_length], setting.output_length)
        assert models[setting.model].is_language_model == MODELS[setting.model].is_language_model


def test_published_memory_is_the_count():
    """Of BART-large: 12 layers, width 1,024, beam 4, two bytes a number."""
    for (batch, length), (multi_head, el) in MEMORY.items():
        counted = batch * length * 1024 * 2 / 2**30
        assert multi_head == pytest.approx(counted * 2 * 12 * 4, abs=0.01)
        assert el == pytest.approx(counted, abs=0.01)


@pytest.mark.parametrize(
    ("case", "mode", "dtype", "figure"),
    [
        (BEAM, "stock-copied", "float16", 5.7),
        (replace(BEAM, batch_size=320), "stock-copied", "float16", "OOM"),
        (replace(BEAM, batch_size=320), "el", "float16", 28.6),
        (replace(BEAM, batch_size=8), "el", "float16", None),
        (BEAM, "kv", "float16", None),
        (replace(BEAM, table="speed", search="greedy"), "el", "float32", 19.5),
        (replace(BEAM, table="speed"), "stock-copied", "bfloat16", 5.7),
        (replace(BEAM, table="nvidia"), "el", "float16", None),
    ],
)
def test_published_figures(case, mode, dtype, figure):
    assert module._published(replace(PLAN, dtype=dtype), case, mode) == figure


@pytest.mark.parametrize(
    ("mode", "changes", "reason"),
    [
        ("kv", {"search": "diverse", "memory_cap": 1}, None),
        ("huggingface", {"search": "diverse"}, "it has no diverse beam search like fairseq's"),
        ("huggingface", {"memory_cap": 1}, None),
        ("ctranslate2", {"memory_cap": 1}, "it allocates memory itself, which cannot be capped"),
        ("ctranslate2", {}, None),
    ],
)
def test_what_a_program_cannot(mode, changes, reason):
    assert _refused(PLAN, replace(BEAM, **changes), mode) == reason
    if "memory_cap" in changes and "search" not in changes:
        assert _refused(replace(PLAN, device="cpu"), replace(BEAM, **changes), mode) is None


def test_a_row_by_hand():
    """Of 83 steps the one in the middle is the 42nd; beam 4, 32 sentences of 10 positions."""
    found = Measurement(
        seconds=[20.0, 18.6, 18.0], encoder_seconds=2.0, batch_size=32, sizes=SIZES.to_dict(), method="el", copied=False
    )
    plan = replace(PLAN, limits=Limits(1e9, 1e6, "by hand"))
    row = _row(plan, replace(BEAM, is_largest=True, batch_size=1024), "el", found)
    assert (row.batch_size, row.samples_per_second) == (32, pytest.approx(32 / 18.6))
    assert row.step_seconds == pytest.approx(0.2)
    hypotheses = 32 * 4
    logits = 2 * hypotheses * 50264
    assert row.step_bytes == 2 * (90 + 2 * hypotheses * 42 * 4 + 32 * 2 * 10 * 4 + logits)
    assert row.step_operations == hypotheses * (2 * 90 + 2 * (42 + 10) * 32)
    assert row.share_of_limit == pytest.approx(row.step_operations / 1e6 / 0.2)
    failed = _row(plan, BEAM, "el", Measurement(failure="out of memory"))
    assert (failed.batch_size, failed.failure, failed.published) == (32, "out of memory", 8.0)


def test_lines_of_rows():
    def row(table, mode, **others):
        return Row(table, "BART-large", "beam", mode, 32, **others)

    capped = row("batch", "stock-copied", memory_cap=16 * 2**30, samples_per_second=4.0)
    assert capped.line == "batch, BART-large, beam, stock-copied, batch 32, 16 GiB: 4.00 samples/s"
    assert row("batch", "el", failure="no.").line == "batch, BART-large, beam, el, batch 32: no."
    kept = row("memory", "el", source_length=256, state_bytes=2**24)
    assert kept.line == "memory, BART-large, beam, el, batch 32, length 256: 0.0156 GiB"
