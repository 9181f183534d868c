from functools import lru_cache

import pytest
import torch
from fairseq.models import bart
from hypothesis import given, settings
from hypothesis import strategies as st

from elseq.attention.memory import GROWTH
from elseq.attention.methods import EL, KV, Choice
from elseq.generation.planner import Workload, decoding_state_bytes
from elseq.models import ElseqBARTModel
from elseq.precision import INT8
from tests.models.building import METHOD_PAIRS, PAD, configuration, encode, make_task, ours, source, words

MODELS = {
    "transformer": ("transformer", {}),
    "narrow decoder": (
        "transformer",
        {"decoder_embed_dim": 8, "decoder_ffn_embed_dim": 8, "decoder_attention_heads": 2, "decoder_layers": 1},
    ),
    "no cross-attention": ("transformer", {"no_cross_attention": True}),
    "bart": ("bart", {}),
    "grouped-query": ("transformer", {"decoder_num_kv_heads": 2, "cross_num_kv_heads": 1, "head_dim": 5}),
    "heads by layer": ("transformer", {"decoder_kv_heads_by_layer": "1,4,2", "cross_kv_heads_by_layer": "2,1,4"}),
    "local attention": ("transformer", {"local_attention_radius": GROWTH + 1}),
    "language model, local attention": ("transformer_lm", {"local_attention_radius": 3, "num_kv_heads": 1}),
    "language model": ("transformer_lm", {}),
}


@lru_cache
def model_named(name):
    kind, options = MODELS[name]
    return ours(kind, **options)


@pytest.mark.few_cases(4)
@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    sentences=st.integers(1, 4),
    beam=st.integers(1, 5),
    source_length=st.integers(1, 20),
    target_length=st.integers(1, 2 * GROWTH + 1),
    prompt_length=st.integers(0, 2 * GROWTH + 1),
    methods=st.sampled_from(METHOD_PAIRS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64, INT8]),
    data=st.data(),
)
@torch.no_grad()
def test_what_is_planned_is_what_a_state_comes_to(
    name, sentences, beam, source_length, target_length, prompt_length, methods, dtype, data
):
    model = model_named(name)
    model.decoder.decode_dtype = dtype if dtype == INT8 else None
    dtype = torch.float32 if dtype == INT8 else dtype
    model.to(dtype)
    encoder_out = None
    if hasattr(model, "encoder"):
        encoder_out = encode(model, source([source_length] * sentences))
    state = model.decoder.new_state(encoder_out, *methods)
    if prompt_length:
        prompts = words(sentences, prompt_length)
        prompts[0, data.draw(st.integers(1, prompt_length)) :] = PAD
        model.decoder.read_prompt(prompts, state)
    for _ in range(target_length):
        model.decoder.decode(words(sentences * beam, 1), state)
        state.reorder(torch.randint(sentences * beam, (sentences * beam,)))
    length = source_length if encoder_out is not None else 0
    workload = Workload(sentences, beam, length, target_length, prompt_length)
    assert decoding_state_bytes(model.decoder, workload, Choice(*methods)) == state.size_bytes()


SENTENCES, BEAM, SOURCE = 8, 4, 512


@pytest.fixture
def bart_large(monkeypatch):
    """At its true size, but without memory: tensors on the meta device have shapes only."""
    monkeypatch.setattr(bart.model, "init_bert_params", lambda module: None)  # it computes on the CPU
    sizes = {"embed_dim": 1024, "ffn_embed_dim": 4096, "layers": 12, "attention_heads": 16}
    options = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
    with torch.device("meta"):
        return ElseqBARTModel.build_model(configuration("bart", **options), make_task()).half().eval()


def state_of(model, method, rows):
    """Of sources that were encoded already: `rows` of them."""
    encoded = torch.empty(SOURCE, rows, 1024, dtype=torch.float16, device="meta")
    return model.decoder.new_state({"encoder_out": [encoded], "encoder_padding_mask": []}, method)


def test_cross_attention_of_bart_large(bart_large):
    el = state_of(bart_large, EL, SENTENCES).size_bytes()
    assert el == SENTENCES * SOURCE * 1024 * 2
    assert state_of(bart_large, KV, SENTENCES).size_bytes() == 24 * el
    # One row for each hypothesis is what the papers compare with, and what fairseq's protocol leads to.
    assert state_of(bart_large, KV, SENTENCES * BEAM).size_bytes() == 96 * el
    for method, factor in ((EL, 1), (KV, 24)):
        workload = Workload(SENTENCES, BEAM, SOURCE, target_length=0)
        assert decoding_state_bytes(bart_large.decoder, workload, Choice(method, method)) == factor * el


def test_self_attention_of_bart_large(bart_large):
    sizes = []
    for method in (KV, EL):
        state = state_of(bart_large, method, SENTENCES)
        before = state.size_bytes()
        for layer, memory in zip(bart_large.decoder.layers, state.layers, strict=True):
            hidden = torch.empty(60, SENTENCES * BEAM, 1024, dtype=torch.float16, device="meta")
            memory.self_attention.append(*method.keep(layer.self_attn, hidden))
        sizes.append(state.size_bytes() - before)
    assert sizes == [2 * 12 * 32 * 64 * 1024 * 2, 12 * 32 * 64 * 1024 * 2]


@pytest.mark.parametrize("method", [KV, EL])
def test_each_kind_of_attention_is_planned_by_its_own_method(method):
    decoder = ours("transformer").decoder  # 3 layers of width 16
    workload = Workload(sentences=2, beam=3, source_length=5, target_length=1, prompt_length=4)
    positions = 2 * 4 + 2 * 3 * GROWTH
    own = 3 * positions * 16 * (2 if method is KV else 1)
    assert decoding_state_bytes(decoder, workload, Choice(method, EL)) == 4 * (own + 2 * 5 * 16)
