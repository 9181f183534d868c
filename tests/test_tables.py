"""Tables as Markdown and as text."""

import re

import pytest

from elseq.tables import Column, markdown, markdown_of, number
from tests.helpers import table_rows


def test_columns_are_aligned_in_the_text_and_in_markdown():
    table = markdown(["name", "value"], [["a", "1"], ["longer", "1.50"]])
    lines = table.splitlines()
    assert len(set(map(len, lines))) == 1
    assert re.sub("-+", "-", lines[1]) == "|:-|-:|"
    assert table_rows(table)[3] == ["longer", "1.50"]  # figures stay as written


def test_columns_on_the_left():
    assert re.sub("-+", "-", markdown(["a", "b"], [["1", "2"]], left=["b"]).splitlines()[1]) == "|-:|:-|"


def test_columns_of_rows():
    """Without those of which no row has a value."""
    columns = [Column("number", lambda row: row, "{:+d}".format), Column("none", lambda row: None)]
    columns += [Column("half", lambda row: row / 2 if row else None)]
    lines = table_rows(markdown_of([0, 3], columns))
    assert lines[0] == ["number", "half"] and lines[2:] == [["+0", "-"], ["+3", "1.50"]]


@pytest.mark.parametrize(
    "value, text",
    [(1234.5, "1,234"), (100, "100"), (99.96, "100"), (1.2345, "1.23"), (0.5, "0.500"), (8, "8.00"), (0, "0.00")],
)
def test_number(value, text):
    assert number(value) == text
