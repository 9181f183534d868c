"""Decoding methods: which tensors a decoder keeps for each position, and how attention reads them.

Options, planner, cost estimate and benchmark take the methods from this registry. To add a method, write a
`DecodingMethod` and `register` it. It is then a value of --decode-attention.
"""

from typing import NamedTuple

from elseq.attention.methods.el import EL
from elseq.attention.methods.kv import KV
from elseq.attention.methods.method import AttentionSizes, DecodingMethod

AUTO = "auto"  # instead of a name: the method that suits the machine and the batch
METHODS: dict[str, DecodingMethod] = {}


def register(method: DecodingMethod) -> DecodingMethod:
    """Add a method to the registry under its name.

    Raises:
        ValueError: the name is taken.
    """
    if method.name in METHODS:
        raise ValueError(f"a decoding method {method.name!r} is registered already")
    METHODS[method.name] = method
    return method


class Choice(NamedTuple):
    """The methods of a decoder's two kinds of attention."""

    own: DecodingMethod  # self-attention
    cross: DecodingMethod  # attention to the source

    @property
    def name(self) -> str:
        """That of the method, or of both: self-attention+cross-attention."""
        return self.own.name if self.own == self.cross else f"{self.own.name}+{self.cross.name}"

    @classmethod
    def named(cls, name: str) -> "Choice":
        own, _, cross = name.partition("+")
        return cls(METHODS[own], METHODS[cross or own])

    @classmethod
    def without_search(cls, name: str) -> "Choice":
        """Where there is no search by whose sizes auto chooses."""
        return cls.named(KV.name if name == AUTO else name)


def names() -> tuple[str, ...]:
    """The values that select a method: `AUTO` and the registered names."""
    return (AUTO, *METHODS)


def describe() -> str:
    """The help text of an option that takes one of `names`."""
    told = ", ".join(f"{method.help} ({method.name})" for method in METHODS.values())
    return f"how attention is evaluated while decoding: {told}, or whichever suits the machine and the batch ({AUTO})"


for _method in (KV, EL):
    register(_method)

__all__ = ["AUTO", "EL", "KV", "METHODS", "AttentionSizes", "Choice", "DecodingMethod", "describe", "names", "register"]
