"""The published scores."""

from pathlib import Path

import pytest

from elseq.scoring.published import PUBLISHED, settings
from elseq.scoring.report import HEADINGS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "scores.md"


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_documented(name):
    published = PUBLISHED[name]
    (row,) = [line for line in DOCUMENT.read_text(encoding="utf-8").split("\n") if line.startswith(f"| `{name}` |")]
    assert f"| {published.examples:,} |" in row
    assert f"| {', '.join(f'{score:.2f}' for score in published.scores.values())} |" in row
    assert published.scores.keys() <= HEADINGS.keys()


def test_each_belongs_to_one_command():
    assert sorted(settings("rouge") + settings("qg")) == sorted(PUBLISHED)
