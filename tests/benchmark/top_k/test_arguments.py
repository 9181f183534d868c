"""Defaults, and those of --tiny; values that cannot be used are in test_command.py."""

from elseq.benchmark.top_k.arguments import LENGTHS, METHODS, TINY, parse


def test_defaults():
    args = parse([])
    assert (args.what, args.methods, args.lengths) == (list(METHODS), list(METHODS["attention"]), LENGTHS)
    assert (args.layers, args.seconds_limit, args.memory_limit, args.query_chunk_size) == (1, 120, None, None)


def test_tiny():
    args = parse(["--lengths=16", "--tiny"])
    assert args.lengths == [16]  # what is given wins
    assert {name: getattr(args, name) for name in TINY} == TINY | {"lengths": [16]}
    assert parse([]).tokens == 16384


def test_limits_are_any_numbers():
    args = parse(["--seconds-limit=1e-9", "--memory-limit=0.5"])
    assert (args.seconds_limit, args.memory_limit) == (1e-9, 0.5)
