"""Defaults, and those of --tiny; values that cannot be used are in test_command.py."""

from elseq.attention import methods
from elseq.benchmark.long_input.arguments import LENGTHS, SCORES, TINY, parse


def test_defaults():
    args = parse([])
    assert (args.arch, args.lengths, args.modes, args.scores) == ("bart_large", LENGTHS, ["kv", "el"], list(SCORES))
    assert (args.source_window, args.source_window_overlap, args.apply_top_k) == (1024, None, None)


def test_tiny():
    assert {name: getattr(parse(["--tiny"]), name) for name in TINY} == TINY
    assert parse(["--tiny", "--source-window=8"]).source_window == 8  # what is given wins


def test_methods_of_plugins(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "reprojected", methods.METHODS["kv"])
    assert parse([]).modes == ["kv", "el", "reprojected"]
