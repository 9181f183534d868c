"""What stands in the way of an export, and the program's result; models and words are compared in test_measure.py."""

import json
import sys
from types import SimpleNamespace

import pytest

from elseq.benchmark import export as program
from elseq.benchmark.export import _check_symbols, main
from elseq.errors import UserError


def task(multilingual_name=None, **options):
    return SimpleNamespace(multilingual_name=multilingual_name, options=SimpleNamespace(**options))


@pytest.mark.parametrize("engine", ["ctranslate2", "transformers"])
def test_symbols_of_languages(engine):
    _check_symbols(engine, task(source_end=None))
    _check_symbols(engine, task())
    with pytest.raises(UserError, match="^only the task mine knows where the symbols of its languages stand$"):
        _check_symbols(engine, task("mine"))


def test_a_word_at_the_end_of_a_source():
    _check_symbols("transformers", task(source_end="en_XX"))
    with pytest.raises(UserError, match="^it has no --source-end, which is en_XX here$"):
        _check_symbols("ctranslate2", task(source_end="en_XX"))


@pytest.mark.parametrize(
    ("error", "result"),
    [(None, {}), (UserError("GPT-2's tables are tied"), {"failure": "GPT-2's tables are tied"})],
)
def test_the_program(monkeypatch, tmp_path, error, result):
    def export(engine, model_file, sources, folder):
        assert (engine, model_file.name, sources, str(folder)) == ("ctranslate2", "model", [[5, 2]], "folder")
        if error is not None:
            raise error

    names = "name path data dictionary target_dictionary is_language_model special_positions source_positions"
    model_file = dict.fromkeys([*names.split(), "target_positions"], 0) | {"name": "model"}
    request = {"engine": "ctranslate2", "model_file": model_file, "sources": [[5, 2]], "exported": "folder"}
    (tmp_path / "request").write_text(json.dumps(request))
    monkeypatch.setattr(program, "export", export)
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path / "request"), str(tmp_path / "result")])
    main()
    assert json.loads((tmp_path / "result").read_text()) == result
