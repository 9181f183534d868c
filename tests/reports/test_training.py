"""What is made of the logs of trainings."""

import re
from pathlib import Path

import pytest

from elseq.errors import UserError
from elseq.reports import training
from elseq.reports.logs import Point, TrainingLog
from elseq.reports.training import Run, Uptraining
from tests.helpers import table_rows
from tests.reports.test_logs import LOG


def test_spread():
    assert training.spread([1.0], "{:.2f}") == training.spread([1.0, 1.0], "{:.2f}") == "1.00"
    assert training.spread([1.0, 3.0], "{:.2f}") == "2.00 ± 1.41"
    assert training.spread([1.0, 3.0], "{:+.2f}") == "+2.00 ± 1.41"
    assert training.spread([0.25, 0.75], "x {:.2f}") == "x 0.50 ± 0.35"


def make_run(loss, bleu, parameters=1000, state=800):
    point = Point(60, loss, loss - 1)
    return Run(TrainingLog(8, 512, parameters, [point], [point], point, 2000.0), bleu, state)


def by_first(table):
    """Cells by the first of their row."""
    return {first: cells for first, *cells in table_rows(table)}


def test_attention_table_compares_with_the_first_model():
    models = {"multi-head": {1: make_run(4.0, 30.0)}, "multi-query": {1: make_run(4.5, 29.5, 1001, 100)}}
    rows = by_first(training.attention_table(models))
    assert rows[""] == ["multi-head", "multi-query"]
    assert rows["parameters"] == ["1,000", "1,001"]
    assert rows["best validation loss"] == ["4.000", "4.500 (+0.500)"]
    assert rows["its perplexity"] == ["8.00", "11.31 (+3.31)"]
    assert rows["sacreBLEU"] == ["30.00", "29.50 (-0.50)"]
    assert rows["decoding state, bytes"] == ["800", "100 (x 0.12)"]


def test_seeds_are_compared_one_by_one():
    models = {
        "multi-head": {1: make_run(4.0, 30.0), 2: make_run(5.0, 31.0)},
        "multi-query": {1: make_run(4.5, 30.0), 2: make_run(5.5, 31.5)},
    }
    rows = by_first(training.attention_table(models))
    assert rows["best validation loss"] == ["4.500 ± 0.707", "5.000 ± 0.707 (+0.500)"]
    assert rows["sacreBLEU"] == ["30.50 ± 0.71", "30.75 ± 1.06 (+0.25 ± 0.35)"]


def test_models_of_different_size_are_not_compared():
    training.check_equal_parameters({"a": {1: make_run(4, 30, 10_000)}, "b": {1: make_run(4, 30, 10_010)}})
    with pytest.raises(UserError, match="by more than 0.1% and cannot be compared: a 10,000, b 10,011 parameters"):
        training.check_equal_parameters({"a": {1: make_run(4, 30, 10_000)}, "b": {1: make_run(4, 30, 10_011)}})


def test_folders_by_model_and_seed():
    names = ["w/multi-head", "w/multi-query", "w/multi-head-seed12", "w/multi-query-seed12"]
    grouped = training.group_by_model([Path(name) for name in names])
    assert list(grouped) == ["multi-head", "multi-query"]
    assert grouped["multi-head"] == {1: Path("w/multi-head"), 12: Path("w/multi-head-seed12")}
    with pytest.raises(UserError, match="every model needs the same seeds"):
        training.group_by_model([Path(name) for name in names[:3]])


def test_score():
    references = ["a man in an orange hat .", "a dog runs ."]
    bleu, signature = training.score(dict(enumerate(references)), references)
    assert bleu == pytest.approx(100)
    assert "tok:13a" in signature and "version:" in signature
    with pytest.raises(UserError, match="has 2 sentences, of which 1 were translated"):
        training.score({0: references[0]}, references)


def write_run(folder, kv_heads, loss):
    folder.mkdir()
    log = LOG.replace("'num_kv_heads': 2", f"'num_kv_heads': {kv_heads}").replace("loss 8.1", f"loss {loss}")
    (folder / "train.log").write_text(log)
    (folder / "test.log").write_text(
        "H-1\t-0.5\ta dog runs .\nD-1\t-0.5\ta dog runs .\nH-0\t-0.5\ta man .\nD-0\t-0.5\ta man .\n"
        "INFO:fairseq_cli.generate:Translated 2 sentences (7 tokens) in 1.0s (2.00 sentences/s, 7.00 tokens/s)\n"
        f"INFO:elseq.generation.search:decoding state: peak {kv_heads * 100} bytes\n"
    )
    return str(folder)


def test_attention_report(tmp_path, capsys):
    folders = [write_run(tmp_path / name, heads, 7 + heads / 10) for name, heads in (("multi-head", 8), ("mq", 1))]
    (tmp_path / "test.target").write_text("a man .\na dog runs .\n")
    references = ["--references", str(tmp_path / "test.target")]
    training.main(["attention", *folders, *references, "--curves", str(tmp_path / "curves.png")])
    rows = by_first(capsys.readouterr().out)
    assert rows["key/value heads"] == ["8", "1"]
    assert rows["best validation loss"][1] == "7.100 (-0.700)"
    assert rows["decoding state, bytes"][1] == "100 (x 0.12)"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_share_that_is_recovered():
    assert training.recovered(4.0, 8.0, 5.0) == 0.75
    assert training.recovered(4.0, 8.0, 3.0) == 1.25
    assert training.recovered(4.0, 4.0, 4.0) is None
    assert training.recovered(4.0, 4.03, 4.5) is None  # a share of so little says nothing


def test_uptraining_table():
    methods = {
        "multi-head": {1: Uptraining(4.0, None, [Point(5, 3.9, 2.9), Point(10, 3.8, 2.8)])},
        "mean": {1: Uptraining(4.0, Point(0, 8.0, 7.0), [Point(5, 5.0, 4.0), Point(10, 4.5, 3.5)])},
    }
    rows = by_first(training.uptraining_table(methods, at=[5, 10], total=100))
    assert rows[""][2:] == ["after 5 updates (5%)", "after 10 updates (10%)", "recovered at 5", "recovered at 10"]
    assert rows["multi-head"] == ["4.000", "-", "3.900", "3.800", "-", "-"]
    assert rows["mean"] == ["4.000", "8.000", "5.000", "4.500", "75.0%", "87.5%"]
    with pytest.raises(UserError, match="no validation after 7 updates"):
        training.uptraining_table(methods, at=[7], total=100)


def test_uptraining_table_of_several_seeds():
    seeds = {
        seed: Uptraining(4.0, Point(0, converted, 7.0), [Point(10, loss, 3.5)])
        for seed, converted, loss in ((1, 8.0, 4.5), (2, 6.0, 4.25))
    }
    rows = by_first(training.uptraining_table({"mean": seeds}, at=[10], total=100))
    assert rows["mean"] == ["4.000", "7.000 ± 1.414", "4.375 ± 0.177", "87.5%"]


def test_uptraining_report(tmp_path, capsys):
    validation = "| INFO | valid | valid on 'valid' subset | loss {} | nll_loss 3.41 | ppl 10.63\n"
    (tmp_path / "multi-head.log").write_text(validation.format(7.1))
    for name in ("multi-head", "mean"):
        write_run(tmp_path / name, 1, 8.1)
    (tmp_path / "mean" / "converted.log").write_text(validation.format(9.1))
    curves = tmp_path / "curves.png"
    updates = ["--at", "50", "60", "--of", "600"]
    training.main(["uptraining", str(tmp_path), "multi-head", "mean", *updates, "--curves", str(curves)])
    output = capsys.readouterr().out
    rows = by_first(output)
    assert rows["mean"] == ["7.100", "9.100", "8.100", "8.300", "50.0%", "40.0%"]
    assert re.search("A row without conversion is the multi-head model itself", output)
    assert curves.read_bytes().startswith(b"\x89PNG")

    (tmp_path / "multi-head-seed2.log").write_text(validation.format(7.3))
    for name in ("multi-head-seed2", "mean-seed2"):
        write_run(tmp_path / name, 1, 8.1)
    (tmp_path / "mean-seed2" / "converted.log").write_text(validation.format(9.3))
    seeds = ["--seeds", "1", "2"]
    training.main(["uptraining", str(tmp_path), "multi-head", "mean", *seeds, *updates, "--curves", str(curves)])
    output = capsys.readouterr().out
    assert by_first(output)["mean"][:3] == ["7.200 ± 0.141", "9.200 ± 0.141", "8.100"]
    assert "Mean and standard deviation of the seeds 1, 2." in output
