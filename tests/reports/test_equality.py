"""Which hypotheses of kv and el differ from stock fairseq's, and by how much."""

import pytest

from elseq.reports import equality
from tests.helpers import table_rows

END = """\
Translated 3 sentences (9 tokens) in 1.0s (3.00 sentences/s, 9.00 tokens/s)
Generate test with beam=4: BLEU4 = 30.10, 60/30/20/10 (BP=1.000)
"""


def write(path, hypotheses):
    path.write_text("".join(f"H-{n}\t{score}\t{pieces}\n" for n, (score, pieces) in hypotheses.items()) + END)


@pytest.fixture
def folder(tmp_path):
    stock = {2: (-0.5, "_a _dog"), 0: (-0.25, "_a _man"), 1: (-1.0, "_it _ra in s")}
    write(tmp_path / "beam4-stock.log", stock)
    write(tmp_path / "beam4-kv.log", {n: (score - n * 1e-3, pieces) for n, (score, pieces) in stock.items()})
    write(tmp_path / "beam4-el.log", stock | {1: (-1.125, "_it _ra in ed"), 0: (-0.2499, "_a _man")})
    return tmp_path


def test_differences(folder, capsys):
    equality.main([str(folder), "beam4"])
    table, _, rest = capsys.readouterr().out.partition("\n\n")
    (row,) = table_rows(table)[2:]
    assert row == ["beam4", "BLEU4 = 30.10", "3/3", "2.0e-03", "2/3", "1.0e-04"]
    assert rest == (
        "Different hypotheses:\n- beam4, el, sentence 1, score -1.2e-01\n"
        "  - stock: _it _ra in s\n  - el: _it _ra in ed\n"
    )


def test_no_difference(folder, capsys):
    (folder / "beam4-el.log").write_bytes((folder / "beam4-stock.log").read_bytes())
    equality.main([str(folder), "beam4"])
    printed = capsys.readouterr().out
    assert printed.count(" 3/3 |") == 2 and " 0.0e+00 |" in printed
    assert printed.endswith("\n\nNo hypothesis differs.\n")


def test_no_hypothesis_is_the_same(folder, capsys):
    write(folder / "beam4-el.log", {number: (-1, "_else") for number in range(3)})
    equality.main([str(folder), "beam4"])
    printed = capsys.readouterr().out
    assert " 0/3 |" in printed and " nan |" in printed and printed.count("- el: _else") == 3
