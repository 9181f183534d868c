import pytest
import torch
from fairseq.modules import MultiheadAttention
from hypothesis import given
from hypothesis import strategies as st

from elseq.attention import METHODS, Attention, SelfAttentionMemory, SentenceMemory
from tests.attention.reference import double, naive_layer, padding_mask, quick, seeds


def random_layer(*args, **options):
    """With biases that matter."""
    layer = Attention(*args, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
    return layer


@st.composite
def layers(draw, **options):
    torch.manual_seed(draw(seeds))
    kv_heads, group, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    heads = kv_heads * group
    if draw(st.booleans()):
        options |= {"head_dim": head_dim}
        embed_dim = draw(st.integers(1, 9))
    else:
        embed_dim = heads * head_dim
    if options.get("self_attention"):
        options |= {"window": draw(st.one_of(st.none(), st.integers(1, 12)))}
    return random_layer(embed_dim, heads, num_kv_heads=kv_heads, bias=draw(st.booleans()), **options)


def text(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@quick
@given(layers(self_attention=True), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.booleans(), st.booleans())
def test_self_attention(layer, lengths, causal, need_weights):
    longest = max(lengths)
    mask = padding_mask(lengths, longest, "right")
    query = text(longest, len(lengths), layer.embed_dim)
    output, weights = layer(query, key_padding_mask=mask, need_weights=need_weights, causal=causal)
    expected, expected_weights = naive_layer(layer, query, query, query, mask.unsqueeze(1), causal)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(output[:length, row], expected[:length, row], rtol=0, atol=1e-12)
        if need_weights:
            mean = expected_weights[row].mean(dim=0)
            torch.testing.assert_close(weights[row, :length], mean[:length], rtol=0, atol=1e-12)
    assert output.isfinite().all()
    assert need_weights or weights is None


@quick
@given(seeds, st.sampled_from([1, 2, 5, 16]), st.integers(1, 3), st.sampled_from(["left", "right"]), st.booleans())
def test_cross_attention_of_hypotheses_that_share_their_sentence(seed, beam, length, side, bias):
    torch.manual_seed(seed)
    layer = random_layer(12, 4, num_kv_heads=2, kdim=7, vdim=7, bias=bias, encoder_decoder_attention=True)
    memory, mask = text(6, 3, 7), padding_mask([6, 1, 4], 6, side)
    query = text(length, 3 * beam, 12)
    expected, expected_weights = naive_layer(layer, query, memory, memory, mask.unsqueeze(1))
    for method in METHODS.values():
        state = SentenceMemory(method, method.keep(layer, memory), mask)
        output, weights = layer(query, need_weights=False, memory=state)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-11)
        assert weights is None
        _, weights = layer(query, memory=state)
        torch.testing.assert_close(weights, expected_weights.mean(dim=1), rtol=0, atol=1e-12)
        _, weights = layer(query, need_weights=False, need_head_weights=True, memory=state)
        torch.testing.assert_close(weights, expected_weights.transpose(0, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_key_and_value_of_different_widths(training):
    torch.manual_seed(1)
    layer = random_layer(8, 4, num_kv_heads=1, kdim=5, vdim=3).train(training)
    query, key, value = text(4, 2, 8), text(6, 2, 5), text(6, 2, 3)
    output, _ = layer(query, key, value)
    torch.testing.assert_close(output, naive_layer(layer, query, key, value)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options, width",
    [
        ({"self_attention": True}, 12),
        ({"encoder_decoder_attention": True, "kdim": 7, "vdim": 7}, 7),
        ({"encoder_decoder_attention": True}, 12),
    ],
)
def test_weights_and_results_are_those_of_fairseq(options, width):
    torch.manual_seed(2)
    stock = MultiheadAttention(12, 3, **options).eval()
    layer = Attention(12, 3, **options).eval()
    assert {name: tensor.shape for name, tensor in stock.state_dict().items()} == {
        name: tensor.shape for name, tensor in layer.state_dict().items()
    }
    layer.load_state_dict(stock.state_dict())
    stock.load_state_dict(layer.state_dict())
    query = torch.randn(4, 2, 12)
    memory = query if "self_attention" in options else torch.randn(5, 2, width)
    mask = padding_mask([len(memory), 2], len(memory), "right")
    expected, expected_weights = stock(query, memory, memory, key_padding_mask=mask)
    output, weights = layer(query, memory, memory, key_padding_mask=mask)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 6}])
def test_initial_values_are_spread_as_those_of_fairseq(options):
    torch.manual_seed(3)
    stock, layer = (kind(192, 4, **options).state_dict() for kind in (MultiheadAttention, Attention))
    for name, tensor in stock.items():
        torch.testing.assert_close(layer[name].std(), tensor.std(), rtol=0.1, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("excluded", ["bool", "-inf", "-1e8", "-1e4"])
def test_attn_mask(dtype, excluded):
    """fairseq's encoder layer writes -1e8, or in other types than float32 -1e4."""
    if (excluded, dtype) == ("-1e8", torch.float16):
        pytest.skip("float16 does not have this number")
    torch.manual_seed(4)
    layer = Attention(8, 2, self_attention=True).to(dtype)
    query = torch.randn(5, 3, 8).to(dtype)
    forbidden = torch.rand(5, 5) < 0.4
    forbidden.fill_diagonal_(False)
    mask = forbidden if excluded == "bool" else torch.zeros(5, 5, dtype=dtype).masked_fill(forbidden, float(excluded))
    output, weights = layer(query, attn_mask=mask)
    wide = query.double()
    expected, _ = naive_layer(double(layer), wide, wide, wide, forbidden.unsqueeze(0))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 0.03)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=tolerance)
    assert (weights[:, forbidden] == 0).all()


def test_attn_mask_and_padding_together():
    torch.manual_seed(5)
    layer = random_layer(8, 2, self_attention=True)
    query = text(5, 3, 8)
    forbidden = torch.ones(5, 5, dtype=torch.bool).triu(2)
    padding = padding_mask([5, 3, 1], 5, "right")
    output, _ = layer(query, key_padding_mask=padding, attn_mask=forbidden)
    expected, _ = naive_layer(layer, query, query, query, padding.unsqueeze(1) | forbidden)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


def test_a_padding_mask_may_hold_bytes():
    """As fairseq's older code makes it."""
    torch.manual_seed(6)
    layer, query, mask = random_layer(8, 2, self_attention=True), text(4, 2, 8), padding_mask([4, 2], 4, "left")
    expected, _ = layer(query, key_padding_mask=mask)
    torch.testing.assert_close(layer(query, key_padding_mask=mask.to(torch.uint8))[0], expected)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_memory_without_a_single_key_that_counts_spoils_no_other(method):
    torch.manual_seed(7)
    layer = random_layer(8, 2, encoder_decoder_attention=True)
    memory, query = text(3, 2, 8), text(1, 4, 8)
    mask = torch.tensor([[True, True, True], [False, False, True]])
    output, _ = layer(query, memory=SentenceMemory(method, method.keep(layer, memory), mask))
    expected, _ = naive_layer(layer, query, memory, memory, mask.unsqueeze(1))
    torch.testing.assert_close(output[:, 2:], expected[:, 2:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("options", [{}, {"head_dim": 3}, {"window": 2}])
def test_gradients_in_training(kv_heads, need_weights, options):
    torch.manual_seed(8)
    layer = random_layer(8, 4, num_kv_heads=kv_heads, self_attention=True, **options).train()
    query = text(5, 3, 8).requires_grad_()
    lengths = [5, 2, 3] if layer.window is None else [5, 4, 4]  # the reference has no value for a window of padding
    mask, direction = padding_mask(lengths, 5, "right"), text(5, 3, 8)
    direction[mask.T] = 0
    inputs = [query, *layer.parameters()]
    output, _ = layer(query, key_padding_mask=mask, need_weights=need_weights, causal=True)
    expected, _ = naive_layer(layer, query, query, query, mask.unsqueeze(1), causal=True)
    gradients, wanted = (torch.autograd.grad((result * direction).sum(), inputs) for result in (output, expected))
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_gradients_of_cross_attention_in_training(kv_heads):
    torch.manual_seed(11)
    layer = random_layer(8, 4, num_kv_heads=kv_heads, kdim=5, vdim=5, encoder_decoder_attention=True).train()
    query, memory = text(3, 2, 8).requires_grad_(), text(4, 2, 5).requires_grad_()
    mask, direction = padding_mask([4, 2], 4, "left"), text(3, 2, 8)
    inputs = [query, memory, *layer.parameters()]
    output, _ = layer(query, memory, key_padding_mask=mask, need_weights=False)
    expected, _ = naive_layer(layer, query, memory, memory, mask.unsqueeze(1))
    gradients, wanted = (torch.autograd.grad((result * direction).sum(), inputs) for result in (output, expected))
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [None, *METHODS.values()], ids=[None, *METHODS])
def test_dropout_is_of_training_unless_it_is_retained(method):
    torch.manual_seed(9)
    layer = Attention(8, 2, dropout=0.5, encoder_decoder_attention=True)
    memory, query = torch.randn(6, 2, 8), torch.randn(3, 2, 8)
    state = None if method is None else SentenceMemory(method, method.keep(layer, memory))

    def is_random():
        first, second = (layer(query, memory, need_weights=False, memory=state)[0] for _ in range(2))
        return not torch.equal(first, second)

    assert is_random()
    layer.eval()
    assert not is_random()
    layer.dropout_module.apply_during_inference = True  # as --retain-dropout sets it
    assert is_random()


@pytest.mark.parametrize(
    "arguments, options",
    [
        ((8, 3), {}),
        ((8, 0), {}),
        ((8, 4), {"num_kv_heads": 3}),
        ((8, 4), {"num_kv_heads": 0}),
        ((8, 4), {"num_kv_heads": 8}),
        ((8, 4), {"self_attention": True, "kdim": 4}),
        ((8, 4), {"self_attention": True, "vdim": 4}),
        ((8, 4), {"head_dim": 0}),
        ((8, 4), {"self_attention": True, "window": 0}),
        ((8, 4), {"encoder_decoder_attention": True, "window": 4}),
    ],
)
def test_what_does_not_divide_or_fit_is_refused(arguments, options):
    with pytest.raises(ValueError):
        Attention(*arguments, **options)


def test_a_mask_that_weighs_positions_is_refused():
    with pytest.raises(ValueError, match="weigh"):
        Attention(8, 2, self_attention=True)(torch.randn(3, 1, 8), attn_mask=torch.full((3, 3), -1.5))


@st.composite
def decodings(draw):
    """A layer, prompts or none, the hypotheses' texts, and in what pieces these are read."""
    layer = draw(layers(self_attention=True))
    sentences, beam = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4, 16]))
    prompts = draw(st.one_of(st.none(), st.lists(st.integers(1, 6), min_size=sentences, max_size=sentences)))
    pieces = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    return layer, sentences, beam, prompts, pieces


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@quick
@given(decodings())
def test_any_way_of_reading_equals_the_whole_text_at_once(method, decoding):
    """Each hypothesis, its prompt before it, as one text without padding."""
    layer, sentences, beam, prompts, pieces = decoding
    width = layer.embed_dim
    state = SelfAttentionMemory(method, layer)
    prompt = None
    if prompts is not None:
        prompt = text(max(prompts), sentences, width)
        mask = padding_mask(prompts, max(prompts), "right")
        read, _ = layer(prompt, need_weights=False, memory=state)
        state.end_prompt(mask)
        for row, length in enumerate(prompts):
            alone = prompt[:length, row : row + 1]
            expected, _ = naive_layer(layer, alone, alone, alone, causal=True)
            torch.testing.assert_close(read[:length, row : row + 1], expected, rtol=0, atol=1e-11)
    whole = text(sum(pieces), sentences * beam, width)
    results = [layer(piece, memory=state) for piece in whole.split(pieces)]
    output = torch.cat([result for result, _ in results])
    for row in range(sentences * beam):
        before = whole[:0, row] if prompt is None else prompt[: prompts[row // beam], row // beam]
        full = torch.cat((before, whole[:, row])).unsqueeze(1)
        expected, weights = naive_layer(layer, full, full, full, causal=True)
        torch.testing.assert_close(output[:, row], expected[len(before) :, 0], rtol=0, atol=1e-11)
        # The last position sees everything within its window: its prompt, no padding, and all of its own.
        last = results[-1][1][row, -1]
        seen = last if prompt is None else torch.cat((last[: len(before)], last[len(prompt) :]))
        expected = weights[0, :, -1].mean(dim=0)
        if layer.window is not None:
            assert not expected[: -layer.window].any()
            seen, expected = seen[seen != 0], expected[expected != 0]
        torch.testing.assert_close(seen, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_reordered_hypotheses_go_on_from_what_they_continue(method):
    torch.manual_seed(10)
    layer = random_layer(8, 4, num_kv_heads=2, self_attention=True)
    state = SelfAttentionMemory(method)
    prompt = text(3, 2, 8)
    layer(prompt, memory=state)
    state.end_prompt(None)
    first, second = text(2, 6, 8), text(1, 6, 8)
    layer(first, memory=state)
    order = torch.tensor([2, 2, 0, 5, 3, 5])
    state.generated.reorder(order)
    output, _ = layer(second, memory=state)
    for row, parent in enumerate(order.tolist()):
        full = torch.cat((prompt[:, row // 3], first[:, parent], second[:, row])).unsqueeze(1)
        expected, _ = naive_layer(layer, full, full, full, causal=True)
        torch.testing.assert_close(output[-1, row], expected[-1, 0], rtol=0, atol=1e-11)
