"""Sweeps of fairseq-hydra-train: one table of what their jobs have come to."""

import json
import re

import pytest
import torch
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf

from elseq.errors import UserError
from elseq.sweeps.training import Gather
from tests import helpers
from tests.sweeps.conftest import ROOT


def configuration(folder, number, *overrides, mode=RunMode.MULTIRUN):
    """The part of a job's configuration that the callback looks at; its directory is the current one."""
    hydra = {
        "mode": mode,
        "runtime": {"cwd": str(folder), "output_dir": str(folder / "sweep" / str(number))},
        "sweep": {"dir": "sweep"},
        "job": {"num": number},
        "overrides": {"task": ["common.seed=1", *overrides]},
    }
    checkpoint = {"save_dir": "checkpoints", "best_checkpoint_metric": "bleu"}
    return OmegaConf.create({"hydra": hydra, "checkpoint": checkpoint})


def save(path, best, updates):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"extra_state": {"best": best}, "optimizer_history": [{"num_updates": 1}, {"num_updates": updates}]}
    torch.save(content, path)


def run_job(monkeypatch, callback, config, error=None):
    monkeypatch.chdir(config.hydra.runtime.output_dir)
    ended = JobReturn(status=JobStatus.FAILED if error else JobStatus.COMPLETED, _return_value=error)
    callback.on_job_end(config, job_return=ended)


def test_table(monkeypatch, tmp_path, capsys, as_before):
    callback, sweep = Gather(), tmp_path / "sweep"
    callback.on_multirun_start(configuration(tmp_path, 0))
    save(sweep / "0" / "checkpoints" / "checkpoint_best.pt", 31.5, 300)
    save(sweep / "0" / "checkpoints" / "checkpoint_last.pt", 31.5, 400)
    run_job(monkeypatch, callback, configuration(tmp_path, 0, "model=mha"))
    assert "| 0     |        31.5 |         300 |       400 |" in (sweep / "table.md").read_text()
    (sweep / "1").mkdir()
    error = UserError("the dictionaries differ; use one")
    run_job(monkeypatch, callback, configuration(tmp_path, 1, "model=mq"), error)
    save(sweep / "2" / "checkpoints" / "checkpoint_last.pt", None, 400)  # without validation
    run_job(monkeypatch, callback, configuration(tmp_path, 2, "model=gqa"))
    callback.on_multirun_end(configuration(tmp_path, 0))
    assert as_before == []  # nothing more to say when the process ends
    expected = """\
3 trainings

| job   | model   |   best bleu |   at update |   updates |
|:------|:--------|------------:|------------:|----------:|
| 0     | mha     |        31.5 |         300 |       400 |
| 1     | mq      |           - |           - |         - |
| 2     | gqa     |           - |           - |       400 |

- 1: the dictionaries differ; use one.
"""
    assert (sweep / "table.md").read_text() == expected
    assert expected in capsys.readouterr().out
    rows = json.loads((sweep / "results.json").read_text())["rows"]
    assert [row["settings"] for row in rows] == [{"model": "mha"}, {"model": "mq"}, {"model": "gqa"}]


def test_a_training_alone_has_no_table(monkeypatch, tmp_path):
    callback, config = Gather(), configuration(tmp_path, 0, mode=RunMode.RUN)
    (tmp_path / "sweep" / "0").mkdir(parents=True)
    run_job(monkeypatch, callback, config)
    callback.on_run_end(config)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("name", ["multi30k", "squad_qg", "train_translation"])
def test_configurations_have_the_callback(name):
    cfg = OmegaConf.load(ROOT / "hydra_conf" / f"{name}.yaml")
    assert cfg.hydra.callbacks.gather._target_ == f"{Gather.__module__}.Gather"


@pytest.mark.slow
def test_real_sweep(translation_data, tmp_path):
    """A job that fails does not keep the others out of the table; fairseq's log is the witness."""
    where = ["--config-dir=hydra_conf", "--config-name=multi30k", f"hydra.sweep.dir={tmp_path}"]
    small = ["model.encoder_embed_dim=32", "model.encoder_layers=1", "model.decoder_layers=1"]
    short = ["optimization.max_update=3", "dataset.max_tokens=500", "dataset.num_workers=0", "common.cpu=true"]
    swept = [f"task.data={tmp_path / 'nowhere'},{translation_data}", "attention=multi_head,multi_query"]
    user_dir = f"common.user_dir={helpers.USER_DIR}"
    ended = helpers.run(["fairseq-hydra-train", "--multirun", *where, user_dir, *small, *short, *swept])
    assert ended.returncode == 1
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["failure"].startswith(f"{tmp_path}/nowhere does not exist") for row in rows[:2]] == [True, True]
    for number, row in enumerate(rows[2:], start=2):
        (log,) = tmp_path.glob(f"{number}-*/hydra_train.log")
        ((loss, updates),) = re.findall(r"valid on .* \| loss ([\d.]+) .* num_updates (\d+)", log.read_text())
        assert row["scores"] == {"best loss": float(loss), "at update": int(updates), "updates": int(updates)}
    assert (tmp_path / "table.md").read_text() in ended.stdout.decode()
