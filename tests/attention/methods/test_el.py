import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from elseq.attention import Attention, Segment, SelfAttentionMemory, SentenceMemory, el_attention, multi_head_attention
from elseq.attention.methods import EL, KV
from tests.attention.reference import double, naive_attention, naive_layer, padding_mask, quick, seeds, split_heads


def keys_and_values(hidden, key_weight, key_bias, value_weight, value_bias, head_dim):
    """What the hidden states project to, for the reference."""
    key = split_heads(F.linear(hidden, key_weight, key_bias), head_dim)
    return key, split_heads(F.linear(hidden, value_weight, value_bias), head_dim)


@st.composite
def problems(draw):
    """A query, hidden states of the sentence and of each hypothesis, and the weights, in float64."""
    torch.manual_seed(draw(seeds))
    sentences, beam = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4, 16]))
    kv_heads, group, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    length, width = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    query = torch.randn(sentences * beam, kv_heads * group, length, head_dim, dtype=torch.float64)
    hidden = []
    if draw(st.booleans()):
        longest = draw(st.integers(1, 6))
        side = draw(st.sampled_from(["left", "right", None]))
        lengths = [draw(st.integers(1, longest)) for _ in range(sentences)]
        mask = None if side is None else padding_mask(lengths, longest, side).unsqueeze(1)
        hidden.append((torch.randn(sentences, longest, width, dtype=torch.float64), mask))
    causal = not hidden or draw(st.booleans())
    if causal:
        positions = draw(st.integers(length, length + 4))
        hidden.append((torch.randn(sentences * beam, positions, width, dtype=torch.float64), None))
    key_weight, value_weight = torch.randn(2, kv_heads * head_dim, width, dtype=torch.float64)
    key_bias, value_bias = torch.randn(2, kv_heads * head_dim, dtype=torch.float64)
    return query, hidden, key_weight, key_bias, value_weight, value_bias if draw(st.booleans()) else None, causal


@quick
@given(problems(), st.booleans())
def test_equals_attention_to_keys_and_values(problem, need_weights):
    """The reference adds the bias of the key projection; EL-attention is never told it."""
    query, hidden, key_weight, key_bias, value_weight, value_bias, causal = problem
    output, weights = el_attention(
        query, hidden, key_weight, value_weight, value_bias, causal=causal, need_weights=need_weights
    )
    segments = [
        (*keys_and_values(states, key_weight, key_bias, value_weight, value_bias, query.size(-1)), mask)
        for states, mask in hidden
    ]
    expected, expected_weights = naive_attention(query, segments, causal)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-11)
    if need_weights:
        torch.testing.assert_close(weights, expected_weights, rtol=0, atol=1e-12)


@quick
@given(seeds, st.booleans(), st.sampled_from([1, 2, 4]))
def test_exact_with_dropped_weights(seed, need_weights, kv_heads):
    """The same seed drops the same weights of an attention whose values are the unit vectors: its output is they."""
    generator = torch.Generator().manual_seed(seed)
    query, hidden, key_weight, value_weight = (
        torch.randn(*shape, dtype=torch.float64, generator=generator)
        for shape in ((6, 4, 2, 3), (3, 5, 8), (3 * kv_heads, 8), (3 * kv_heads, 8))
    )
    value_bias = torch.randn(3 * kv_heads, dtype=torch.float64, generator=generator)
    options = {"dropout": 0.4, "need_weights": need_weights}
    torch.manual_seed(seed)
    output, _ = el_attention(query, [(hidden, None)], key_weight, value_weight, value_bias, **options)

    key, value = keys_and_values(hidden, key_weight, None, value_weight, value_bias, 3)
    expanded = torch.stack([query[:, head] @ key_weight.split(3)[head // (4 // kv_heads)] for head in range(4)], dim=1)
    torch.manual_seed(seed)
    units = Segment(hidden.unsqueeze(1), torch.eye(5, dtype=torch.float64).expand(3, 1, 5, 5))
    dropped, _ = multi_head_attention(expanded, [units], **options)
    exact = naive_attention(query, [(key, value, None)])[1]
    expected, _ = naive_attention(query, [(key, value, None)], factors=dropped / exact)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-11)


def test_gradients():
    torch.manual_seed(1)
    query, hidden, key_weight, value_weight = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 2, 2, 2), (1, 3, 3), (2, 3), (2, 3))
    )
    value_bias = torch.randn(2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(
        lambda query, hidden, *weights: el_attention(query, [(hidden, None)], *weights)[0],
        (query, hidden, key_weight, value_weight, value_bias),
    )


def error(layer, query, memory, method, exact):
    """Median of the absolute errors of a decoding step.

    Not their mean: where activations are large, softmax is a choice, and one choice between equals would be all of it.
    """
    states = SentenceMemory(method, method.keep(layer, memory))
    output = layer(query, need_weights=False, memory=states)[0].double()
    assert output.isfinite().all()
    return (output - exact).abs().median().item()


@pytest.mark.parametrize("heads, kv_heads", [(8, 8), (8, 2), (8, 1), (1, 1)])
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_within_twice_the_error_of_kv(dtype, scale, heads, kv_heads):
    torch.manual_seed(2)
    layer = Attention(128, heads, num_kv_heads=kv_heads, encoder_decoder_attention=True).to(dtype)
    query, memory = (scale * torch.randn(positions, 30, 128).to(dtype) for positions in (4, 60))
    exact, _ = naive_layer(double(layer), query.double(), memory.double(), memory.double())
    kv, el = (error(layer, query, memory, method, exact) for method in (KV, EL))
    assert el <= 2 * kv


@pytest.mark.parametrize("top_k", [None, 3])
@torch.no_grad()
def test_autocast(top_k):
    """It narrows the query, and a weight only where torch multiplies by it."""
    torch.manual_seed(4)
    layer = Attention(16, 4, encoder_decoder_attention=True, top_k=top_k).eval()
    query, [memory] = torch.randn(1, 6, 16), EL.memories([layer], torch.randn(9, 2, 16), None)
    exact, _ = layer(query, need_weights=False, memory=memory)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = layer(query, need_weights=False, memory=memory)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("scale", [300.0, 1000.0])
@torch.no_grad()
def test_no_overflow_in_half_precision_where_kv_has_none(scale):
    """Activations of some hundreds, as the deep layers of trained models have them in a few dimensions."""
    torch.manual_seed(3)
    layer = Attention(256, 4, self_attention=True).half()
    text = torch.randn(5, 3, 256)
    text[:, :, :4] *= scale
    outputs = {}
    for method in (KV, EL):
        memory = SelfAttentionMemory(method)
        memory.append(*method.keep(layer, text.half()))
        outputs[method] = layer(text[-1:].half(), need_weights=False, memory=memory)[0]
    assert outputs[KV].isfinite().all()
    assert outputs[EL].isfinite().all()
