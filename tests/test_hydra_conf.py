"""The configurations in hydra_conf: that they are put together as they say, and train."""

import copy
import glob
import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
from fairseq import options
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import build_model
from hydra import compose, initialize_config_dir

from elseq.attention import Attention
from elseq.benchmark.arguments import modes
from tests import helpers
from tests.models.building import make_task

ROOT = Path(__file__).resolve().parents[1]
MULTI30K = [("multi_head", 4, 512), ("grouped_query", 2, 704), ("multi_query", 1, 800)]  # key/value heads, width
SQUAD_QG = {  # of the decoder
    "mha": {},
    "gqa": {"decoder_num_kv_heads": 2, "cross_num_kv_heads": 2},
    "mq": {"decoder_num_kv_heads": 1, "cross_num_kv_heads": 1},
    "topk": {"attention_top_k": 16, "ffn_top_k": 128},
}
# what a configuration and a recipe that train the same may have of their own
FREE = {
    ("model", "_name"),
    ("model", "decode_attention"),
    ("task", "decode_attention"),
    ("task", "data"),
    ("checkpoint", "save_dir"),
}


def configuration(name, *overrides):
    """As fairseq-hydra-train puts it together."""
    hydra_init(name)
    with initialize_config_dir(str(ROOT / "hydra_conf"), version_base="1.1"):
        cfg = compose(name, ["task.data=nowhere", *overrides])
    add_defaults(cfg)
    return cfg


def build(cfg):
    with torch.device("meta"):
        return build_model(copy.deepcopy(cfg.model), make_task(7820))


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("attention, kv_heads, width", MULTI30K)
def test_attention_of_multi30k(attention, kv_heads, width):
    cfg = configuration("multi30k", f"attention={attention}")
    model = build(cfg)
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    assert len(layers) == 9
    assert {(layer.num_heads, layer.num_kv_heads) for layer in layers} == {(4, kv_heads)}
    assert {layer.fc1.out_features for side in (model.encoder, model.decoder) for layer in side.layers} == {width}
    assert model.decoder.decode_attention == "auto"
    assert cfg.optimization.max_update == 800 and cfg.lr_scheduler.warmup_updates == 300


def test_multi_head_attention_is_the_default():
    assert configuration("multi30k").model == configuration("multi30k", "attention=multi_head").model


def test_models_of_multi30k_are_equal_in_size():
    sizes = [parameters(build(configuration("multi30k", f"attention={name}"))) for name, _, _ in MULTI30K]
    assert max(sizes) <= 1.001 * min(sizes)


def test_recipe_and_configuration_train_the_same_models():
    recipe = (ROOT / "recipes" / "multi_query.sh").read_text()
    trained = re.findall(r'train "([\w-]+)\$suffix" (\d+) (\d+)', recipe)
    assert [(name.replace("-", "_"), int(heads), int(width)) for name, heads, width in trained] == MULTI30K


def test_an_installed_elseq_has_them_too():
    """In its package, which is what elseq-user-dir names; in the checkout that is a link."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["elseq"]
    package = Path(helpers.USER_DIR)
    packaged = {file for pattern in patterns for file in glob.glob(pattern, root_dir=package, recursive=True)}
    assert packaged == {str(path.relative_to(ROOT)) for path in (ROOT / "hydra_conf").rglob("*") if path.is_file()}
    assert package.joinpath("hydra_conf").samefile(ROOT / "hydra_conf")


def test_train_translation():
    cfg = configuration("train_translation")
    assert (cfg.model._name, cfg.model.decode_attention) == ("elseq_transformer", "el")


@pytest.mark.few_cases(2)
@pytest.mark.parametrize("name, special", SQUAD_QG.items())
def test_models_of_squad_qg(name, special):
    """They differ in what their name says, and in nothing else."""
    cfg = configuration("squad_qg", f"model={name}")
    baseline = configuration("squad_qg")
    assert cfg.model == {**baseline.model, **special}
    assert {layer.num_heads for layer in build(cfg).modules() if isinstance(layer, Attention)} == {4}
    cfg.model = baseline.model
    assert cfg == baseline


def recipe_words(recipe, **environment):
    """Of fairseq-train, as the recipe would run it."""
    environment = {**os.environ, **environment}
    command = ["bash", ROOT / "recipes" / f"{recipe}.sh", "--dry-run", "--from", "train", "--to", "train"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return shlex.split(next(line for line in printed.splitlines() if line.startswith("fairseq-train")))


@pytest.mark.parametrize("attention, model", [("mha", "mha"), ("mq", "mq")])
def test_recipe_and_configuration_train_squad_qg_alike(attention, model):
    cfg = configuration("squad_qg", f"model={model}")
    words = recipe_words("squad_qg", MODEL="transformer", SMALL="1", ATTENTION=attention)
    recipe = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), words[1:]))
    different = {
        (node, key): (cfg[node][key], recipe[node][key])
        for node in ("model", "task", "criterion", "optimizer", "lr_scheduler", "optimization", "dataset", "checkpoint")
        for key in cfg[node].keys() & recipe[node].keys()
        if cfg[node][key] != recipe[node][key]
    }
    assert different.keys() <= FREE, different


@pytest.mark.parametrize("decoding, beam", [("none", None), ("greedy", 1), ("beam", 5)])
def test_decoding_of_the_validation_set(decoding, beam):
    task = configuration("squad_qg", f"decoding={decoding}").task
    assert task.eval_bleu == (beam is not None)
    assert json.loads(task.eval_bleu_args).get("beam") == beam


def test_finetuning_of_bart():
    cfg = configuration("squad_qg", "training=bart_finetuning", "model=el_bart_large", "decoding=none")
    assert (cfg.optimization.lr, cfg.optimization.update_freq, cfg.lr_scheduler.total_num_update) == (
        [3e-5],
        [4],
        20000,
    )
    assert (cfg.dataset.max_tokens, cfg.optimization.clip_norm, cfg.optimizer.weight_decay) == (2048, 0.1, 0.01)
    assert (cfg.model._name, cfg.model.dropout, cfg.model.attention_dropout) == ("elseq_bart", 0.1, 0.1)


def test_slurm_launcher_is_put_together_without_its_plugin():
    hydra_init("squad_qg")
    with initialize_config_dir(str(ROOT / "hydra_conf"), version_base="1.1"):
        cfg = compose("squad_qg", ["hydra/launcher=slurm", "hydra.launcher.timeout_min=60"], return_hydra_config=True)
    launcher = cfg.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.gpus_per_node, launcher.timeout_min) == (1, 60)


@pytest.mark.slow
def test_sweep_over_attention(translation_data, tmp_path):
    """Every job keeps its own best checkpoint and score."""
    folders = ["--config-dir", ROOT / "hydra_conf", "--config-name=multi30k", f"hydra.sweep.dir={tmp_path}"]
    small = ["model.encoder_embed_dim=32", "model.encoder_layers=1", "model.decoder_layers=1"]
    short = ["optimization.max_update=3", "dataset.max_tokens=500", "dataset.num_workers=0", "common.cpu=true"]
    where = [f"common.user_dir={helpers.USER_DIR}", f"task.data={translation_data}"]
    sweep = "attention=" + ",".join(name for name, _, _ in MULTI30K)
    helpers.run(["fairseq-hydra-train", "--multirun", *folders, *where, sweep, *small, *short], check=True)
    for number, (name, heads, _) in enumerate(MULTI30K):
        job = tmp_path / f"{number}-{name}"
        (loss,) = re.findall(r"valid on 'valid' subset \| loss ([\d.]+)", (job / "hydra_train.log").read_text())
        saved = torch.load(job / "checkpoints" / "checkpoint_best.pt", weights_only=False)
        assert saved["extra_state"]["best"] == saved["extra_state"]["val_loss"] == float(loss)
        assert saved["cfg"]["model"]["num_kv_heads"] == heads


@pytest.mark.slow
def test_sweep_over_models_of_squad_qg(translation_data, tmp_path):
    """Every job keeps its own best checkpoint."""
    folders = ["--config-dir", ROOT / "hydra_conf", "--config-name=squad_qg", f"hydra.sweep.dir={tmp_path}"]
    small = ["model.encoder_embed_dim=32", "model.encoder_layers=1", "model.decoder_layers=1", "decoding=none"]
    short = ["optimization.max_update=3", "dataset.max_tokens=500", "dataset.num_workers=0", "common.cpu=true"]
    where = [f"common.user_dir={helpers.USER_DIR}", f"task.data={translation_data}", "task.source_lang=src"]
    sweep = ["task.target_lang=tgt", f"model={','.join(SQUAD_QG)}"]
    helpers.run(["fairseq-hydra-train", "--multirun", *folders, *where, *sweep, *small, *short], check=True)
    for number, (name, special) in enumerate(SQUAD_QG.items()):
        job = tmp_path / f"{number}-{name}"
        losses = re.findall(r"valid on 'valid' subset \| loss ([\d.]+)", (job / "hydra_train.log").read_text())
        saved = torch.load(job / "checkpoints" / "checkpoint_best.pt", weights_only=False)
        assert saved["extra_state"]["best"] == min(map(float, losses))
        assert {key: saved["cfg"]["model"][key] for key in special} == special


def test_every_mode_of_the_benchmark_has_a_file():
    assert {path.stem for path in (ROOT / "hydra_conf" / "decode").glob("*.yaml")} == set(modes())
