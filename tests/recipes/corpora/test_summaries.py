"""CNN/DailyMail and XSum as corpora: what becomes a sample, what is left out, how a part of a corpus is shared out."""

import gzip
import json
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from summaries import CORPORA, main, make_samples

from elseq.errors import UserError


def row(article="One  two.\n\nThree.", highlights="A b .\nC d .", **others):
    return {"article": article, "highlights": highlights, **others}


@pytest.fixture
def samples_of(tmp_path):
    def samples_of(*rows, words=None):
        path, faults = tmp_path / "rows.jsonl", Counter()
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return list(make_samples(path, CORPORA["cnn_dm"], words, faults)), faults

    return samples_of


def test_article_summary_and_reference_are_lines(samples_of):
    (sample,), faults = samples_of(row(id="1"))
    assert sample == ("One two. Three.", "A b . C d .", "A b .<q>C d .")
    assert faults["articles with a line break inside joined"] == 1


def test_articles_are_cut(samples_of):
    assert samples_of(row(), words=2)[0][0].source == "One two."


def test_faulty_rows_are_left_out_and_counted(samples_of):
    rows = [
        row(id="1"),
        row(id="1"),
        row(" \n", id="2"),
        row(highlights="\n \n", id="3"),
        row(None, id="4"),
        row(id="5"),
    ]
    samples, faults = samples_of(*rows)
    assert len(samples) == 2
    assert faults["with an empty article or summary left out"] == 3
    assert faults["whose id was seen before left out"] == 1


def test_rows_without_ids_are_not_taken_for_duplicates(samples_of):
    assert len(samples_of(row(), row())[0]) == 2


@pytest.mark.parametrize(
    ("wrong", "lacking"),
    [
        ({"text": "x"}, "article"),
        (["x"], "article"),
        ({"document": "x", "summary": "y"}, "article"),
        (row(article=5), "article"),
        ({"article": "x", "summary": "y"}, "highlights"),
    ],
)
def test_other_rows_are_refused_by_their_place(samples_of, wrong, lacking):
    with pytest.raises(UserError, match=rf"^line 3 of .*/rows\.jsonl has no text '{lacking}': .*; mend it, or fetch"):
        samples_of(row(), row(), wrong)


def test_ids_of_any_kind(samples_of):
    samples, faults = samples_of(row(id=["a", 1]), row(id=["a", 1]), row(id=["a", 2]))
    assert len(samples) == 2 and faults["whose id was seen before left out"] == 1


def write_rows(path, numbers, **fields):
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt") as file:
        for number in numbers:
            file.write(json.dumps({"document": f"document {number}", "summary": f"summary {number}"} | fields) + "\n")


def read(folder, name):
    return (folder / name).read_text().splitlines()


@pytest.fixture
def whole(tmp_path):
    for name, numbers in {"train": range(40), "validation": range(40, 50), "test": range(50, 60)}.items():
        write_rows(tmp_path / "xsum" / f"{name}.jsonl.gz", numbers)
    return tmp_path / "xsum"


def test_commands(whole, tmp_path, capsys):
    main(["fetch", "xsum", str(tmp_path / "raw"), "--from", str(whole)])
    main(["prepare", "xsum", str(tmp_path / "raw"), str(tmp_path / "corpus"), "--size", "test=5"])
    printed = capsys.readouterr().out
    assert "train: 40 samples, of 204045 that are published" in printed
    assert "test: 5 written" in printed
    assert read(tmp_path / "corpus", "train.source") == [f"document {number}" for number in range(40)]
    assert read(tmp_path / "corpus", "test.target") == [f"summary {number}" for number in range(50, 60, 2)]


def test_missing_splits_are_refused_or_cut_from_another(whole, tmp_path):
    for name in ("train", "validation"):
        (whole / f"{name}.jsonl.gz").unlink()
    command = ["prepare", "xsum", str(whole), str(tmp_path / "corpus")]
    with pytest.raises(UserError, match="lacks train, valid; give the whole corpus, or SMALL=1"):
        main(command)
    main([*command, "--share", "--size", "valid=2,test=2"])
    splits = [read(tmp_path / "corpus", f"{split}.source") for split in ("train", "valid", "test")]
    assert [len(split) for split in splits] == [5, 2, 2]
    assert len(set().union(*splits)) == 9  # nothing is in two of them


def test_folder_without_the_corpus(tmp_path):
    with pytest.raises(UserError, match="has none of train.jsonl, validation.jsonl and test.jsonl"):
        main(["fetch", "xsum", str(tmp_path / "raw"), "--from", str(tmp_path)])


def test_lines_that_are_no_json(whole, tmp_path):
    with gzip.open(whole / "test.jsonl.gz", "at") as file:
        file.write("{\n")
    command = ["fetch", "xsum", str(tmp_path / "raw"), "--from", str(whole)]
    with pytest.raises(UserError, match=f"^line 11 of {whole}/test.jsonl.gz is no JSON .Expecting property name"):
        main(command)
    assert not (tmp_path / "raw" / "test.jsonl.gz").exists()
    (whole / "test.jsonl.gz").write_bytes((whole / "train.jsonl.gz").read_bytes()[:-20])
    with pytest.raises(UserError, match="test.jsonl.gz cannot be read after line .* ended before"):
        main(command)
    content = bytearray((whole / "train.jsonl.gz").read_bytes())
    content[60:70] = bytes(10)
    (whole / "test.jsonl.gz").write_bytes(content)
    with pytest.raises(UserError, match="test.jsonl.gz cannot be read after line .*; fetch it again"):
        main(command)
    (whole / "test.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n"\xff"\n'))
    with pytest.raises(UserError, match="^line 2 of .*test.jsonl.gz is not valid UTF-8"):
        main(command)


@pytest.mark.parametrize("command", ["fetch", "prepare"])
@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            '{"document": "a \\ud83d b", "summary": "c"}',
            r"^line 3 of {} holds half a character \(the lone surrogate \\ud83d\): mend it, or fetch",
        ),
        (
            '{"document": "a", "summary": "c", "id": "\\uDE00"}',
            r"^line 3 of {} holds half a character \(the lone surrogate \\ude00\)",
        ),
        ("[" * 100_000, "^line 3 of {} is no JSON .maximum recursion depth exceeded"),
    ],
)
def test_lines_that_cannot_be_written(whole, tmp_path, command, line, sentence):
    good = '{"document": "a \\ud83d\\ude00 b", "summary": "\\u00e9"}\n'
    (whole / "train.jsonl.gz").write_bytes(gzip.compress(f"{good}{good}{line}\n".encode()))
    folders = [whole, tmp_path / "new"] if command == "prepare" else [tmp_path / "new", "--from", whole]
    with pytest.raises(UserError, match=sentence.format(whole / "train.jsonl.gz")):
        main([command, "xsum", *map(str, folders)])
    assert not list(tmp_path.glob("new/*"))


def test_folder_that_is_read_is_not_written(whole):
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    with pytest.raises(UserError, match=f"^{whole} is the folder that is read from; name another one to write to"):
        main(["fetch", "xsum", str(whole), "--from", str(whole)])
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before


def test_folder_that_cannot_be_made(whole):
    with pytest.raises(UserError, match="test.jsonl.gz cannot be made"):
        main(["prepare", "xsum", str(whole), str(whole / "test.jsonl.gz")])


def test_split_without_an_example(whole, tmp_path):
    write_rows(whole / "test.jsonl.gz", range(3), summary="")
    with pytest.raises(UserError, match="^test has no example in which nothing is missing"):
        main(["prepare", "xsum", str(whole), str(tmp_path / "corpus")])


def test_download(tmp_path, monkeypatch):
    """By the package `datasets`; here, by what stands for it."""
    asked = []

    def load_dataset(**arguments):
        asked.append(arguments)
        return {name: [{"id": name, "article": f"Of {name}.", "highlights": "A .\nB ."}] for name in ("train", "test")}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    main(["fetch", "cnn_dm", str(tmp_path / "raw")])
    assert asked == [{"path": "abisee/cnn_dailymail", "name": "3.0.0"}]
    with gzip.open(tmp_path / "raw" / "test.jsonl.gz", "rt") as file:
        assert json.loads(file.read()) == {"id": "test", "article": "Of test.", "highlights": "A .\nB ."}
    assert not (tmp_path / "raw" / "validation.jsonl.gz").exists()


def test_download_that_fails(tmp_path, monkeypatch):
    def load_dataset(**arguments):
        raise ConnectionError("no\nroute")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UserError, match=r"EdinburghNLP/xsum cannot be loaded \(no route\); give a folder"):
        main(["fetch", "xsum", str(tmp_path / "raw")])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'elseq\[data\]'"):
        main(["fetch", "xsum", str(tmp_path / "raw")])


@pytest.mark.parametrize("size", ["test", "test=0", "tests=3", "test=x"])
def test_sizes(whole, tmp_path, size):
    with pytest.raises(UserError, match=f"^--size '{size}' is not SPLIT=N with a split of train, valid, test"):
        main(["prepare", "xsum", str(whole), str(tmp_path / "corpus"), "--size", size])


def test_words(whole, tmp_path):
    with pytest.raises(UserError, match="^--article-words '-5' is not a whole number above 0"):
        main(["prepare", "xsum", str(whole), str(tmp_path / "corpus"), "--article-words=-5"])
