"""Documents of one's own as a corpus."""

import gzip
import json

import pytest
from documents import main

from elseq.errors import UserError


def lines(split, count):
    rows = [{"document": f"{split}  {number}.\nMore.", "summary": f"A {number}.\nB."} for number in range(count)]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    for split, count in {"train": 8, "valid": 3}.items():
        (folder / f"{split}.jsonl").write_text(lines(split, count))
    with gzip.open(folder / "test.jsonl.gz", "wt") as file:
        file.write(lines("test", 4))
    return folder


def read(path):
    return path.read_text().splitlines()


def test_documents_and_summaries_are_lines(folder, tmp_path, capsys):
    main([str(folder), str(tmp_path / "corpus"), "--size=train=2"])
    assert "train: 8 documents, 2 written" in capsys.readouterr().out
    assert read(tmp_path / "corpus" / "train.source") == ["train 0. More.", "train 4. More."]
    assert read(tmp_path / "corpus" / "test.target") == [f"A {number}. B." for number in range(4)]
    assert len(read(tmp_path / "corpus" / "valid.source")) == 3


def test_splits_that_are_not_needed_may_be_missing(folder, tmp_path):
    (folder / "train.jsonl").unlink()
    main([str(folder), str(tmp_path / "corpus"), "--splits=test"])
    assert {path.stem for path in (tmp_path / "corpus").iterdir()} == {"test"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "^.*train.jsonl is missing; put it there, or name other --splits"),
        (["--splits=valid,tests"], "^--splits 'tests' is unknown; choose from train, valid, test"),
        (["--splits=valid"], "^line 4 of .*valid.jsonl has no text 'document'"),
    ],
)
def test_refused_in_one_sentence(folder, tmp_path, options, sentence):
    (folder / "train.jsonl").unlink()
    with (folder / "valid.jsonl").open("a") as file:
        file.write('{"text": "x"}\n')
    with pytest.raises(UserError, match=sentence):
        main([str(folder), str(tmp_path / "corpus"), *options])
    assert not list(tmp_path.glob("corpus/*"))


def test_folder_that_is_read_is_not_written(folder):
    with pytest.raises(UserError, match=f"^{folder} is the folder that is read from"):
        main([str(folder), str(folder)])
