"""elseq: faster fairseq generation in less memory, with identical output.

Importing this package (fairseq's --user-dir does) repairs fairseq on today's Python, torch and numpy, and registers the
models, architectures, tasks and subwords.
"""

__version__ = "0.1.0"

from elseq import streams
from elseq.errors import install_excepthook

streams.install()
install_excepthook()  # before the imports below, which take seconds, so that Ctrl-C gives no traceback

from elseq import compat  # noqa: E402

compat.apply()

from elseq import models, tasks  # noqa: E402, F401
from elseq.generator import load  # noqa: E402
from elseq.subwords import fairseq_bpe  # noqa: E402, F401

__all__ = ["load"]
