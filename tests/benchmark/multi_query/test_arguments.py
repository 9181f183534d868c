"""Columns and batches; values that cannot be used are in test_command.py."""

import pytest

from elseq.benchmark.multi_query.arguments import parse
from elseq.benchmark.multi_query.variants import VARIANTS


def test_defaults():
    args = parse([])
    assert args.variants == list(VARIANTS) and args.columns == ["training", "greedy", "beam"]
    assert [args.batch, args.batch_training, args.batch_greedy, args.batch_beam] == [None] * 4


def test_int8_has_no_training():
    assert parse(["--dtype=int8"]).columns == ["greedy", "beam"]
    assert parse(["--dtype=int8", "--columns=beam"]).columns == ["beam"]


@pytest.mark.parametrize(("option", "column"), [("train", "training"), ("greedy", "greedy"), ("beam", "beam")])
def test_the_batch_of_a_column(option, column):
    assert getattr(parse([f"--batch-{option}=7"]), f"batch_{column}") == 7
