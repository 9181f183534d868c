"""Checkpoints that fairseq loads by itself: in a process that never imports elseq."""

import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from fairseq import checkpoint_utils

import elseq
from elseq.errors import UserError
from elseq.interop.checkpoints import to_stock
from tests import helpers
from tests.tiny_models import make_sample, make_sources

STOCK = """
import argparse, sys, torch
torch.serialization.add_safe_globals([argparse.Namespace])  # fairseq on torch >= 2.6
from fairseq import checkpoint_utils
for path, data, result in zip(*[iter(sys.argv[1:])] * 3):
    [model], cfg, task = checkpoint_utils.load_model_ensemble_and_task([path], {"data": data})
    assert "elseq" not in sys.modules and type(model).__module__.startswith("fairseq.models."), type(model)
    torch.save(dict(model.state_dict()), result)
    name = cfg.model.arch if isinstance(cfg.model, argparse.Namespace) else cfg.model._name
    print(type(model).__name__, type(task).__name__, name)
"""


@pytest.fixture(scope="module")
def own(raw_text, translation_data, language_model_data, tmp_path_factory):
    """Checkpoints of our architectures, after a few updates, and their data."""
    few = ["--max-update=2"]
    folder = tmp_path_factory.mktemp("own")
    options = {"el_transformer": few, "el_bart_base": few, "el_transformer_lm_gpt2_124m": few}
    made = {}
    for arch, arguments in options.items():
        data = language_model_data if "_lm" in arch else translation_data
        task = "elseq_language_modeling" if "_lm" in arch else "elseq_translation"
        arguments = [*arguments, "--task", task, "--user-dir", str(helpers.USER_DIR)]
        made[arch] = helpers.train(arch, data, folder / arch, *arguments), data
    return made


@pytest.mark.few_cases(1)
def test_stock_fairseq_loads_them(own, tmp_path):
    arguments = []
    for arch, (path, data) in own.items():
        torch.save(to_stock(checkpoint_utils.load_checkpoint_to_cpu(str(path))), tmp_path / f"{arch}.pt")
        arguments += [tmp_path / f"{arch}.pt", data, tmp_path / f"{arch}.tensors"]
    ended = subprocess.run([sys.executable, "-c", STOCK, *map(str, arguments)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        "TransformerModel TranslationTask transformer",
        "BARTModel TranslationTask bart_large",
        "TransformerLanguageModel LanguageModelingTask transformer_lm",
    ]
    for arch, (path, _) in own.items():
        expected, found = torch.load(path)["model"], torch.load(tmp_path / f"{arch}.tensors")
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), arch


def test_it_decodes_as_before(own, tmp_path):
    """In double precision, by the stock modules and by ours."""
    for arch, (path, data) in own.items():
        torch.save(to_stock(checkpoint_utils.load_checkpoint_to_cpu(str(path))), tmp_path / f"{arch}.pt")
        results = []
        for model, attention in ((path, "kv"), (tmp_path / f"{arch}.pt", "kv")):
            loaded = elseq.load(model, attention=attention, data=data, dtype=torch.float64, device="cpu")
            words = loaded.task.source_dictionary
            sample = make_sample(words, make_sources(words, [5, 7, 2]), left="_lm" not in arch)
            generator = loaded.task.build_generator([loaded.model], Namespace(beam=3, nbest=3, max_len_b=9))
            found = loaded.task.inference_step(generator, [loaded.model], sample)
            results.append([[best["tokens"].tolist() for best in hypotheses] for hypotheses in found])
        assert results[0] == results[1], arch


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("kind", ["translation", "bart", "language_model"])
def test_stock_checkpoints_stay_what_they_are(request, kind):
    trained = request.getfixturevalue(f"tiny_{kind}")
    state = checkpoint_utils.load_checkpoint_to_cpu(str(trained.checkpoint))
    converted = to_stock(state)
    model = converted["cfg"]["model"]
    options = vars(model) if isinstance(model, Namespace) else model
    before = vars(state["cfg"].model) if isinstance(state["cfg"].model, Namespace) else dict(state["cfg"].model)
    for name in ("encoder_layers", "decoder_ffn_embed_dim", "activation_fn", "dropout", "max_target_positions"):
        assert options.get(name) == before.get(name)
    assert converted["cfg"]["task"]["_name"] == ("language_modeling" if kind == "language_model" else "translation")
    assert all(torch.equal(converted["model"][name], tensor) for name, tensor in state["model"].items())


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"num_kv_heads": 1}, "the model has 1 key/value heads for 4 heads, which stock fairseq does not have"),
        ({"cross_num_kv_heads": 2}, "2 key/value heads for 4 heads"),
        ({"decoder_kv_heads_by_layer": "4,2"}, "4,2 key/value heads for 4 heads"),
        ({"head_dim": 10}, "heads of a width of their own .--head-dim 10."),
        ({"local_attention_radius": 4}, "local attention .--local-attention-radius 4."),
        ({"output_bias": True}, "a bias in its output layer .--output-bias., which stock fairseq does not have"),
        ({"norm_before_positions": True}, "embeddings before positions are added .--norm-before-positions."),
        ({"activation_fn": "swish"}, "another activation .--activation-fn swish."),
        ({"attention_top_k": 8}, "top-k attention .--attention-top-k 8."),
        ({"ffn_top_k": 8}, "top-k feed-forward layers .--ffn-top-k 8."),
    ],
)
def test_what_fairseq_does_not_have(own, options, sentence):
    state = checkpoint_utils.load_checkpoint_to_cpu(str(own["el_transformer"][0]))
    for name, value in options.items():
        state["cfg"].model[name] = value
    with pytest.raises(UserError, match=sentence):
        to_stock(state)


@pytest.mark.parametrize(
    "options", [{"num_kv_heads": 4}, {"head_dim": 8}, {"attention_top_k": 0}, {"ffn_chunk_size": 7}]
)
def test_what_changes_nothing(own, options):
    state = checkpoint_utils.load_checkpoint_to_cpu(str(own["el_transformer"][0]))
    for name, value in options.items():
        state["cfg"].model[name] = value
    written = to_stock(state)["cfg"]["model"]
    assert all(getattr(written, name, None) is None for name in options)  # the task has some of the same name
