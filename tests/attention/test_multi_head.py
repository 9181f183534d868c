from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elseq.attention import Segment, multi_head_attention
from elseq.attention.multi_head import fused_workspace_bytes
from tests.attention.reference import naive_attention, padding_mask, quick, seeds
from tests.helpers import peak_memory


@st.composite
def problems(draw, causal=False):
    """A query and one or two segments in float64: a memory of the sentence, and what each hypothesis has."""
    torch.manual_seed(draw(seeds))
    sentences, beam = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 5, 16]))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    length, width, value_width = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    query = torch.randn(sentences * beam, kv_heads * group, length, width, dtype=torch.float64)

    def segment(owners, positions, lengths=None, side=None):
        key = torch.randn(owners, kv_heads, positions, width, dtype=torch.float64)
        value = torch.randn(owners, kv_heads, positions, value_width, dtype=torch.float64)
        mask = None if lengths is None else padding_mask(lengths, positions, side).unsqueeze(1)
        return Segment(key, value, mask)

    segments = []
    if not causal or draw(st.booleans()):
        longest = draw(st.integers(1, 6))
        side = draw(st.sampled_from(["left", "right", None]))
        lengths = [draw(st.integers(1, longest)) for _ in range(sentences)] if side else None
        segments.append(segment(sentences, longest, lengths, side))
    if causal or draw(st.booleans()):
        segments.append(segment(sentences * beam, draw(st.integers(length, length + 4))))
    return query, segments


@quick
@given(st.booleans().flatmap(lambda causal: st.tuples(problems(causal), st.just(causal))), st.booleans())
def test_equals_one_head_at_a_time(problem, need_weights):
    (query, segments), causal = problem
    expected, expected_weights = naive_attention(query, segments, causal)
    output, weights = multi_head_attention(query, segments, causal=causal, need_weights=need_weights)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    if need_weights:
        torch.testing.assert_close(weights, expected_weights, rtol=0, atol=1e-12)
    else:
        assert weights is None


@quick
@given(problems(causal=True))
def test_float32(problem):
    query, segments = problem
    expected, _ = naive_attention(query, segments, causal=True)
    single = [Segment(key.float(), value.float(), mask) for key, value, mask, _ in segments]
    output, _ = multi_head_attention(query.float(), single, causal=True)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)


@quick
@given(seeds, st.sampled_from(["left", "right"]), st.booleans(), st.integers(0, 2))
def test_a_padded_query_gives_no_nan_and_changes_nothing_else(seed, side, need_weights, extra):
    torch.manual_seed(seed)
    lengths, longest = [1, 4, 2], 4
    rows = torch.randn(3, 4, longest, 3, dtype=torch.float64)
    key, value = torch.randn(2, 3, 2, longest + extra, 3, dtype=torch.float64)
    mask = padding_mask([length + extra for length in lengths], longest + extra, side)
    output, _ = multi_head_attention(
        rows, [Segment(key, value, mask.unsqueeze(1))], causal=True, need_weights=need_weights
    )
    assert output.isfinite().all()
    for row in range(3):
        kept = ~mask[row]
        asked = kept[extra:]
        alone = Segment(key[row : row + 1, :, kept], value[row : row + 1, :, kept])
        shorter = rows[row : row + 1, :, asked]
        expected, _ = naive_attention(shorter, [alone], causal=True)
        torch.testing.assert_close(output[row : row + 1, :, asked], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_mask_of_its_own_for_each_query_position(rows, need_weights):
    torch.manual_seed(1)
    query = torch.randn(6, 4, 3, 5, dtype=torch.float64)
    key, value = torch.randn(2, 3, 2, 7, 5, dtype=torch.float64)
    mask = torch.rand(rows, 3, 7) < 0.5
    mask[:, :, 2] = False
    output, _ = multi_head_attention(query, [Segment(key, value, mask)], need_weights=need_weights)
    expected, _ = naive_attention(query, [(key, value, mask)])
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_gradients(segments, kv_heads):
    torch.manual_seed(2)

    def output_of(attend, tensors):
        pieces = [Segment(tensors[2 * i], tensors[2 * i + 1], None) for i in range(1, segments)]
        first = Segment(tensors[-2], tensors[-1], padding_mask([2, 3], 3, "left").unsqueeze(1))
        return attend(tensors[0], [first, *pieces] if segments > 1 else [first])[0]

    query = torch.randn(4, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    memory = [torch.randn(2, kv_heads, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    own = [torch.randn(4, kv_heads, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    tensors = [query, None, *own, *memory]
    inputs = [query, *memory, *(own if segments > 1 else [])]
    direction = torch.randn(4, 4, 2, 3, dtype=torch.float64)
    gradients = torch.autograd.grad((output_of(multi_head_attention, tensors) * direction).sum(), inputs)
    expected = torch.autograd.grad((output_of(naive_attention, tensors) * direction).sum(), inputs)
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("need_weights", [False, True])
def test_gradcheck(need_weights):
    torch.manual_seed(3)
    query = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(1, 1, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.autograd.gradcheck(
        lambda *tensors: multi_head_attention(tensors[0], [Segment(*tensors[1:])], need_weights=need_weights)[0],
        (query, key, value),
    )


@pytest.mark.parametrize("need_weights", [False, True])
def test_dropout_drops_weights_and_scales_the_others(need_weights):
    """Where the values are the unit vectors, the output is the weights after dropout."""
    torch.manual_seed(4)
    query, key = torch.randn(4, 2, 3, 8), torch.randn(2, 1, 50, 8)
    segment = Segment(key, torch.eye(50).expand(2, 1, 50, 50))
    exact, _ = naive_attention(query, [segment])
    dropped, _ = multi_head_attention(query, [segment], dropout=0.25, need_weights=need_weights)
    survives = dropped != 0
    assert 0.65 < survives.float().mean() < 0.85
    torch.testing.assert_close(dropped, exact / 0.75 * survives)


def test_the_weights_that_are_returned_are_those_before_dropout():
    torch.manual_seed(5)
    query, key, value = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4)
    _, weights = multi_head_attention(query, [Segment(key, value)], dropout=0.5, need_weights=True)
    torch.testing.assert_close(weights, naive_attention(query, [(key, value, None)])[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_softmax_in_float32(dtype):
    torch.manual_seed(6)
    query, key, value = torch.randn(2, 2, 1, 16), torch.randn(2, 2, 4000, 16), torch.randn(2, 2, 4000, 16)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    output, weights = multi_head_attention(query, [Segment(key, value)], need_weights=True)
    assert (output.dtype, weights.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("length, keys", [(1, 700), (40, 9), (200, 200), (800, 20)])
def test_the_workspace_of_fused_attention(length, keys, dtype):
    query, key = (torch.randn(1, 2, size, 8, dtype=dtype) for size in (length, keys))
    attend = partial(torch.nn.functional.scaled_dot_product_attention, query, key, key, scale=1.0)
    result = query.nbytes + query[..., 0].numel() * max(4, dtype.itemsize)  # and the logarithm of a sum for each row
    assert peak_memory(attend) == result + fused_workspace_bytes(length, keys, 8, dtype.itemsize)


@pytest.mark.parametrize("top_k", [40, None])
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("need_weights", [False, True])
def test_keys_and_values_narrower_than_the_query(length, top_k, need_weights):
    """As if they were converted, which they are not as a whole where top-k reads a part of them."""
    torch.manual_seed(0)
    query = torch.randn(4, 8, length, 16)
    keys, values = torch.randn(2, 8, 16, 4000).bfloat16().transpose(2, 3), torch.randn(2, 8, 4000, 16).bfloat16()
    mask = padding_mask([4000, 3000], 4000, "left").unsqueeze(1)
    options = {"top_k": top_k, "need_weights": need_weights}
    attend = partial(multi_head_attention, query, [Segment(keys, values, mask)], **options)
    found, weights = attend()
    expected, expected_weights = multi_head_attention(query, [Segment(keys.float(), values.float(), mask)], **options)
    assert found.equal(expected)
    assert weights.equal(expected_weights) if need_weights else weights is None
    if top_k and not need_weights and length > 1:
        scores = 2 * query[..., 0].numel() * 4000 * 4  # and the choice of the largest of them
        assert peak_memory(attend) < scores + 0.6 * keys.numel() * 4
