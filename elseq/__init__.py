"""elseq: faster fairseq generation in less memory, with identical output.

Importing this package (fairseq's --user-dir does) repairs fairseq on today's Python, torch and numpy, and registers the
models, architectures, tasks, subwords and the criterion of distillation.
"""

__version__ = "0.1.0"

import contextlib
import functools
import sys
from pathlib import Path

from elseq import streams
from elseq.errors import install_excepthook
from elseq.imports import ended_by_ctrl_c, uncollected

streams.install()
install_excepthook()  # before `set_up`, which takes seconds, so that Ctrl-C gives no traceback

COMMANDS = ("elseq-benchmark", "elseq-convert", "elseq-generate", "elseq-score", "elseq-user-dir")


@functools.cache
def set_up() -> None:
    """Repair fairseq, and register the models, architectures, tasks, subwords and a criterion. A second call has no
    effect."""
    is_command = _program().startswith(("elseq-", "fairseq-"))
    with uncollected(is_command), ended_by_ctrl_c() if is_command else contextlib.nullcontext():
        from elseq import compat

        compat.apply()

        from elseq import distillation, generator, models, tasks  # noqa: F401
        from elseq.subwords import fairseq_bpe  # noqa: F401


def __getattr__(name: str):
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    set_up()
    from elseq.generator import load

    return load


def _program() -> str:
    """The name of the file that this process was started with."""
    return Path(getattr(sys.modules.get("__main__"), "__file__", None) or "").name


if _program() not in COMMANDS:  # which reads its options first: they need neither torch nor fairseq
    set_up()

__all__ = ["load", "set_up"]
