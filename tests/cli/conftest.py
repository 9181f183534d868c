"""Fixtures of elseq-generate."""

from tests.generating import expected, run, source  # noqa: F401
