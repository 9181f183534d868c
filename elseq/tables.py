"""Markdown tables, and the format and unit of their numbers."""

from collections.abc import Sequence

from tabulate import tabulate

MEBIBYTE = 2**20


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str] | None = None) -> str:
    """A Markdown table whose columns are also aligned as plain text.

    Args:
        headers: headers of the columns.
        rows: the cells of each row, as text.
        left: headers of the left-aligned columns. Default: the first.
    """
    left = headers[:1] if left is None else left
    alignment = ["left" if header in left else "right" for header in headers]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=alignment)


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")
