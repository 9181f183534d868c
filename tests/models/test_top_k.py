import pytest
import torch

from elseq.attention import Attention
from elseq.errors import UserError
from elseq.models.layers import FeedForwardLayer
from elseq.models.top_k import apply_attention_top_k, apply_ffn_top_k, set_chunk_sizes
from tests.models.building import (
    EOS,
    METHOD_PAIRS,
    decode_in_pieces,
    forward,
    ours,
    pair,
    pair_name,
    repeat,
    source,
    target,
    words,
)

FAMILIES = ["transformer", "bart", "transformer_lm"]


def places(model):
    return [name for name, module in model.named_modules() if isinstance(module, Attention) and module.top_k == 3]


@pytest.mark.parametrize(
    "asked, parts",
    [
        (("encoder",), ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn"]),
        (("cross",), [f"decoder.layers.{number}.encoder_attn" for number in range(3)]),
        (("decoder",), [f"decoder.layers.{number}.self_attn" for number in range(3)]),
    ],
)
def test_top_k_is_applied_where_it_is_asked_for(asked, parts):
    model = ours("transformer")
    apply_attention_top_k(model, 3, places=asked)
    assert places(model) == parts
    apply_attention_top_k(model, 3)
    assert len(places(model)) == 2 + 3 + 3
    apply_attention_top_k(model, None)
    assert places(model) == []


def test_places_that_a_model_does_not_have():
    with pytest.raises(UserError, match="^--apply-top-k-in encoder,cross: the model has attention in decoder only$"):
        apply_attention_top_k(ours("transformer_lm"), 3, places=("encoder", "cross"))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_as_many_as_there_are_change_nothing(family):
    model = ours(family).double()
    batch, tokens = source(), target()
    expected = forward(model, batch, tokens)[0]
    apply_attention_top_k(model, 7)
    apply_ffn_top_k(model, 24)
    assert torch.equal(forward(model, batch, tokens)[0], expected)
    apply_attention_top_k(model, 2)
    assert not torch.allclose(forward(model, batch, tokens)[0], expected)


def chunk_sizes(model):
    queries = {module.query_chunk_size for module in model.modules() if isinstance(module, Attention)}
    tokens = {module.ffn_chunk_size for module in model.modules() if isinstance(module, FeedForwardLayer)}
    return queries, tokens


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_chunk_sizes_change_nothing_but_the_chunks(family):
    model = ours(family, attention_top_k=3, ffn_top_k=10).double()
    batch, tokens = source(), target()
    expected = forward(model, batch, tokens)[0]
    set_chunk_sizes(model, 2, None)
    assert chunk_sizes(model) == ({2}, {None})
    set_chunk_sizes(model, None, 3)
    assert chunk_sizes(model) == ({2}, {3})
    torch.testing.assert_close(forward(model, batch, tokens)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("methods", METHOD_PAIRS, ids=pair_name)
@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 1}, {"local_attention_radius": 4}], ids=str)
@torch.no_grad()
def test_decoding_equals_the_whole_target_at_once(family, methods, options):
    """Under every method each query keeps the same scores."""
    model = ours(family, attention_top_k=3, ffn_top_k=10, query_chunk_size=2, ffn_chunk_size=3, **options).double()
    batch, tokens = source(), words(3 * 2, 9)
    tokens[:, 0] = EOS
    expected = forward(model, repeat(batch, 2), tokens)[0]
    for pieces in ([1] * 9, [3, 1, 5]):
        result = decode_in_pieces(model, batch, tokens, methods, pieces)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)


def test_a_stock_model_s_attention_keeps_its_largest_weights():
    stock, model = pair("transformer")
    batch, tokens = source(), target()
    apply_attention_top_k(model, 2, places=("cross",))
    with torch.no_grad():
        weights = forward(model, batch, tokens, alignment_layer=2)[1]["attn"][0]
    assert int((weights > 0).sum(dim=-1).max()) <= 2 * 4  # each of the four heads has two
    assert model.state_dict().keys() == stock.state_dict().keys()


def test_training_through_both():
    model = ours("transformer", attention_top_k=2, ffn_top_k=5).train()
    output = forward(model, source(), target())[0]
    output.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"attention_top_k": -1}, "--attention-top-k -1"),
        ({"ffn_top_k": -2}, "--ffn-top-k -2"),
        ({"query_chunk_size": 0}, "--query-chunk-size 0"),
        ({"ffn_chunk_size": 0}, "--ffn-chunk-size 0"),
        ({"ffn_top_k": 4, "activation_fn": "tanh"}, "--activation-fn"),
        ({"ffn_top_k": 4, "activation_dropout": 0.1}, "--activation-dropout"),
        ({"ffn_top_k": 4, "quant_noise_pq": 0.1}, "--quant-noise-pq"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options, named):
    with pytest.raises(UserError, match=named):
        ours("transformer", **options)


def test_no_top_k_is_none():
    model = ours("transformer", attention_top_k=0, ffn_top_k=0)
    assert {module.top_k for module in model.modules() if isinstance(module, Attention)} == {None}
    assert {module.ffn_top_k for module in model.modules() if isinstance(module, FeedForwardLayer)} == {None}


def test_a_layer_that_cannot_take_top_k():
    with pytest.raises(UserError, match="--apply-ffn-top-k needs the activation"):
        apply_ffn_top_k(ours("transformer", activation_fn="tanh"), 4)
