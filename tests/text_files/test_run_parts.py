"""Parts of a run of elseq-generate: progress, and the languages of lines."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from elseq.errors import UserError
from elseq.options import Loading
from elseq.text_files.formats import JSONL, InputFormat
from elseq.text_files.reading import InputLines
from elseq.text_files.run import Job, Progress, _LogLines, _numbered, _Pairs


@pytest.fixture
def lines(tmp_path):
    """An input of JSON lines, whose languages are in fields."""
    (tmp_path / "input.jsonl").write_text(
        '{"text": "a", "from": "de", "to": "fr"}\n{"text": "b", "to": "en"}\n{"text": "c", "from": "de", "to": "fr"}\n'
    )
    fields = {"source_lang_field": "from", "target_lang_field": "to"}
    return InputLines(str(tmp_path / "input.jsonl"), InputFormat(JSONL, **fields))


@pytest.mark.parametrize("is_first", [True, False])
def test_progress_is_that_of_all_processes(monkeypatch, is_first):
    """The others have finished as many lines as this one each time."""
    stderr, finished = io.StringIO(), []
    monkeypatch.setattr(sys, "stderr", stderr)

    def report(lines):
        finished.append(lines)
        return 2 * sum(finished)

    progress = Progress(20, 4, SimpleNamespace(is_first=is_first, report=report))
    progress.add(3)
    assert (progress.total, progress.before, progress.finished) == (20, 4, 10)
    progress.add(5)
    progress.refresh()
    assert progress.finished == 20 and finished == [3, 5, 0]
    progress.close()
    assert ("20/20" in stderr.getvalue()) == is_first
    assert "\r" not in stderr.getvalue()  # no terminal


def test_each_state_of_a_bar_is_a_line():
    stream = io.StringIO()
    log = _LogLines(stream)
    for text in ("\r 1/2", "", "\n", "\r 2/2 \n"):
        log.write(text)
    log.flush()
    assert stream.getvalue() == "1/2\n2/2\n"


def test_numbers_of_pairs():
    distinct, of_line = _numbered([("a", "b"), ("b", "a"), ("a", "b"), (None, "b")])
    assert distinct == [("a", "b"), ("b", "a"), (None, "b")]
    assert of_line.dtype == np.int64 and of_line.tolist() == [0, 1, 0, 2]


def test_languages_of_fields(lines):
    """A field that is missing is what the option says."""
    pairs = _Pairs.of(Job("model", None, loading=Loading(source_lang="nl")), lines)
    assert pairs.distinct == [("de", "fr"), ("nl", "en")] and pairs.of_line.tolist() == [0, 1, 0]
    assert pairs.file is pairs.digest is None


def test_one_pair_for_all_lines(tmp_path):
    (tmp_path / "input").write_text("a\nb\n")
    pairs = _Pairs.of(Job("model", None, loading=Loading(target_lang="fr")), InputLines(str(tmp_path / "input")))
    assert pairs.distinct == [(None, "fr")] and pairs.of_line.tolist() == [0, 0]


def languages(tmp_path, text):
    (tmp_path / "languages").write_text(text)
    return tmp_path / "languages"


def test_languages_of_a_file(lines, tmp_path):
    path = languages(tmp_path, "de fr\nen\tde\nde  fr\n")
    pairs = _Pairs.of(Job("model", None, languages_file=str(path)), lines)
    assert pairs.distinct == [("de", "fr"), ("en", "de")] and pairs.of_line.tolist() == [0, 1, 0]
    assert pairs.file == path and pairs.digest is not None
    assert _Pairs.of_file(languages(tmp_path, "de fr\nen de\nde en\n"), lines).digest != pairs.digest


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("de fr\nde\nde fr\n", "^line 2 of .*languages is not two languages: give those of source and target, such as"),
        ("de fr\n", "^--languages-file .*languages has 1 lines and the input has 3: give a line for each$"),
    ],
)
def test_files_of_languages_that_cannot_be_used(lines, tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence):
        _Pairs.of_file(languages(tmp_path, text), lines)


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"loading": Loading(source_lang="de")}, "source_lang"),
        ({"input_form": InputFormat(JSONL, target_lang_field="to")}, "target_lang_field"),
    ],
)
def test_languages_in_two_ways(lines, given, option):
    with pytest.raises(UserError, match="does not go with --languages-file, which has those of each line") as error:
        _Pairs.of(Job("model", None, languages_file="languages", **given), lines)
    assert error.value.argument == option


@pytest.mark.parametrize(
    ("number", "argument", "place"),
    [
        (0, "source_lang", "the field 'from' of line 1 of {}"),
        (1, "target_lang", "the field 'to' of line 2 of {}"),
        (1, "source_lang", None),  # it is that of the option
        (0, "beam", None),
    ],
)
def test_errors_name_the_first_line_of_a_pair(lines, number, argument, place):
    pairs = _Pairs.of(Job("model", None, loading=Loading(source_lang="nl")), lines)
    with pytest.raises(UserError) as error, pairs.about(number):
        raise UserError("xx is no language", argument)
    assert error.value.sentence == (f"{place.format(lines.path)}: xx is no language" if place else "xx is no language")
    assert error.value.argument == (None if place else argument)


def test_errors_name_the_line_of_a_file(lines, tmp_path):
    pairs = _Pairs.of_file(languages(tmp_path, "de fr\nxx fr\nxx fr\n"), lines)
    with pytest.raises(UserError, match=rf"^line 2 of {tmp_path}/languages: xx is no language$"), pairs.about(1):
        raise UserError("xx is no language", "source_lang")
