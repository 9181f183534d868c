"""Settings to a grid and its title; models that cannot be measured are in tests/cli/test_benchmark.py."""

from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import pytest

from elseq.benchmark import command
from elseq.benchmark.arguments import Settings
from elseq.benchmark.command import make_grid, title
from elseq.benchmark.models import ModelFile
from elseq.errors import UserError


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """Of a model that is made up, with a dictionary of five words."""
    (tmp_path / "dict.txt").write_text("".join(f"w{number} 1\n" for number in range(5)))
    dictionaries = [str(tmp_path / "dict.txt")] * 2
    model_file = ModelFile("model.pt", "path", str(tmp_path), *dictionaries, False, 1, 30, 40)
    monkeypatch.setattr(command, "checkpoint_model", lambda path, *_: model_file)
    return Settings("model.pt", source_length=4, batch_sizes=[2, 3], beams=[1], modes=["stock", "kv"], threads=1)


def grid_of(settings):
    with ExitStack() as stack:
        return make_grid(settings, stack)


def test_random_sources(settings):
    grid = grid_of(replace(settings, output_length=6))
    assert [len(source) for source in grid.sources] == grid.positions == [4] * 3  # one batch, the largest
    assert grid.one_batch and grid.scorer is None
    assert grid.search == {"min_len": 6, "max_len_b": 6, "lenpen": 1.0, "no_repeat_ngram_size": 0}
    assert [cell[:3] for cell in grid.cells()] == [("stock", 2, 1), ("kv", 2, 1), ("stock", 3, 1), ("kv", 3, 1)]


def test_sources_of_a_file(settings, tmp_path):
    (tmp_path / "source").write_text("w1 w2\nw3\n")
    grid = grid_of(replace(settings, source=str(tmp_path / "source"), min_len=2, max_len_b=9))
    assert grid.positions == [3, 2] and not grid.one_batch
    assert (grid.search["min_len"], grid.search["max_len_b"]) == (2, 9)


@pytest.mark.parametrize(
    ("device", "interleave", "expected"), [("cpu", None, True), ("cuda", None, False), ("cpu", False, False)]
)
def test_runs_take_turns_on_a_cpu(settings, device, interleave, expected):
    assert grid_of(replace(settings, device=device, interleave=interleave)).interleave is expected


def test_lengths_that_do_not_go_together(settings):
    with pytest.raises(UserError, match="^--min-len 9 is more than --max-len-b 8; lower it$"):
        grid_of(replace(settings, min_len=9, max_len_b=8))


def test_title(settings, tmp_path):
    grid = grid_of(settings)
    found = title(replace(settings, output_length=6), grid)
    assert found[:3] == [["model.pt"], ["source 4", "output 6"], ["cpu", "1 thread", "float32"]]
    (tmp_path / "source").write_text("w1 w2\nw3\n")
    of_file = replace(
        settings,
        source="news",
        reference="titles",
        random_weights=True,
        no_repeat_ngram_size=3,
        dtype=["int8", "float32"],
    )
    grid = replace(grid, scorer=SimpleNamespace(how=lambda: ["sacreBLEU nrefs:1"]), sources=grid.sources[:2])
    assert title(of_file, grid)[:3] == [
        ["model.pt", "random weights"],
        [
            "2 lines of news", "output 1 to 200", "length penalty 1", "no repeated 3-grams", "reference titles",
            "sacreBLEU nrefs:1",
        ],
        ["cpu", "1 thread", "int8, float32"],
    ]  # fmt: skip
