"""The configurations in hydra_conf: that they are put together as they say, and train."""

import copy
import re
from pathlib import Path

import pytest
import torch
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.models import build_model
from hydra import compose, initialize_config_dir

from elseq.attention import Attention
from tests import helpers
from tests.models.building import make_task

ROOT = Path(__file__).resolve().parents[1]
MULTI30K = [("multi_head", 4, 512), ("grouped_query", 2, 704), ("multi_query", 1, 800)]  # key/value heads, width


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


def test_train_translation():
    cfg = configuration("train_translation")
    assert (cfg.model._name, cfg.model.decode_attention) == ("elseq_transformer", "el")


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
