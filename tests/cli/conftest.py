"""Models of several languages."""

from tests.multilingual import family, text  # noqa: F401
