"""Decoding methods: which tensors a decoder keeps for each position, and how attention reads them.

Options, planner, cost estimate and benchmark take the methods from this registry. To add a method, write a
`DecodingMethod` and `register` it. It is then a value of --decode-attention.
"""

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


def names() -> tuple[str, ...]:
    """The values that select a method: `AUTO` and the registered names."""
    return (AUTO, *METHODS)


def describe() -> str:
    """The help text of an option that takes one of `names`."""
    told = ", ".join(f"{method.help} ({method.name})" for method in METHODS.values())
    return f"how attention is evaluated while decoding: {told}, or whichever suits the machine and the batch ({AUTO})"


for _method in (KV, EL):
    register(_method)

__all__ = ["AUTO", "EL", "KV", "METHODS", "AttentionSizes", "DecodingMethod", "describe", "names", "register"]
