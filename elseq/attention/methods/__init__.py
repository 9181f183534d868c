"""Decoding methods: what a decoder keeps of the positions it has read, and how its attention reads that.

A method says everything about itself; whoever offers, plans, measures or documents methods reads this registry. To add
one, write a `DecodingMethod` and `register` it: it is then a value of --decode-attention.
"""

from elseq.attention.methods.el import EL
from elseq.attention.methods.kv import KV
from elseq.attention.methods.method import AttentionSizes, DecodingMethod

AUTO = "auto"  # in place of a name: whichever method suits the machine and the batch
METHODS: dict[str, DecodingMethod] = {}


def register(method: DecodingMethod) -> DecodingMethod:
    """Offer a method under its name.

    Raises:
        ValueError: the name is taken.
    """
    if method.name in METHODS:
        raise ValueError(f"a decoding method {method.name!r} is registered already")
    METHODS[method.name] = method
    return method


def names() -> tuple[str, ...]:
    """What a decoder can be told."""
    return (AUTO, *METHODS)


def describe() -> str:
    """The help text of an option that takes one of `names`."""
    told = ", ".join(f"{method.help} ({method.name})" for method in METHODS.values())
    return f"how attention is evaluated while decoding: {told}, or whichever suits the machine and the batch ({AUTO})"


for _method in (KV, EL):
    register(_method)

__all__ = ["AUTO", "EL", "KV", "METHODS", "AttentionSizes", "DecodingMethod", "describe", "names", "register"]
