"""The types and ranges of values, in every command and in Python.

Outside the ranges of a search's numbers float32 overflows, and the options have no meaning: a length to the power of
400 is infinite, and so is a logit divided by 1e-320.
"""

import math
from collections.abc import Callable
from numbers import Integral

from elseq.errors import UserError

_LARGEST = 2**31 - 1  # limit of integers
_Bounds = tuple[Callable[[float], bool], str]


def _between(low: float, high: float) -> _Bounds:
    return lambda value: low <= value <= high, f"a number from {low:g} to {high:g}"


_COUNT: _Bounds = (lambda value: isinstance(value, int) and value > 0, "a whole number above 0")
_FROM_0: _Bounds = (lambda value: value >= 0, "0 or a number above it")
# fairseq's default is also valid. It often is a number that means "no".
_BOUNDS: dict[str, _Bounds] = {
    "beam": _COUNT,
    "lenpen": _between(-10, 10),
    "unkpen": _between(-1e10, 1e10),
    "temperature": _between(1e-6, 1e6),
    "no_repeat_ngram_size": _FROM_0,
    "min_len": _FROM_0,
    "max_len_a": _between(0, 1e6),
    "sampling_topk": _COUNT,
    "sampling_topp": (lambda value: 0 < value <= 1, "a share above 0 and of at most 1"),
    "diverse_beam_groups": _COUNT,
    "diverse_beam_strength": _between(0, 1e6),
    "diversity_rate": _between(0, 1e6),
    "beam_patience": (lambda value: 0 < value <= 1000, "a number above 0 and of at most 1000"),
}


def of_python(value):
    """A number of numpy as Python's own, which is what configurations take; anything else as it is."""
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () else value


def is_whole(value) -> bool:
    """Whether it is a whole number, which True and False are to Python only."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_flag(name: str, value) -> None:
    """
    Raises:
        UserError: it is neither True nor False.
    """
    if not isinstance(of_python(value), bool):
        raise UserError(f"{value!r} is not possible: give True or False", name)


def is_possible(name: str, value: float) -> bool:
    """Whether a number is in the range of an option, given its Python name."""
    return name not in _BOUNDS or _BOUNDS[name][0](value)


def possible_values(name: str) -> str:
    """The range of such an option, in words."""
    return _BOUNDS[name][1]


def check_bounds(name: str, value, default) -> None:
    """
    Args:
        name: Python name of an option of fairseq's generation.
        value: the given value.
        default: fairseq's default.

    Raises:
        UserError: a number outside the range.
    """
    if value == default or isinstance(value, bool) or not isinstance(value, int | float):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{value} is not a finite number", name)
    if not is_possible(name, value):
        raise UserError(f"{value} is not {possible_values(name)}; leave it out for the default, {default}", name)
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise UserError(f"a whole number of {len(str(abs(value)))} digits is too large; lower it", name)
