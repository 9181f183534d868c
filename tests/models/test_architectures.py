import copy
from dataclasses import fields

import pytest
import torch
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY, bart, build_model

from elseq.attention import Attention
from elseq.models.architectures import ARCHITECTURES
from tests.models.building import make_task, parse

VOCABULARY = 100


def build(arch, words, monkeypatch, *arguments):
    """At its true size, but without memory: tensors on the meta device have shapes only."""
    monkeypatch.setattr(bart.model, "init_bert_params", lambda module: None)  # it computes on the CPU
    with torch.device("meta"):
        return build_model(copy.deepcopy(parse(arch, *arguments)), make_task(words - 4))


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.few_cases(6)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_is_what_its_name_says(arch, monkeypatch):
    model = build(arch, VOCABULARY, monkeypatch)
    assert model.decoder.decode_attention == ("el" if arch.startswith("el_") else "auto")
    for module in model.modules():
        if isinstance(module, Attention):
            assert module.num_kv_heads == (1 if arch.startswith("mq_") else module.num_heads)
    assert ARCH_MODEL_NAME_REGISTRY[arch] == ARCHITECTURES[arch][0]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_names_of_values_are_options(arch):
    """A misspelt one would be set and read by nothing."""
    model, values = ARCHITECTURES[arch]
    assert values.keys() <= {field.name for field in fields(MODEL_DATACLASS_REGISTRY[model])}


@pytest.mark.few_cases(3)
@pytest.mark.parametrize(
    "arch, arguments",
    [
        ("transformer", []),
        ("transformer_wmt_en_de", []),
        ("transformer_wmt_en_de", ["--share-all-embeddings"]),
        ("transformer_vaswani_wmt_en_de_big", []),
        ("bart_base", []),
        ("bart_large", []),
    ],
)
def test_parameters_are_those_of_the_stock_architecture(arch, arguments, monkeypatch):
    stock, model = (build(name, VOCABULARY, monkeypatch, *arguments) for name in (arch, f"el_{arch}"))
    shapes = {name: tensor.shape for name, tensor in stock.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes
    assert parameters(model) == parameters(stock)
    for option in ("activation_fn", "dropout", "attention_dropout", "activation_dropout", "no_scale_embedding"):
        assert getattr(model.decoder.cfg, option) == getattr(stock.decoder.cfg, option)
    for option in ("attention_heads", "normalize_before", "learned_pos"):
        assert getattr(model.decoder.cfg.decoder, option) == getattr(stock.decoder.cfg.decoder, option)
        assert getattr(model.decoder.cfg.encoder, option) == getattr(stock.decoder.cfg.encoder, option)
    assert model.max_positions() == stock.max_positions()


@pytest.mark.parametrize(
    "arch, width, published",
    [("el_transformer_lm_gpt2_124m", 768, 124_439_808), ("el_transformer_lm_gpt2_355m", 1024, 354_823_168)],
)
def test_gpt2_has_its_published_number_of_parameters(arch, width, published, monkeypatch):
    """And two positions more, which fairseq reserves for padding."""
    model = build(arch, 50257, monkeypatch, "--tokens-per-sample=1024")
    assert parameters(model) == published + 2 * width
    assert model.max_positions() == 1024


def test_bart_large_has_its_published_number_of_parameters(monkeypatch):
    """facebook/bart-large: 406 million, with a vocabulary of 50264 words and <mask>."""
    assert parameters(build("el_bart_large", 50265, monkeypatch)) == 406_291_456


SHAZEER_VOCABULARY = 33_708


@pytest.mark.few_cases(2)
@pytest.mark.parametrize(
    "arch, options",
    [
        ("transformer_shazeer", []),
        ("mq_transformer_shazeer", []),
        # 1911.02150, table 1: fewer heads or smaller keys, and wider feed-forward layers.
        ("transformer_shazeer", [1, 128]),
        ("transformer_shazeer", [2, 64]),
        ("transformer_shazeer", [4, 32]),
        ("transformer_shazeer", [8, 16]),
    ],
)
def test_the_rows_of_the_multi_query_paper_have_equal_parameters(arch, options, monkeypatch):
    if options:
        heads, head_dim = options
        options = [f"--encoder-attention-heads={heads}", f"--decoder-attention-heads={heads}", f"--head-dim={head_dim}"]
        options += ["--encoder-ffn-embed-dim=6784"]
    model = build(arch, SHAZEER_VOCABULARY, monkeypatch, *options, "--local-attention-radius=32")
    embedding = SHAZEER_VOCABULARY * 1024
    assert parameters(model) == pytest.approx(211e6, rel=0.001)
    assert parameters(model) - embedding == pytest.approx(176.35e6, rel=0.001)
    assert {layer.self_attn.window for layer in model.decoder.layers} == {32}
    assert {layer.self_attn.window for layer in model.encoder.layers} == {None}
