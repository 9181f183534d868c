#!/usr/bin/env python3
"""Generate ListOps: nested operations on digits and their values, for a model to evaluate.

[MAX 2 9 [MIN 4 7 ] 0 ] is 9. The rules are those of Nangia and Bowman (1804.06028) as the Long Range Arena (2011.04006)
has them, which the defaults are, too: an expression is a digit three times in four, else an operator with 2 to 10
arguments, each an expression again, and always a digit at depth 10. MAX and MIN; MED, the median, rounded down; SM, the
sum modulo 10. Kept are the expressions of more than 500 and fewer than 2,000 tokens; parentheses around every argument,
which the Arena writes and its reader drops, are left out. No expression is written twice.
"""

import argparse
import hashlib
import random
import statistics
from collections import Counter
from typing import NamedTuple

from tqdm import tqdm

from elseq.arguments import Parser, count, read_path
from elseq.errors import UserError, as_option
from elseq.files import make_folder, written_whole

DIGIT_PROBABILITY = 0.75
OPERATORS = {
    "[MAX": max,
    "[MIN": min,
    "[MED": lambda values: int(statistics.median(values)),
    "[SM": lambda values: sum(values) % 10,
}
END = "]"
MOST_FAILURES = 100_000  # expressions in a row that were no new ones of the wanted length


class Rules(NamedTuple):
    """The limits of an expression: its depth, the arguments of an operator, and its length (bounds are exclusive)."""

    max_depth: int = 10
    max_arguments: int = 10
    min_length: int = 500
    max_length: int = 2000


def grow(generator, rules, tokens, depth=1):
    """Append the tokens of a random expression to a list; returns its value."""
    if depth == rules.max_depth or generator.random() < DIGIT_PROBABILITY:
        value = generator.randrange(10)
        tokens.append(str(value))
        return value
    operator = generator.choice(tuple(OPERATORS))
    tokens.append(operator)
    values = [grow(generator, rules, tokens, depth + 1) for _ in range(generator.randint(2, rules.max_arguments))]
    tokens.append(END)
    return OPERATORS[operator](values)


def expressions(generator, rules):
    """Endless pairs of an expression and its value, all different.

    Raises:
        UserError: when there seem to be no more.
    """
    seen, failures = set(), 0
    while failures < MOST_FAILURES:
        tokens = []
        value = grow(generator, rules, tokens)
        failures += 1
        if rules.min_length < len(tokens) < rules.max_length:
            expression = " ".join(tokens)
            fingerprint = hashlib.blake2b(expression.encode(), digest_size=16).digest()
            if fingerprint not in seen:
                seen.add(fingerprint)
                failures = 0
                yield expression, value
    raise UserError(
        f"after {len(seen)} expressions no other was found of more than {rules.min_length} and fewer than "
        f"{rules.max_length} tokens: allow other lengths, more depth or more arguments, or ask for fewer"
    )


def write_split(folder, name, pairs, size):
    """SPLIT.source and SPLIT.target; returns a line that describes them."""
    lengths, values = [], Counter()
    with (
        written_whole(folder / f"{name}.source") as source,
        written_whole(folder / f"{name}.target") as target,
    ):
        for _ in tqdm(range(size), desc=name, unit=" expressions", disable=None):
            expression, value = next(pairs)
            source.write(f"{expression}\n")
            target.write(f"{value}\n")
            lengths.append(expression.count(" ") + 1)
            values[value] += 1
    ((commonest, count),) = values.most_common(1)
    return (
        f"{name}: {size:,} expressions of {min(lengths)} to {max(lengths)} tokens, {statistics.fmean(lengths):.0f} on "
        f"average; the commonest value is {commonest} ({count / size:.1%})"
    )


def main(arguments=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=read_path, help="folder for {train,valid,test}.{source,target}")
    for name, size in (("train", 96_000), ("valid", 2_000), ("test", 2_000)):
        parser.add_argument(f"--{name}-size", type=count, default=size, metavar="EXPRESSIONS")
    for field, default in Rules._field_defaults.items():
        parser.add_argument(as_option(field), type=count, default=default)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    rules = Rules(*(getattr(options, field) for field in Rules._fields))
    # In this order, so that the expressions to be evaluated do not depend on how many there are to learn from.
    sizes = {name: getattr(options, f"{name}_size") for name in ("test", "valid", "train")}
    for name in ("max_depth", "max_arguments"):
        if getattr(options, name) < 2:
            raise UserError(f"{as_option(name)} {getattr(options, name)} is not possible: give 2 or more")
    make_folder(options.output)
    pairs = expressions(random.Random(options.seed), rules)
    for name, size in sizes.items():
        print(write_split(options.output, name, pairs, size))


if __name__ == "__main__":
    main()
