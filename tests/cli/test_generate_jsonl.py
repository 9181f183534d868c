"""elseq-generate --format jsonl, compared with the hypotheses of stock fairseq."""

import json
import math
import random
import sys
from argparse import Namespace

import pytest
import torch

from elseq.generator import TextGenerator
from elseq.text_files.journal import Journal
from tests import helpers
from tests.cli.test_generate_resumed import cut_at_random
from tests.generating import SEARCH, arguments, finished_lines, interrupt_after, read, texts_of

NBEST = 3
JSONL = ["--format=jsonl", f"--nbest={NBEST}", "--with-source", "--with-tokens"]


@pytest.mark.parametrize("attention", ["kv", "el", "stock"])
def test_the_hypotheses_of_stock_fairseq(tiny_translation, run, stock, attention):
    run(*JSONL, f"--attention={attention}", "--max-tokens=1" if attention == "stock" else "--max-tokens=40")
    records = list(map(json.loads, read(run.output)))
    assert [record["id"] for record in records] == list(range(len(records)))
    assert [record["source"] for record in records] == texts_of(tiny_translation)
    for record in records:
        expected = stock.found.get(record["id"], [])[:NBEST]
        assert len(record["hypotheses"]) == len(expected)
        for hypothesis, reference in zip(record["hypotheses"], expected, strict=True):
            assert list(hypothesis) == ["text", "score", "tokens", "log_probs"]
            assert hypothesis["text"] == stock.dictionary.string(reference["tokens"])
            assert hypothesis["tokens"] == [stock.dictionary[token] for token in reference["tokens"].tolist()]
            assert hypothesis["score"] == pytest.approx(reference["score"].item(), abs=1e-4)
            assert hypothesis["log_probs"] == pytest.approx(reference["positional_scores"].tolist(), abs=1e-4)
            total = math.fsum(hypothesis["log_probs"]) / len(hypothesis["tokens"]) ** SEARCH["lenpen"]
            assert hypothesis["score"] == pytest.approx(total, abs=1e-4)


def test_the_best_hypothesis_is_the_line_of_text(run, expected):
    run()
    assert read(run.output) == expected
    run("--format=jsonl", "--overwrite")
    for index, (line, text) in enumerate(zip(read(run.output), expected, strict=True)):
        record = json.loads(line)
        assert list(record) == ["id", "hypotheses"] and record["id"] == index
        assert [list(each) for each in record["hypotheses"]] == ([["text", "score"]] if text else [])
        assert [each["text"] for each in record["hypotheses"]] == ([text] if text else [])


@pytest.mark.parametrize("model", ["bart", "language_model"])
def test_other_models(request, run, model):
    trained = request.getfixturevalue(f"tiny_{model}")
    run(model=trained)
    lines = read(run.output)
    run("--format=jsonl", "--with-tokens", "--overwrite", model=trained)
    for line, text in zip(read(run.output), lines, strict=True):
        for hypothesis in json.loads(line)["hypotheses"]:
            assert hypothesis["text"] == text
            assert len(hypothesis["tokens"]) == len(hypothesis["log_probs"])


def test_any_text(run, monkeypatch):
    """Text is written as it is, a line end in it does not end the line, and JSON has no infinity."""
    text = 'é "日本"\r\n\\\u2028'
    monkeypatch.setattr(TextGenerator, "text", lambda self, tokens: text)
    decode = TextGenerator.decode

    def infinite(*given):
        return [[{**each, "score": torch.tensor(-math.inf)} for each in found] for found in decode(*given)]

    monkeypatch.setattr(TextGenerator, "decode", infinite)
    run("--format=jsonl")
    line = read(run.output)[0]
    assert "é" in line and "日本" in line
    assert json.loads(line) == {"id": 0, "hypotheses": [{"text": text, "score": None}]}


@pytest.fixture
def records(tiny_translation, tmp_path):
    """The texts in JSON with other fields; a blank one, too. `path` is the file."""
    texts = texts_of(tiny_translation)
    records = [
        {"id": f"n{index}", "article": text, "nested": {"é\n": [index, None]}} for index, text in enumerate(texts)
    ]
    path = tmp_path / "input.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return Namespace(path=path, all=records)


FIELD = "--input-field=article"


def test_json_lines_in(run, expected, records):
    """The hypotheses of the same texts in lines, and the other fields."""
    run(*JSONL)
    plain = list(map(json.loads, read(run.output)))
    run(*JSONL, FIELD, "--overwrite", input=records.path)
    for found, line, record in zip(map(json.loads, read(run.output)), plain, records.all, strict=True):
        assert found == {**line, "id": record["id"], "nested": record["nested"]}
    run(FIELD, "--overwrite", input=records.path)
    assert read(run.output) == expected


def test_json_lines_of_a_stream(tiny_translation, run, expected, records):
    command = arguments(tiny_translation, records.path, run.output, FIELD, "--input-format=jsonl")
    place = command.index("--input")
    helpers.run_here([*command[:place], *command[place + 2 :]], input=records.path.read_bytes())
    assert read(run.output) == expected


def test_a_name_that_says_json_lines_and_holds_text(run, expected, source):
    path = source.rename(source.with_suffix(".jsonl"))
    result = run(check=False, input=path)
    assert (
        f"line 1 of {path} is no JSON (Expecting value at column 1): give a JSON object on each line, or "
        in result.stderr
    )
    run("--input-format=text", input=path)
    assert read(run.output) == expected


def test_json_lines_interrupted(run, records):
    options = [*JSONL, FIELD, "--max-tokens=40"]
    run(*options, input=records.path)
    whole = run.output.read_bytes()
    run.output.unlink()
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 4)
        assert run(*options, input=records.path, check=False).returncode == 130
    # The same tokens from another field, and other fields beside the same texts.
    content = records.path.read_text()
    records.path.write_text(content.replace('"article"', '"text"'))
    found = run(*JSONL, "--max-tokens=40", input=records.path, check=False).stderr
    assert "in which the input was another, --input-field was 'article' and not 'text': " in found
    records.path.write_text(content.replace('"n3"', '"n03"'))
    assert "in which the input was another: " in run(*options, input=records.path, check=False).stderr
    records.path.write_text(content)
    run(*options, input=records.path)
    assert run.output.read_bytes() == whole


def test_many_blank_lines(run, source, monkeypatch):
    """They are forced to the disk together."""
    source.write_text("\n" * 2500 + "w1\n")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "publish", lambda self, blank: sys.exit(9))
        assert run("--format=jsonl", check=False).returncode == 9
    assert finished_lines(run.journals) == 4
    run("--format=jsonl")
    records = list(map(json.loads, read(run.output)))
    assert [record["id"] for record in records] == list(range(2501))
    assert [len(record["hypotheses"]) for record in records] == [0] * 2500 + [1]


def test_interrupted(run):
    options = [*JSONL, "--max-tokens=40"]
    run(*options)
    whole = run.output.read_bytes()
    run.output.unlink()
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 4)
        assert run(*options, check=False).returncode == 130
    for other, difference in (
        (JSONL[:-1], "--with-tokens was given and not left out"),
        (["--format=jsonl"], "--nbest was 3 and not 1"),
        ([], "--format was jsonl and not left out"),
    ):
        assert difference in run(*other, "--max-tokens=40", check=False).stderr
    run(*options)
    assert run.output.read_bytes() == whole
    assert not run.journals.exists()


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("seed", range(3))
def test_killed_while_writing(run, monkeypatch, seed):
    """In any record, that of a blank line too, and in the journal of another process."""
    draw = random.Random(seed)
    options = [*JSONL, "--max-tokens=40"]
    run(*options)
    whole = run.output.read_bytes()
    run.output.unlink()
    monkeypatch.setattr(Journal, "publish", lambda self, blank: sys.exit(9))
    assert run(*options, check=False).returncode == 9
    cut_at_random(run.journals / "0.journal", draw)
    (run.journals / "1.journal").write_bytes((run.journals / "0.journal").read_bytes())
    cut_at_random(run.journals / "0.journal", draw)
    monkeypatch.undo()
    run(*options)
    assert run.output.read_bytes() == whole


@pytest.mark.slow
def test_several_processes(tiny_translation, run, source, tmp_path):
    options = [*JSONL, "--max-tokens=40"]
    run(*options)
    whole = run.output.read_bytes()
    output = tmp_path / "several.jsonl"
    torchrun = ["torchrun", "--standalone", "--nproc-per-node=2", "-m", "elseq.cli.generate"]
    command = [*torchrun, *arguments(tiny_translation, source, output, *options)[1:]]
    helpers.run(command)
    assert output.read_bytes() == whole
