"""The numbers that a search takes, and how others are refused."""

import math
from dataclasses import fields

import numpy as np
import pytest
from fairseq.dataclass.configs import GenerationConfig

from elseq.bounds import check_bounds, check_flag, is_whole
from elseq.errors import UserError


@pytest.mark.parametrize("field", fields(GenerationConfig), ids=lambda field: field.name)
def test_every_default_of_fairseq_is_taken(field):
    check_bounds(field.name, field.default, field.default)


@pytest.mark.parametrize(
    "name, value",
    [("lenpen", -10), ("lenpen", 10.0), ("temperature", 1e-6), ("sampling_topp", 1.0), ("min_len", 0), ("beam", True)],
)
def test_numbers_within_the_bounds(name, value):
    check_bounds(name, value, None)


@pytest.mark.parametrize(
    "name, value, sentence",
    [
        ("lenpen", 10.5, "lenpen 10.5 is not a number from -10 to 10; leave it out for the default, 1"),
        ("sampling_topp", 0.0, "sampling_topp 0.0 is not a share above 0 and of at most 1; leave it out"),
        ("lenpen", math.nan, "lenpen nan is not a finite number"),
        ("max_len_a", math.inf, "max_len_a inf is not a finite number"),
        ("beam", 0, "beam 0 is not a whole number above 0"),
        ("beam", 2.5, "beam 2.5 is not a whole number above 0"),
        ("max_len_b", 2**31, "max_len_b a whole number of 10 digits is too large; lower it"),
    ],
)
def test_numbers_beyond_them(name, value, sentence):
    with pytest.raises(UserError) as error:
        check_bounds(name, value, 1)
    assert str(error.value).startswith(sentence)
    assert error.value.argument == name


def test_true_and_false_are_no_numbers():
    for value, expected in ((0, True), (-3, True), (np.int64(3), True), (True, False), (2.0, False), ("2", False)):
        assert is_whole(value) is expected


@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_what_is_no_flag(value):
    with pytest.raises(UserError, match="^truncate .* is not possible: give True or False$"):
        check_flag("truncate", value)
