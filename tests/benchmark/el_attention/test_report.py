"""Tables, notes and picture of rows that are made up."""

from dataclasses import replace

from elseq.benchmark.el_attention import report
from elseq.benchmark.el_attention.plan import Row
from elseq.benchmark.limits import Limits
from tests.benchmark.el_attention.test_plan import PLAN
from tests.helpers import table_rows

GIBIBYTE = 2**30
CNN = "BART-large, CNN/DailyMail"
ROWS = [
    Row("batch", CNN, "beam", "stock-copied", 32, 16 * GIBIBYTE, beam=4, samples_per_second=4.0, published=5.7),
    Row("batch", CNN, "beam", "stock-copied", 64, 16 * GIBIBYTE, beam=4, failure="out of memory", published="OOM"),
    Row("batch", CNN, "beam", "ctranslate2", 32, 16 * GIBIBYTE, beam=4, failure="it cannot."),
    Row(
        "batch", CNN, "beam", "el", 32, 16 * GIBIBYTE, beam=4, samples_per_second=10.0, published=8.0,
        seconds=[1.0, 2.0], step_seconds=0.01, step_bytes=2 * 10**9, step_operations=10**9, share_of_limit=0.25,
        peak_mebibytes=2048.0,
    ),
    Row("batch", CNN, "beam", "auto", 64, 16 * GIBIBYTE, beam=4, samples_per_second=12.6, method="kv"),
    Row("memory", CNN, "beam", "stock-copied", 32, source_length=256, predicted_bytes=GIBIBYTE, state_bytes=GIBIBYTE),
    Row("memory", CNN, "beam", "el", 32, source_length=256, predicted_bytes=2**24, state_bytes=2**24, published=0.02),
    Row("nvidia", "BART", "greedy", "stock-copied", 32, beam=1, samples_per_second=100.0),
]  # fmt: skip


def test_tables():
    text = report.tables(PLAN, ROWS)
    titles = [line for line in text.splitlines() if line.endswith(":")]
    assert titles == [
        "Speed by batch, BART-large, CNN/DailyMail, beam 4, in 16 GiB:",
        "What the decoder keeps of the sources, BART-large, beam 4:",
        "NVIDIA's protocol for BART-large: greedy, sources of 260 to 440 tokens, 128 tokens out:",
    ]
    batch, memory, nvidia = (table_rows(part) for part in text.split("\n\n") if part.startswith("|"))
    assert batch[0] == [
        "program", "batch", "samples/s", "x stock", "published, V100, float16", "peak GiB", "a step: ms", "GB", "GFLOP",
        "GB/s", "TFLOP/s", "of the limit",
    ]  # fmt: skip
    assert [line[:5] for line in batch[2:]] == [
        ["stock, copied", "32", "4.00", "-", "5.70"],
        ["el", "32", "10.0", "2.50", "8.00"],
        ["stock, copied", "64", "OOM", "-", "OOM"],
        ["auto (kv)", "64", "12.6", "-", "-"],
        ["multi-head without a cache", "32", "-", "-", "1.90"],
        ["multi-head without a cache", "64", "-", "-", "1.90"],
    ]
    assert batch[3][5:] == ["2.00", "10.0", "2.00", "1.00", "200", "0.100", "25%"]
    assert memory[2:] == [
        ["stock, copied", "32", "256", "1.00", "1.00", "-", "-"],
        ["el", "32", "256", "0.0156", "0.0156", "64.0", "0.0200"],
    ]
    assert nvidia[2:] == [
        ["stock", "32", "100", "-"],
        ["TensorRT-LLM, engine", "32", "-", "139"],
        ["TensorRT-LLM, PyTorch backend", "32", "-", "114"],
    ]
    assert text.splitlines()[-1] == f"- batch, {CNN}, beam, ctranslate2, batch 32, 16 GiB: it cannot."


def test_ratios():
    ratios = report.compare(ROWS)
    assert [(each["table"], each["mode"], each["ratio"]) for each in ratios] == [
        ("batch", "el", 2.5),
        ("memory", "el", 64.0),
    ]


def test_largest_batches_are_compared():
    """Which differ."""
    rows = [
        replace(ROWS[0], table="speed"),
        replace(ROWS[3], table="speed", batch_size=300),
        replace(ROWS[4], table="speed", memory_cap=None),
    ]
    assert [each["ratio"] for each in report.compare(rows)] == [2.5]
    lines = [line for line in table_rows(report.tables(PLAN, rows)) if line[0].startswith("BART")]
    assert [line[:6] for line in lines] == [
        [CNN, "beam", "stock, copied", "32", "4.00", "-"],
        [CNN, "beam", "el", "300", "10.0", "2.50"],
        [CNN, "beam", "auto (kv)", "64", "12.6"],
    ]


def test_notes_tell_what_the_rows_need():
    plan = replace(PLAN, limits=Limits(3.35e12, 989e12, "NVIDIA's data sheet"))
    text = report.notes(plan, ROWS)
    assert "the limits are 3,350 GB/s and 989 TFLOP/s (NVIDIA's data sheet)." in text
    assert f"(was the machine busy?): batch, {CNN}, beam, el, batch 32, 16 GiB." in text
    assert "Measured: the tensors that are there." in text and "TensorRT-LLM" in text
    assert "four fifths" not in text and "n-grams" not in text
    assert "BART without repeated 3-grams and with a minimum and a maximum length; here all outputs of a model" in text
    assert "have one length, and 3-grams may be repeated." in text
    assert "and no 3-grams are repeated." in report.notes(replace(PLAN, no_repeat_ngram_size=3), ROWS)
    only_memory = report.notes(PLAN, ROWS[5:7])
    assert only_memory.startswith("Measured: the tensors that are there. A number takes 2 bytes; in ")


def test_picture(tmp_path):
    assert report.plot(PLAN, ROWS, tmp_path / "plot", "a title") == [tmp_path / "plot.png"]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
