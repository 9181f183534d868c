"""Tables, ratios and pictures of rows that are made up."""

from dataclasses import replace

from elseq.benchmark.top_k import report
from elseq.benchmark.top_k.plan import Row
from tests.benchmark.top_k.test_plan import PLAN
from tests.helpers import table_rows

ROWS = [
    Row("attention", 32, "vanilla", seconds=[4.0, 2.0, 3.0], peak_mebibytes=100.0),
    Row("attention", 32, "top-k", seconds=[1.5], peak_mebibytes=25.0),
    Row("attention", 64, "vanilla", failure="skipped, out of memory at 32 already"),
    Row("attention", 64, "top-k", seconds=[3.0], peak_mebibytes=50.0),
    Row("feed-forward", 48, "vanilla", seconds=[1.0], peak_mebibytes=0.0),
    Row("feed-forward", 48, "top-k", seconds=[1.25], peak_mebibytes=5.0),
]


def test_ratios_to_vanilla_at_the_same_size():
    assert report.compare(ROWS) == [
        {"what": "attention", "size": 32, "method": "top-k", "seconds": 0.5, "peak_mebibytes": 0.25},
        {"what": "feed-forward", "size": 48, "method": "top-k", "seconds": 1.25, "peak_mebibytes": None},
    ]


def test_tables():
    parts = report.tables(PLAN, ROWS).split("\n\n")
    assert parts[0] == "Causal attention, one layer, 2 heads of width 8, k 8:"
    seconds, memory = table_rows(parts[1]), table_rows(parts[2])
    assert seconds[0] == ["seconds (of vanilla), length", "32", "64"]
    assert seconds[2:] == [["vanilla", "3.00", "-"], ["top-k", "1.50 (0.500)", "3.00"]]
    assert memory[0][0] == "peak MiB above the inputs (of vanilla), length"
    assert memory[2:] == [["vanilla", "100", "-"], ["top-k", "25.0 (0.250)", "50.0"]]
    assert "Feed-forward layer, 64 tokens, width 16, k 8:" in parts
    assert parts[-1] == "- attention, length 64, vanilla: skipped, out of memory at 32 already."


def test_titles():
    wide = replace(PLAN, layers=12, query_chunk_size=1024)
    assert report._title(wide, "attention").startswith("Causal attention, 12 layers with projections, 2 heads")
    assert report._title(wide, "attention").endswith(", query chunks of 1,024")
    assert report._title(wide, "chunks").endswith(", length 64")


def test_published_figures_of_as_many_layers():
    assert {point["method"] for point in report.published(PLAN, "attention")} == {
        "vanilla", "chunked", "top-k", "Performer"
    }  # fmt: skip
    assert [point["size"] for point in report.published(replace(PLAN, layers=12), "attention")] == [2048] * 4
    assert report.published(replace(PLAN, layers=3), "attention") == report.published(PLAN, "chunks") == []
    assert [point["gibibytes"] for point in report.published(PLAN, "feed-forward")] == [26.3, 8.0, 12.3]


def test_lines_of_progress():
    assert ROWS[0].line == "attention, length 32, vanilla: 3.00 s, 100 MiB"
    assert ROWS[2].line == "attention, length 64, vanilla: skipped, out of memory at 32 already."


def test_notes():
    assert "attention, length 32, vanilla" in report.notes(PLAN, ROWS)  # whose repeats differ
    assert "busy" not in report.notes(PLAN, ROWS[1:])


def test_pictures(tmp_path):
    """None of what failed everywhere."""
    paths = report.plot(PLAN, [*ROWS, Row("chunks", 16, "top-k", failure="out of memory")], tmp_path / "top_k", "title")
    assert [path.name for path in paths] == ["top_k_attention.png", "top_k_feed-forward.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
