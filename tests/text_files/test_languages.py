import json

import pytest

from elseq.errors import UserError
from elseq.options import Loading
from elseq.text_files.formats import JSONL, InputFormat
from elseq.text_files.languages import Pairs
from elseq.text_files.reading import InputLines

FIELDS = InputFormat(JSONL, target_lang_field="to")


@pytest.fixture
def lines(tmp_path):
    def read(*records, form=FIELDS):
        (tmp_path / "input").write_text("".join(f"{json.dumps({'text': 'a', **record})}\n" for record in records))
        return InputLines(tmp_path / "input", form)

    return read


def test_fields_stand_over_the_option(lines):
    pairs = Pairs.of(lines({}, {"to": "fr"}, {"to": "en"}), Loading(source_lang="de", target_lang="en"), None)
    assert pairs.distinct == [("de", "en"), ("de", "fr")]
    assert pairs.of_line.tolist() == [0, 1, 0]
    assert pairs.digest is None


def test_lines_of_text_have_the_languages_of_the_options(lines):
    pairs = Pairs.of(lines({}, {}, form=InputFormat()), Loading(), None)
    assert pairs.distinct == [(None, None)]
    assert pairs.of_line.tolist() == [0, 0]


def test_file(lines, tmp_path):
    (tmp_path / "languages").write_text("de en\nfr en\nde en\n")
    pairs = Pairs.of(lines({}, {}, {}, form=InputFormat(JSONL)), Loading(), tmp_path / "languages")
    assert pairs.distinct == [("de", "en"), ("fr", "en")]
    assert pairs.of_line.tolist() == [0, 1, 0]
    with pytest.raises(UserError, match=r"^line 2 of .*languages: xx is unknown$"), pairs.about(1):
        raise UserError("xx is unknown", "target_lang")


def test_errors_name_the_field_of_the_first_line(lines):
    pairs = Pairs.of(lines({}, {"to": "xx"}), Loading(target_lang="en"), None)
    with pytest.raises(UserError, match=r"^the field 'to' of line 2 of .*input: is unknown$"), pairs.about(1):
        raise UserError("is unknown", "target_lang")
    with pytest.raises(UserError, match="^beam is too large$"), pairs.about(1):  # it is about no language
        raise UserError("is too large", "beam")


def languages(tmp_path, text):
    (tmp_path / "languages").write_text(text)
    return tmp_path / "languages"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("de fr\nde\nde fr\n", "^line 2 of .*languages is not two languages: give those of source and target, such as"),
        ("de fr\n", "^--languages-file .*languages has 1 lines and the input has 3: give a line for each$"),
    ],
)
def test_files_of_languages_that_cannot_be_used(lines, tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence):
        Pairs.of_file(languages(tmp_path, text), lines({}, {}, {}))


@pytest.mark.parametrize(
    ("loading", "form", "option"),
    [
        (Loading(source_lang="de"), InputFormat(), "source_lang"),
        (Loading(), FIELDS, "target_lang_field"),
    ],
)
def test_languages_in_two_ways(lines, loading, form, option):
    with pytest.raises(UserError, match="does not go with --languages-file, which has those of each line") as error:
        Pairs.of(lines({}, form=form), loading, "languages")
    assert error.value.argument == option
