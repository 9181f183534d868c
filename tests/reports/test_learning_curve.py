"""The learning curve: its table, and what stands below."""

import json

from elseq.reports import learning_curve
from elseq.reports.logs import Point
from tests.helpers import table_rows

HEAD = """\
2026-01-01 00:00:01 | INFO | fairseq_cli.train | num. shared model params: 5,954,880 (num. trained: 5,954,880)
2026-01-01 00:00:02 | INFO | train_inner | epoch 001:     20 / 249 loss=12.072, nll_loss=11.877, ppl=3761.54, \
wps=1976.3, ups=1.06, wpb=1864.3, bsz=121.2, num_updates=20, lr=0.0002, gnorm=3.608, train_wall=20, wall=22
2026-01-01 00:00:09 | INFO | fairseq.checkpoint_utils | Saved checkpoint /a/checkpoint_best.pt (epoch 3 @ 30 \
updates, score 8.3) (writing took 0.1 seconds)
"""
LINE = (
    "2026-01-01 00:00:04 | INFO | valid | epoch 001 | valid on 'valid' subset | loss {loss} | nll_loss 3 | ppl 8.5"
    "{bleu} | wps 5303.5 | wpb 1193.5 | bsz 78 | num_updates {updates} | best_loss 7.9\n"
)


def line(updates, loss, bleu=None):
    return LINE.format(updates=updates, loss=loss, bleu="" if bleu is None else f" | bleu {bleu}")


def test_table_has_the_best_and_the_last():
    points = [Point(number * 100, 9 - number % 7, 3.0, 8.5, float(number)) for number in range(1, 21)]
    rows = learning_curve.table(points, rows=4).splitlines()[2:]
    updates = [row.split("|")[1].strip() for row in rows]
    assert updates == ["500", "600", "1,000", "1,500", "2,000"]
    assert [row.split("|")[1].strip() for row in rows if "lowest loss" in row] == ["600"]


def test_report(tmp_path, capsys):
    (tmp_path / "train.log").write_text(HEAD + line(30, 8.3, 0.75) + line(60, 8.4, 0.5))
    scores = {"bleu4": {"value": 1.239}, "meteor": {"value": 10}}
    report = {"settings": {"examples": 1000}, "systems": [{"scores": scores}]}
    (tmp_path / "scores.json").write_text(json.dumps(report))
    command = [str(tmp_path / "train.log"), "--scores", str(tmp_path / "scores.json")]
    learning_curve.main([*command, "--curves", str(tmp_path / "curve.png")])
    printed = capsys.readouterr().out
    rows = table_rows(printed)[2:4]
    assert rows == [["30", "8.300", "8.50", "0.75", "lowest loss"], ["60", "8.400", "8.50", "0.50", ""]]
    assert "5,954,880 parameters, 1,976 target words/s" in printed
    assert "Test set (1,000 examples), best checkpoint: BLEU-4 1.24, METEOR (nltk) 10.00." in printed
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
