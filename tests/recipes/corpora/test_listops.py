"""ListOps: values against another evaluator, the published rules, and splits that share nothing."""

import itertools
import math
import random
import re
from collections import Counter

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elseq.errors import UserError
from recipes.corpora import listops
from recipes.corpora.listops import Rules, expressions, grow, main

INNERMOST = re.compile(r"\[(MAX|MIN|MED|SM)((?: \d)+) \]")
REDUCE = {"MAX": numpy.max, "MIN": numpy.min, "MED": numpy.median, "SM": lambda values: numpy.sum(values) % 10}
SHORT = Rules(max_depth=4, max_arguments=5, min_length=10, max_length=40)
SPLITS = ("train", "valid", "test")


def evaluate(expression):
    """By replacing the innermost operations by their values until a digit is left."""
    while not expression.isdigit():
        shorter = INNERMOST.sub(
            lambda match: str(int(REDUCE[match[1]](numpy.array(match[2].split(), dtype=int)))), expression
        )
        assert shorter != expression, f"not an expression: {expression}"
        expression = shorter
    return int(expression)


def nested(expression):
    """Depth, and the number of arguments of every operator, counted by brackets."""
    open_operators, deepest, arguments = [], 0, []
    for token in expression.split():
        if token == "]":
            arguments.append(open_operators.pop())
            continue
        deepest = max(deepest, len(open_operators) + 1)
        if open_operators:
            open_operators[-1] += 1
        if token.startswith("["):
            open_operators.append(0)
    assert not open_operators
    return deepest, arguments


def first_expressions(count, rules, seed=1):
    return list(itertools.islice(expressions(random.Random(seed), rules), count))


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(2, 10))
def test_values_and_shape(seed, max_depth, max_arguments):
    tokens = []
    value = grow(random.Random(seed), Rules(max_depth, max_arguments), tokens)
    expression = " ".join(tokens)
    assert value == evaluate(expression)
    depth, arguments = nested(expression)
    assert depth <= max_depth
    assert all(2 <= number <= max_arguments for number in arguments)


@pytest.mark.parametrize(
    ("operator", "arguments", "value"),
    [
        ("[MAX", (2, 9, 4), 9),
        ("[MIN", (2, 9, 4), 2),
        ("[MED", (9, 2, 4), 4),
        ("[MED", (1, 2, 3, 4), 2),  # 2.5, of which the published generator takes the whole part
        ("[MED", (0, 9), 4),
        ("[SM", (9, 9, 3), 1),
    ],
)
def test_operators(operator, arguments, value):
    result = listops.OPERATORS[operator](list(arguments))
    assert result == value and isinstance(result, int)


def test_what_is_drawn_is_as_often_as_published():
    generator, rules, size = random.Random(1), Rules(), 20_000
    drawn = []
    for _ in range(size):
        tokens = []
        grow(generator, rules, tokens, depth=rules.max_depth - 1)  # arguments are digits then
        drawn.append(tokens)
    operations = [tokens for tokens in drawn if len(tokens) > 1]
    assert len(operations) / size == pytest.approx(0.25, abs=0.015)
    for counted, choices in (
        (Counter(tokens[0] for tokens in operations), 4),
        (Counter(len(tokens) - 2 for tokens in operations), 9),
        (Counter(tokens[1] for tokens in operations), 10),
    ):
        expected = len(operations) / choices
        assert len(counted) == choices
        assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in counted.values())


@pytest.mark.parametrize("rules", [SHORT, Rules()])
def test_lengths(rules):
    lengths = [len(expression.split()) for expression, _ in first_expressions(10, rules)]
    assert all(rules.min_length < length < rules.max_length for length in lengths)


def test_no_expression_twice():
    """Of the 400 of four tokens, in random order."""
    rules = Rules(max_depth=2, max_arguments=10, min_length=3, max_length=5)
    found = first_expressions(390, rules)
    assert len({expression for expression, _ in found}) == 390
    with pytest.raises(UserError, match="after 400 expressions no other was found of more than 3 and fewer than 5"):
        list(expressions(random.Random(1), rules))


def test_seeds():
    assert first_expressions(5, SHORT, seed=2) == first_expressions(5, SHORT, seed=2)
    assert first_expressions(5, SHORT, seed=2) != first_expressions(5, SHORT, seed=3)


def generate(folder, *options):
    shape = ["--max-depth=4", "--max-arguments=5", "--min-length=10", "--max-length=40"]
    sizes = ["--train-size=100", "--valid-size=20", "--test-size=30"]
    main([str(folder), *shape, *sizes, *options])
    return {
        name: [(folder / f"{name}.{side}").read_text().splitlines() for side in ("source", "target")] for name in SPLITS
    }


def test_command(tmp_path, capsys):
    splits = generate(tmp_path / "first")
    assert [len(splits[name][0]) for name in SPLITS] == [100, 20, 30]
    for name in SPLITS:
        assert [evaluate(expression) for expression in splits[name][0]] == [int(value) for value in splits[name][1]]
    sources = [expression for name in SPLITS for expression in splits[name][0]]
    assert len(set(sources)) == 150
    commonest, count = Counter(splits["test"][1]).most_common(1)[0]
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("test: 30 expressions"))
    assert said.endswith(f"the commonest value is {commonest} ({count / 30:.1%})")
    assert generate(tmp_path / "again") == splits
    assert generate(tmp_path / "other", "--seed=2") != splits


def test_size_of_training_does_not_change_the_test_set(tmp_path):
    splits, larger = generate(tmp_path / "one"), generate(tmp_path / "two", "--train-size=150")
    assert larger["test"] == splits["test"] and larger["valid"] == splits["valid"]
    assert larger["train"][0][:100] == splits["train"][0]


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--max-depth=1", "--max-depth 1 is not possible: give 2 or more"),
        ("--max-arguments=1", "--max-arguments 1 is not possible: give 2 or more"),
        ("--test-size=0", "--test-size '0' is not a whole number above 0"),
        ("--min-length=39", "after 0 expressions no other was found of more than 39 and fewer than 40 tokens"),
    ],
)
def test_what_cannot_be_made(tmp_path, monkeypatch, option, sentence):
    monkeypatch.setattr(listops, "MOST_FAILURES", 1000)
    with pytest.raises(UserError, match=sentence):
        generate(tmp_path, option)
    assert not list(tmp_path.iterdir())
