"""Scores of hypotheses, by hand."""

from types import SimpleNamespace

import pytest

from elseq.benchmark.models import checkpoint_model
from elseq.benchmark.scorer import Scorer
from elseq.errors import UserError
from tests.interop.hugging_face.making import BART_NAMES, convert, load, make_bart


@pytest.fixture
def files(tmp_path):
    """Words a to f are 4 to 9."""
    (tmp_path / "dict.txt").write_text("".join(f"{word} 1\n" for word in "abcdef"))
    (tmp_path / "source").write_text("x\ny\n")
    (tmp_path / "reference").write_text("a b c d f\na b c\n")
    return tmp_path


@pytest.fixture
def model_file(files):
    dictionary = str(files / "dict.txt")
    return SimpleNamespace(
        target_dictionary=dictionary, data=str(files), path=dictionary, is_language_model=False, symbols_of_language=()
    )


def test_words_of_the_dictionary(model_file, files):
    """Of words 7 of 8, of pairs 5 of 6, of threes 3 of 4, of fours 1 of 2."""
    scorer = Scorer.read(model_file, str(files / "source"), str(files / "reference"), "bleu")
    found = scorer.score([[4, 5, 6, 7, 8], [4, 5, 6]])
    assert found == {"sacreBLEU": pytest.approx(100 * (7 / 8 * 5 / 6 * 3 / 4 * 1 / 2) ** (1 / 4))}
    [how] = scorer.how()
    assert how.startswith("sacreBLEU nrefs:1|")
    rouge = Scorer.read(model_file, str(files / "source"), str(files / "reference"), "rouge")
    assert rouge.score([[4, 5, 6, 7, 8], [4, 5, 6]])["ROUGE-1"] == pytest.approx((80 + 100) / 2)


def test_text_where_there_are_subwords(files):
    make_bart(files / "theirs", BART_NAMES)
    convert(files / "theirs", files / "ours")
    text = "the inner thin other"
    (files / "source").write_text("x\n")
    (files / "reference").write_text(f"{text}\n")
    model_file = checkpoint_model(files / "ours", None)
    scorer = Scorer.read(model_file, str(files / "source"), str(files / "reference"), "bleu")
    loaded = load(files / "ours")
    words = loaded.bpe.encode(text).split()
    assert len(words) > 4
    numbers = [loaded.task.target_dictionary.index(word) for word in words]
    assert scorer.score([numbers]) == {"sacreBLEU": pytest.approx(100)}


def test_files_that_cannot_be_used(model_file, files):
    with pytest.raises(UserError, match="^reference is of sources from a file: name theirs too$"):
        Scorer.read(model_file, None, str(files / "reference"), "bleu")
    (files / "source").write_text("x\n")
    with pytest.raises(UserError, match="reference has 2 examples and .*source has 1"):
        Scorer.read(model_file, str(files / "source"), str(files / "reference"), "bleu")
