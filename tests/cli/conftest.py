"""Fixtures of elseq-generate, and models of several languages."""

from tests.generating import expected, run, source, stock  # noqa: F401
from tests.multilingual import family, text  # noqa: F401
