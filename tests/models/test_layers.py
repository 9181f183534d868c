import pytest
import torch
from fairseq.models.transformer import TransformerConfig
from fairseq.modules import transformer_layer

from elseq.attention import Attention, LayerState, SelfAttentionMemory, SentenceMemory
from elseq.attention.methods import EL, KV
from elseq.models.layers import Activation, DecoderLayer, EncoderLayer, build_attention
from tests.models.building import configuration


def layers(stock_class, our_class, **options):
    """Both with the same random weights."""
    torch.manual_seed(1)
    cfg = TransformerConfig.from_namespace(configuration("transformer", **options))
    stock, ours = stock_class(cfg).eval(), our_class(cfg).eval()
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    ours.load_state_dict(stock.state_dict())
    return stock, ours


@pytest.mark.parametrize("gradients", [True, False])
def test_swish(gradients):
    """x * sigmoid(x)."""
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(Activation("swish")(x), x * x.sigmoid())


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("excluding", [None, torch.bool, torch.float32])
@torch.no_grad()
def test_encoder_layer(before, excluding):
    """fairseq turns the mask of its caller into -1e8 where it excludes."""
    stock, ours = layers(transformer_layer.TransformerEncoderLayerBase, EncoderLayer, encoder_normalize_before=before)
    x, padding = torch.randn(5, 2, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    mask = None if excluding is None else torch.ones(5, 5).triu(1).to(excluding)
    expected, result = (layer(x, padding, mask) for layer in (stock, ours))
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_encoder_layer_returns_the_feed_forward_result_if_asked():
    cfg = TransformerConfig.from_namespace(configuration("transformer"))
    x, fc_result = EncoderLayer(cfg, return_fc=True)(torch.randn(3, 1, 16), None)
    assert x.shape == fc_result.shape == (3, 1, 16)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("method", [KV, EL], ids=lambda method: method.name)
@torch.no_grad()
def test_decoder_layer(before, method):
    stock, ours = layers(transformer_layer.TransformerDecoderLayerBase, DecoderLayer, decoder_normalize_before=before)
    x, memory = torch.randn(4, 2, 16), torch.randn(6, 2, 16)
    padding = torch.tensor([[False] * 6, [False] * 5 + [True]])
    future = torch.full((4, 4), float("-inf")).triu(1)
    expected, expected_weights, _ = stock(x, memory, padding, self_attn_mask=future, need_head_weights=True)
    result, weights = ours(x, memory, padding, need_weights=True)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-5, atol=1e-6)

    cross_attention = SentenceMemory(method, method.keep(ours.encoder_attn, memory), padding)
    state = LayerState(SelfAttentionMemory(method), cross_attention)
    steps = [ours(step, need_weights=True, state=state) for step in x.split(1)]
    torch.testing.assert_close(torch.cat([step for step, _ in steps]), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([step for _, step in steps], dim=2), expected_weights, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_what_a_pre_norm_layer_remembers_under_el_is_normalized():
    _, ours = layers(transformer_layer.TransformerDecoderLayerBase, DecoderLayer, decoder_normalize_before=True)
    x, state = torch.randn(3, 2, 16), LayerState(SelfAttentionMemory(EL))
    ours(x, state=state)
    [remembered] = state.self_attention.read()[0].tensors
    torch.testing.assert_close(remembered, ours.self_attn_layer_norm(x).transpose(0, 1))


def test_quantization_noise_changes_weights_in_training_only():
    cfg = TransformerConfig.from_namespace(
        configuration("transformer", quant_noise_pq=0.5, quant_noise_pq_block_size=4)
    )
    attention = build_attention(cfg, "encoder", 16, 4, self_attention=True)
    assert isinstance(attention, Attention)
    before, x = attention.k_proj.weight.clone(), torch.randn(3, 1, 16)
    attention.eval()(x)
    assert torch.equal(attention.k_proj.weight, before)
    attention.train()(x)
    assert (attention.k_proj.weight == 0).any()
