"""The progress bar of a training that writes its log in JSON."""

import io
import json
import sys

from elseq.reports import train_progress


def test_bar(monkeypatch, capsys):
    lines = ["2026-01-01 | INFO | fairseq_cli.train | loaded\n"]
    for updates, loss in ((10, "9.5"), (20, "8.25")):
        entry = json.dumps({"epoch": 1, "loss": loss, "num_updates": str(updates)})
        lines.append(f"2026-01-01 | INFO | train_inner | {entry}\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(lines)))
    train_progress.main(["40"])
    last = capsys.readouterr().err.rpartition("\r")[2]
    assert " 50%|" in last and "20/40" in last and "loss=8.25" in last
