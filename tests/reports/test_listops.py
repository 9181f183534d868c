"""Accuracy on ListOps, how two models differ, and what is guessed without following an expression's structure."""

import math

import numpy
import pytest

from elseq.errors import UserError
from elseq.reports import listops
from elseq.reports.listops import Split, paired_difference
from tests.helpers import table_rows

TRAIN_LOG = """\
INFO | fairseq_cli.train | num. shared model params: {parameters} (num. trained: {parameters})
INFO | fairseq_cli.train | {{'decoder_attention_heads': 4, 'encoder_ffn_embed_dim': 8}}
INFO | train_inner | epoch 001: loss=1.5, nll_loss=1.5, wps=2000, num_updates=20
INFO | valid | valid on 'valid' subset | loss 1.2 | nll_loss 1.2 | ppl 2 | num_updates 20
INFO | valid | valid on 'valid' subset | loss 1.1 | nll_loss 1.1 | ppl 2 | num_updates 40
INFO | fairseq.checkpoint_utils | Saved checkpoint /a/checkpoint_best.pt (epoch 2 @ 40 updates, score 1.1)
"""


def test_paired_difference_is_that_of_the_single_differences():
    """Against the mean and standard error of right minus right."""
    generator = numpy.random.default_rng(1)
    baseline, other = generator.random(500) < 0.6, generator.random(500) < 0.55
    differences = other.astype(int) - baseline.astype(int)
    difference = paired_difference(baseline.tolist(), other.tolist())
    assert difference.points == pytest.approx(100 * differences.mean())
    assert difference.error == pytest.approx(100 * 1.959964 * differences.std() / math.sqrt(500), rel=1e-6)
    assert difference.only_baseline == (differences == -1).sum()
    assert difference.only_other == (differences == 1).sum()


@pytest.mark.parametrize(
    ("only_baseline", "only_other", "shown"), [(100, 100, True), (150, 20, True), (300, 20, False), (2600, 2500, False)]
)
def test_margin_counts_the_whole_interval(only_baseline, only_other, shown):
    both = 10_000 - only_baseline - only_other
    baseline = [True] * only_baseline + [False] * only_other + [True] * both
    other = [False] * only_baseline + [True] * only_other + [True] * both
    assert paired_difference(baseline, other).within_margin == shown


def test_accuracy():
    assert listops.accuracy([True] * 50 + [False] * 50) == "50.0% ± 9.8"


def test_guesses():
    train = Split(["[MAX 1 9 ]", "[MAX 9 2 ]", "[MAX 8 1 ]", "[MIN 0 4 ]", "[MIN 0 0 ]"], ["9", "9", "8", "0", "0"])
    test = Split(["[MAX 3 9 ]", "[MAX 2 8 ]", "[MIN 0 1 ]", "[MIN 0 2 ]"], ["9", "8", "0", "0"])
    assert listops.commonest_value(train, test) == 25
    assert listops.commonest_of_operator(train, test) == 75


def test_regression_sees_what_counts_tell():
    """The value of these is the digit that occurs; its place says nothing."""
    sources = [f"[MAX {digit} {digit} ]" for digit in range(10)] * 3
    split = Split(sources, [source.split()[1] for source in sources])
    assert listops.bag_of_words(split, split) == 100
    # Maxima of one operator and minima of the other have the same counts.
    pairs = [(a, b) for a in range(4) for b in range(a)] * 3
    both = Split(
        [f"[MAX {a} {b} ]" for a, b in pairs] + [f"[MIN {a} {b} ]" for a, b in pairs],
        [str(a) for a, b in pairs] + [str(b) for a, b in pairs],
    )
    assert listops.bag_of_words_of_operator(both, both) == 100


def write_model(folder, values):
    folder.mkdir()
    (folder / "train.log").write_text(TRAIN_LOG.format(parameters="1,234"))
    lines = "".join(f"H-{number}\t-0.1\t{value}\nD-{number}\t-0.1\t{value}\n" for number, value in enumerate(values))
    (folder / "test.log").write_text(
        lines + "Translated 4 sentences (8 tokens) in 1.0s (4.00 sentences/s, 8 tokens/s)\n"
    )
    return str(folder)


@pytest.fixture
def corpus(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.source").write_text("[MAX 1 9 ]\n[MAX 2 8 ]\n[MIN 0 4 ]\n[MIN 3 4 ]\n")
        (tmp_path / f"{name}.target").write_text("9\n8\n0\n3\n")
    return tmp_path


def test_report(corpus, capsys):
    folders = [write_model(corpus / "full", "9803"), write_model(corpus / "top-16", "9907")]
    curves = corpus / "curves.png"
    listops.main([str(corpus), *folders, "--curves", str(curves)])
    output = capsys.readouterr().out
    lines = table_rows(output)
    assert lines[0] == ["", "full", "top-16"]
    rows = {first: cells for first, *cells in lines}
    assert rows["parameters"] == ["1,234", "1,234"]
    assert rows["best validation loss"] == ["1.100", "1.100"]
    assert rows["accuracy on 4 test expressions"] == ["100.0% ± 0.0", "50.0% ± 49.0"]
    assert rows["... on the 2 that are a MIN"] == ["100.0% ± 0.0", "50.0% ± 69.3"]
    assert rows["the commonest value"] == ["25.0%"]
    assert "top-16 against full: -50.00 points" in output
    assert "(2 expressions were right with full only, 0 with top-16 only)" in output
    assert "is not shown" in output
    assert curves.read_bytes().startswith(b"\x89PNG")


def test_unfinished_evaluation_is_refused(corpus):
    folder = write_model(corpus / "full", "980")
    with pytest.raises(UserError, match="full/test.log: of 4 expressions 3 were evaluated"):
        listops.main([str(corpus), folder])
