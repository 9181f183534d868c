"""Markdown tables, and the format and unit of their numbers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tabulate import tabulate

MEBIBYTE = 2**20
GIBIBYTE = 2**30


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


class Column(NamedTuple):
    """A figure of rows, which are objects of any class."""

    heading: str
    value: Callable[[Any], Any]  # of a row; None: it has none
    write: Callable[[Any], str] = number


def markdown_of(rows: Sequence, columns: Sequence[Column], left: Sequence[str] | None = None) -> str:
    """A Markdown table of the rows, without columns of which no row has a value. left: as for `markdown`."""
    shown = [column for column in columns if any(column.value(row) is not None for row in rows)]
    cells = [["-" if (value := column.value(row)) is None else column.write(value) for column in shown] for row in rows]
    return markdown([column.heading for column in shown], cells, left)
