"""What elseq-score's command reads of its files and tells of them; scores are compared in test_score.py."""

from argparse import Namespace
from pathlib import Path

import pytest

from elseq.cli import scores
from elseq.cli.scores import _count_blank, _read, _score_rouge, score
from elseq.errors import UserError

LINES, REFERENCES = ["a b. c d.", "", "e f"], ["a b.<q>c d.", "x", "e f"]


def test_hypotheses_of_a_log(tmp_path):
    (tmp_path / "log").write_text("S-1\tx\nD-1\t-0.1\tsecond\nD-0\t-0.2\tfirst\n")
    assert _read(tmp_path / "log", True) == ["first", "second"]
    assert _read(tmp_path / "log", False)[0] == "S-1\tx"
    (tmp_path / "log").write_text("nothing\n")
    with pytest.raises(UserError, match="log has no line D-...: give the log of a fairseq-generate without --quiet$"):
        _read(tmp_path / "log", True)


def test_blank_lines_are_counted():
    assert _count_blank(["a", "", " \t", "b"]) == 2


def test_sentences_are_divided_at_the_mark_where_a_file_has_it():
    marked, plain = Path("marked"), Path("plain")
    args = Namespace(sentence_separator="<q>", stem=False, references=Path("references"))
    systems, settings, notes = _score_rouge(args, {marked: REFERENCES, plain: LINES}, REFERENCES)
    assert settings["sentence_separators"] == {"marked": "<q>", "plain": None, "references": "<q>"}
    assert "Sentences of marked: divided at <q>." in notes and "Sentences of plain: found by punctuation." in notes
    assert [system.empty for system in systems] == [0, 1]
    _, _, notes = _score_rouge(args, {plain: LINES}, LINES)
    assert "There is no <q> in references: each reference is one sentence." in notes


@pytest.fixture
def args(tmp_path):
    for name, lines in (("one", LINES), ("two", REFERENCES), ("references", REFERENCES)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    files = {"hypotheses": [tmp_path / "one", tmp_path / "two"], "references": tmp_path / "references"}
    how = {"bootstrap": 0, "seed": 1, "setting": [], "log": False, "stem": False, "sentence_separator": None}
    return Namespace(command="rouge", output=None, **files, **how)


def test_a_file_is_given_once(args):
    args.hypotheses *= 2
    with pytest.raises(UserError, match="^a file of hypotheses is given twice: leave one out$"):
        score(args)


def test_files_of_other_lengths(args):
    args.references.write_text("a\n")
    with pytest.raises(UserError, match="references"):
        score(args)


def test_the_file_is_written_where_the_table_cannot_be(args, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise BrokenPipeError

    args.output = tmp_path / "scores.json"
    monkeypatch.setattr(scores, "table", full)
    with pytest.raises(BrokenPipeError):
        score(args)
    assert args.output.exists() and capsys.readouterr().err == f"written: {args.output}\n"
