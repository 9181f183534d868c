"""Fixtures of elseq-generate."""

from tests.generating import expected, run, source, stock  # noqa: F401
