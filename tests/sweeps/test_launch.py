"""Command lines for Hydra, and those that are wrong."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
from fairseq.dataclass.initialize import hydra_init
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from tests import helpers
from tests.sweeps.conftest import ROOT


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--config-dir nowhere batch=3", f"{ROOT}/nowhere/benchmark.yaml does not exist: name the folder"),
        ("--config-name nothing batch=3", "--config-name nothing is unknown: choose one of benchmark, generate, "),
        ("--config-name benchmark.yaml batchsize=3", "batchsize is no setting of this configuration"),
        ("--config-dir nowhere --config-name=x batch=3", f"{ROOT}/nowhere/x.yaml does not exist: name the folder"),
        ("decode=fast", "decode=fast is unknown: choose one of auto, ctranslate2, el, huggingface, kv, stock, "),
        ("-m decode=kv,fast", "decode=fast is unknown: choose one of auto, "),
        ("decode=fast -m batch=1,2", "decode=fast is unknown: choose one of auto, "),
        ("model=big", "model=big is unknown: choose one of el_bart_base, "),
        ("batchsize=3", "batchsize is no setting of this configuration"),
        ("--modes=el batch=3", "--modes=el does not go with NAME=VALUE and -m"),
        ("-m batch", "batch does not go with NAME=VALUE and -m"),
        ("batch=[1,2", "no viable alternative at input '[1,2'"),
        ("batch=1,2", "batch=1,2 names several values: give -m"),
        ("-m --cfg job", "Only one of --run, --multirun, --cfg"),
    ],
)
def test_one_sentence(line, sentence, tmp_path):
    check_one_sentence([*line.split(), f"hydra.sweep.dir={tmp_path}"], sentence)


@pytest.mark.skipif(find_spec("submitit") is not None, reason="the plugin is installed")
def test_a_launcher_that_is_not_installed(tmp_path):
    line = ["-m", "hydra/launcher=slurm", "batch=1,2", f"hydra.sweep.dir={tmp_path}"]
    check_one_sentence(line, "hydra/launcher is of a plugin that is not installed: for Slurm pip install")


@pytest.mark.parametrize("line", ["-m batch=1,2 hydra.sweep.dir={}", "batch=1 hydra.run.dir={}"])
def test_a_folder_that_cannot_be_made(line, tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "jobs"
    ended = helpers.run_here(["elseq-benchmark", *line.format(folder).split()], check=False)
    setting = line.split()[-1].partition("=")[0]
    assert ended.returncode == 1
    assert ended.stderr == (f"elseq: error: {folder} cannot be written (Not a directory): give another by {setting}\n")


def test_a_log_that_cannot_be_written(tmp_path):
    (tmp_path / "benchmark.log").mkdir()
    check_one_sentence(
        ["batch=1", f"hydra.run.dir={tmp_path}"], f"{tmp_path}/benchmark.log cannot be written (Is a dir"
    )


def check_one_sentence(line, sentence):
    ended = helpers.run_here(["elseq-benchmark", *line], check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"elseq: error: {sentence}")
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""


def test_slurm_can_be_composed():
    ended = helpers.run_here(["elseq-benchmark", "hydra/launcher=slurm", "--cfg", "hydra", "--package=hydra.launcher"])
    assert "SlurmLauncher" in ended.stdout


def test_in_another_folder(tmp_path, monkeypatch):
    """The configurations that are installed with elseq."""
    monkeypatch.chdir(tmp_path)
    assert "source_length: 512" in helpers.run_here(["elseq-benchmark", "--cfg", "job"]).stdout


def test_fairseq_configurations_are_as_before():
    helpers.run_here(["elseq-benchmark", "--cfg", "job"])
    assert not {"decode", "benchmark.yaml", "generate.yaml"} & set(ConfigStore.instance().repo)
    hydra_init("train_translation")
    with initialize_config_dir(str(ROOT / "hydra_conf"), version_base="1.1"):
        assert compose("train_translation").optimization.max_update == 100000


def test_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "elseq.cli.benchmark", "decode=fast"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 1
    assert ended.stderr.startswith("elseq: error: decode=fast is unknown: choose one of auto")
    assert ended.stderr.count("\n") == 1
