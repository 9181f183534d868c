"""The kernel of a decoding step on a GPU, against attention written out in float64.

Without a GPU, Triton's interpreter runs it on CPU tensors, in float16 as on a GPU that has `wgmma`. It knows no
products of bfloat16.
"""

import copy
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from unittest.mock import MagicMock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elseq import kernel_trials
from elseq.attention import Attention, DecodeState, LayerState, Segment, SelfAttentionMemory, multi_head_attention
from elseq.attention.ancestry import Ancestry
from elseq.attention.kernels import flash_decoding
from elseq.attention.kernels.flash_decoding import Sizes, computes
from elseq.attention.memory import Cursor, FixedMemory
from elseq.attention.methods import EL, KV
from elseq.attention.multi_head import _by_torch
from tests.attention.reference import naive_attention, padding_mask, quick, seeds

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
A100 = 163 * 1024  # bytes of shared memory that a program can have
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


HAS_WGMMA = DEVICE == "cpu" or torch.cuda.get_device_capability()[0] == 9


def launch(query, segments, processors=4, has_wgmma=HAS_WGMMA):
    from elseq.attention.kernels import flash_decoding_triton

    gpu = flash_decoding_triton.GPU(processors, A100, has_wgmma)
    return flash_decoding_triton.launch(query.to(DEVICE), [moved(segment) for segment in segments], gpu).cpu()


def moved(segment):
    *tensors, ancestry = segment
    key, value, mask = (None if each is None else each.to(DEVICE) for each in tensors)
    if ancestry is not None:
        ancestry = copy.copy(ancestry)
        ancestry.__dict__ |= {name: each.to(DEVICE) for name, each in vars(ancestry).items() if name != "beam"}
    return Segment(key, key if segment.value is segment.key else value, mask, ancestry)


def expected(query, segments):
    wide = []
    for key, value, mask, ancestry in segments:
        key, value = (own_rows(tensor, ancestry).double() for tensor in (key, value))
        wide.append(Segment(key, value, mask))
    return naive_attention(query.double(), wide)[0]


def own_rows(tensor, ancestry):
    """Every hypothesis with its positions in its own row."""
    if ancestry is None:
        return tensor
    rows = ancestry.rows.tolist()
    return torch.stack([torch.stack([tensor[place, :, s] for s, place in enumerate(row)], dim=1) for row in rows])


def draw_ancestry(sentences, beam, positions, kept=0.5):
    """Of a search, in which a hypothesis goes on with this probability, and another of its sentence else."""
    ancestry = Ancestry(sentences * beam, beam, positions, torch.device("cpu"))
    own = torch.arange(sentences * beam)
    for position in range(1, positions):
        other = own // beam * beam + torch.randint(beam, own.shape)
        ancestry.reorder(torch.where(torch.rand(own.shape) < kept, own, other), torch.tensor([position]))
    return ancestry


def check(query, segments, *gpu):
    found = launch(query, segments, *gpu)
    assert found.dtype == query.dtype
    tolerance = TOLERANCE[query.dtype]
    torch.testing.assert_close(found.double(), expected(query, segments), rtol=tolerance, atol=tolerance)


def tolerance(dtype, width):
    """Of hidden states a score has more terms than of keys, which a GPU adds up one after the other."""
    return 1e-5 if dtype == torch.float32 and width > 80 else TOLERANCE[dtype]


def draw_query(hypotheses, heads, width, dtype=torch.float32):
    return (torch.randn(hypotheses, 1, heads, width).transpose(1, 2) * 2 / width**0.5).to(dtype)


def draw_segment(sequences, kv_heads, positions, width, shares=False, transposed=False, dtype=torch.float32):
    key, value = torch.randn(2, sequences, kv_heads, positions, width, dtype=dtype)
    if transposed:
        key = key.transpose(2, 3).contiguous().transpose(2, 3)
    return Segment(key, key if shares else value)


def hide(segment, lengths):
    """Positions from these lengths on, one for each sequence or for all, are masked, and hold no numbers."""
    mask = padding_mask(lengths, segment.key.size(2), "right").unsqueeze(1)
    hidden = mask.view(len(mask), 1, -1, 1)
    key, value = (tensor.masked_fill(hidden, torch.nan) for tensor in (segment.key, segment.value))
    found = segment._replace(key=key, value=key if segment.value is segment.key else value, mask=mask)
    zeros = found._replace(key=found.key.nan_to_num(), value=found.value.nan_to_num())  # for the reference
    return found, zeros


lengths = st.sampled_from([1, 2, 17, 64, 65, 130])


@st.composite
def problems(draw):
    torch.manual_seed(draw(seeds))
    sentences, beam = draw(st.integers(1, 2)), draw(st.integers(1, 5))
    kv_heads, group = draw(st.sampled_from([(1, 1), (1, 4), (2, 2), (3, 1)]))
    width = draw(st.sampled_from([1, 16, 40, 64, 80]))
    dtype = draw(st.sampled_from([torch.float32, torch.float16]))
    query = draw_query(sentences * beam, kv_heads * group, width, dtype)
    segments, references = [], []
    for sequences in draw(st.sampled_from([[sentences], [sentences * beam], [sentences, sentences * beam]])):
        positions = draw(lengths)
        segment = draw_segment(sequences, kv_heads, positions, width, draw(st.booleans()), draw(st.booleans()), dtype)
        reference = segment
        rows = draw(st.sampled_from([0, 1, sequences]))
        if sequences == sentences * beam and draw(st.booleans()):
            segment = segment._replace(ancestry=draw_ancestry(sentences, beam, positions, draw(st.floats(0, 1))))
            reference, rows = segment, min(rows, 1)
        if rows:
            segment, reference = hide(segment, [draw(st.integers(1, positions)) for _ in range(rows)])
        segments.append(segment)
        references.append(reference)
    return query, segments, references


@settings(quick, max_examples=min(8, quick.max_examples))
@given(problems(), st.sampled_from([1, 4, 100]))
def test_attention_of_all_kinds(problem, processors):
    query, segments, references = problem
    found, tolerance = launch(query, segments, processors), TOLERANCE[query.dtype]
    torch.testing.assert_close(found.double(), expected(query, references), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("width, processors", [(128, 1), (320, 1), (512, 1), (768, 16), (1000, 1), (1024, 16)])
def test_hidden_states(width, processors):
    """EL-attention: one key/value head as wide as the model, whose values are its keys."""
    torch.manual_seed(width)
    segment, reference = hide(draw_segment(1, 1, 50, width, shares=True), [41])
    query = draw_query(3, 8, width)
    found = launch(query, [segment], processors)
    torch.testing.assert_close(found.double(), expected(query, [reference]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("has_wgmma", [True, False])
@pytest.mark.parametrize("width, shares", [(64, False), (512, True), (768, True), (1000, True), (1024, True)])
def test_half_precision(width, shares, has_wgmma):
    torch.manual_seed(1)
    segments = [draw_segment(count, 1, 50, width, shares, dtype=torch.float16) for count in (2, 4)]
    mask = torch.zeros(2, 1, 50, dtype=torch.bool)
    mask[0, 0, :35] = mask[1, 0, 40:] = True
    segments[0] = segments[0]._replace(mask=mask)
    check(draw_query(4, 9, width, torch.float16), segments, 4, has_wgmma)


@pytest.mark.parametrize("beam", [1, 5, 20])
def test_many_heads(beam):
    """More rows than a program has."""
    torch.manual_seed(beam)
    check(draw_query(beam, 16, 64), [draw_segment(1, 1, 20, 64)])


@pytest.mark.parametrize(
    ("sentences", "width", "has_wgmma", "programs"),
    [
        (320, 1024, True, 2 * 320),
        (320, 1024, False, 4 * 320),
        (32, 1024, True, 2 * 32 * 2),
        (1, 1024, True, 2 * 16),  # as many parts as blocks
        (32, 512, False, 4 * 32 * 2),
        (60, 64, True, 60 * 4),
    ],
)
def test_as_many_programs_as_run_at_once(sentences, width, has_wgmma, programs, monkeypatch):
    """On 132 processors, each of which has registers for 8 warps: positions are split if sentences are too few."""
    from elseq.attention.kernels import flash_decoding_triton

    kernel = MagicMock()
    monkeypatch.setattr(flash_decoding_triton, "attend", kernel)
    monkeypatch.setattr(flash_decoding_triton, "join", MagicMock())
    number = torch.zeros(1, dtype=torch.float16)
    states = number.expand(sentences, 1, 512, width)
    query = number.expand(sentences * 4, 16, 1, width)
    gpu = flash_decoding_triton.GPU(132, 227 * 1024, has_wgmma)
    flash_decoding_triton.launch(query, [Segment(states, states)], gpu)
    assert kernel.__getitem__.call_args.args[0] == (programs,)


def test_parts_of_which_all_is_masked():
    torch.manual_seed(1)
    segment, reference = hide(draw_segment(2, 1, 200, 16), [3, 120])
    query = draw_query(4, 2, 16)
    for processors in (1, 100):
        found = launch(query, [segment], processors)
        torch.testing.assert_close(found.double(), expected(query, [reference]), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("has_ancestry", [True, False])
@pytest.mark.parametrize("positions, processors", [(150, 4), (160, 4), (330, 7), (200, 3)])
def test_numbers_of_parts_that_do_not_divide_the_blocks(positions, processors, has_ancestry):
    """Behind the positions are others that are not masked and no numbers: nothing is read there."""
    torch.manual_seed(1)
    beam = 3
    room = draw_segment(2 * beam if has_ancestry else 2, 1, positions + 100, 64)
    room.key[:, :, positions:] = room.value[:, :, positions:] = torch.nan
    mask = torch.zeros(1 if has_ancestry else 2, 1, positions + 100, dtype=torch.bool)
    mask[0, 0, 7:9] = True
    seen = [each[..., :positions, :] for each in room[:2]]
    ancestry = draw_ancestry(2, beam, positions, 0.97) if has_ancestry else None
    segment = Segment(*seen, mask[..., :positions], ancestry)
    for count in range(1, processors + 1):
        check(draw_query(2 * beam, 2, 64), [segment], 2 * count)


@pytest.mark.parametrize("processors", [1, 100])
def test_any_mask(processors):
    """Padding on the left, and holes: what is in them are numbers."""
    torch.manual_seed(1)
    segment = draw_segment(2, 1, 150, 16)
    mask = torch.rand(2, 1, 150) < torch.tensor([0.5, 0.0]).view(2, 1, 1)
    mask[0, 0, :70] = True
    mask[1, 0, :3] = True
    check(draw_query(4, 2, 16), [segment._replace(mask=mask)], processors)


@pytest.mark.parametrize("processors", [1, 100])
def test_nothing_to_attend_to_is_zero(processors):
    segment, _ = hide(draw_segment(2, 1, 200, 16), [0, 150])
    found = launch(draw_query(2, 2, 16), [segment], processors)
    assert not found[0].any()
    assert found[1].isfinite().all() and found[1].any()


def test_large_scores():
    torch.manual_seed(1)
    segment = draw_segment(1, 2, 200, 16)
    query = (draw_query(2, 2, 16) * 50).round()
    for processors in (1, 100):
        check(query, [segment._replace(key=segment.key.round())], processors)  # exact scores


KINDS = [(16, 16, 16, False), (8, 2, 64, False), (16, 1, 64, False), (8, 1, 512, True), (4, 1, 1024, True)]


@pytest.mark.few_cases(12)
@pytest.mark.parametrize("heads, kv_heads, width, shares", KINDS)
@pytest.mark.parametrize("beam", [2, 5])
@pytest.mark.parametrize("processors", [1, 100])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_positions_of_ancestors(heads, kv_heads, width, shares, beam, processors, dtype):
    """Beside a prompt; positions that are not there are no numbers."""
    torch.manual_seed(beam)
    sentences, positions = 2, 70
    prompt = draw_segment(sentences, kv_heads, 20, width, shares, dtype=dtype)
    segment = draw_segment(sentences * beam, kv_heads, positions, width, shares, dtype=dtype)
    segment = segment._replace(ancestry=draw_ancestry(sentences, beam, positions, kept=0.97))
    segment, reference = hide(segment, [66])
    query, allowed = draw_query(sentences * beam, heads, width, dtype), tolerance(dtype, width)
    for others in ([], [prompt]):
        found = launch(query, [*others, segment], processors)
        wide = expected(query, [*others, reference])
        torch.testing.assert_close(found.double(), wide, rtol=allowed, atol=allowed)


def test_only_rows_of_ancestors_are_read():
    """The others hold no numbers."""
    torch.manual_seed(1)
    segment, ancestry = draw_segment(3, 1, 90, 16), Ancestry(3, 3, 90, torch.device("cpu"))
    for position, order in ((40, [1, 1, 1]), (60, [2, 0, 2]), (80, [0, 1, 0])):
        ancestry.reorder(torch.tensor(order), torch.tensor([position]))
    used = torch.zeros(3, 90, dtype=torch.bool)
    used.scatter_(0, ancestry.rows.long(), True)
    assert used.sum(dim=0).unique_consecutive().tolist() == [1, 2, 3]
    nothing = segment._replace(
        key=segment.key.masked_fill(~used[:, None, :, None], torch.nan),
        value=segment.value.masked_fill(~used[:, None, :, None], torch.nan),
        ancestry=ancestry,
    )
    query = draw_query(3, 2, 16)
    for processors in (1, 100):
        found = launch(query, [nothing], processors)
        wide = expected(query, [segment._replace(ancestry=ancestry)])
        torch.testing.assert_close(found.double(), wide, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("shape", [(2,), ()])
@pytest.mark.parametrize("position", [0, 1, 30, 63])
def test_memory_of_fixed_addresses(shape, position):
    """Of keys and values, and of hidden states: the positions up to the cursor's."""
    torch.manual_seed(position)
    device = torch.device(DEVICE)
    tensors = torch.randn(2, 3, *shape, 64, 32, device=device)
    cursor = Cursor(position, 64, device)
    memory = FixedMemory(tuple(tensors), 64, 64, cursor, 3)
    cursor.begin()
    [((key, value), mask, *_)] = memory.read()
    if not shape:
        key = value = key.unsqueeze(1)
    query = draw_query(3, 4, 32)
    found = launch(query, [Segment(key, value, mask)])
    seen = Segment(key[:, :, : position + 1].cpu(), value[:, :, : position + 1].cpu())
    torch.testing.assert_close(found.double(), expected(query, [seen]), rtol=2e-6, atol=2e-6)


def steps(method, prompt, kv_heads, moves=True):
    """Outputs of a layer that decodes a few tokens of four hypotheses, in the end in memory of fixed addresses."""
    torch.manual_seed(1)
    layer = Attention(16, 4, num_kv_heads=kv_heads, self_attention=True).eval().to(DEVICE)
    memory = SelfAttentionMemory(method, None if moves else layer)
    state = DecodeState([LayerState(memory)])
    outputs = []
    with torch.no_grad():
        if prompt:
            layer(torch.randn(prompt, 2, 16).to(DEVICE), causal=True, memory=memory, need_weights=False)
            state.length = prompt
            state.end_prompt(padding_mask([prompt, 1], prompt, "left").to(DEVICE))
        for number in range(4):
            if number == 2:
                state.fix(8, 2)
                assert (state.cursor.ancestry is None) == moves
            if number >= 2:
                state.cursor.begin()
            outputs.append(layer(torch.randn(1, 4, 16).to(DEVICE), memory=memory, need_weights=False)[0])
            state.length += 1
            if number >= 2:
                state.cursor.end()
            state.reorder(torch.tensor([1, 1, 3, 2], device=DEVICE))
    return torch.stack(outputs)


@pytest.mark.parametrize("prompt, kv_heads", [(0, 1), (3, 2)])
@pytest.mark.parametrize("method", [KV, EL], ids=lambda method: method.name)
@pytest.mark.parametrize("moves", [True, False])
def test_a_layer_decodes_the_same_with_and_without_the_kernel(method, prompt, kv_heads, moves, monkeypatch):
    without = steps(method, prompt, kv_heads)
    calls = []

    def count(query, segments):
        calls.append(query)
        return computed(query, segments)

    computed = flash_decoding.flash_decoding
    monkeypatch.setattr("elseq.attention.methods.method.computes_step", lambda query: False)  # the kernel of a CPU
    monkeypatch.setattr(flash_decoding, "computes", lambda query, segments, plain: query.size(2) == 1)
    monkeypatch.setattr(flash_decoding, "flash_decoding", count)
    found = steps(method, prompt, kv_heads, moves)
    torch.testing.assert_close(found, without, rtol=0, atol=1e-5 if DEVICE == "cuda" else 2e-6)
    assert len(calls) == 4


class OnGPU(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    is_cuda = True


def test_what_it_computes(monkeypatch):
    monkeypatch.setattr(flash_decoding, "usable", lambda *_: True)
    query, segment = draw_query(4, 2, 16), draw_segment(2, 2, 9, 16)
    assert not computes(query, [segment], _by_torch)

    def does(query, segment):
        return computes(query.as_subclass(OnGPU), [segment], _by_torch)

    assert does(query, segment)
    assert does(query.half(), segment._replace(key=segment.key.half(), value=segment.value.half()))
    assert not does(query.half(), segment)
    assert not does(query.double(), Segment(segment.key.double(), segment.value.double()))
    assert not does(query.expand(-1, -1, 2, -1), segment)
    assert not does(query, segment._replace(value=segment.value[..., :8]))
    assert not does(query[:0], segment)
    assert not does(query, Segment(segment.key[:, :, :0], segment.value[:, :, :0]))
    assert not does(draw_query(4, 2, 1025), draw_segment(2, 2, 9, 1025))
    with torch.autocast("cpu", torch.bfloat16):
        assert not does(query, segment)
    trained = segment._replace(key=segment.key.clone().requires_grad_())
    assert not does(query, trained)
    with torch.no_grad():
        assert does(query, trained)
    with monkeypatch.context() as patch:
        patch.setattr(flash_decoding, "MOST_NUMBERS", 9 * 16)
        assert does(query, segment)
        patch.setattr(flash_decoding, "MOST_NUMBERS", 9 * 16 - 1)
        assert not does(query, segment)
        rows = draw_segment(4, 2, 9, 16)._replace(ancestry=draw_ancestry(2, 2, 9))
        patch.setattr(flash_decoding, "MOST_NUMBERS", (2 + 1) * 9 * 16)  # two rows of two heads, but for the last head
        assert does(query, rows)
        patch.setattr(flash_decoding, "MOST_NUMBERS", (2 + 1) * 9 * 16 - 1)
        assert not does(query, rows)
    monkeypatch.setattr(flash_decoding, "usable", lambda *_: False)
    assert not does(query, segment)


def test_weights_dropout_and_the_largest_scores_are_not_for_it(monkeypatch):
    query, segment = draw_query(4, 2, 16), draw_segment(2, 2, 9, 16)
    monkeypatch.setattr(flash_decoding, "computes", lambda *_: True)
    monkeypatch.setattr(flash_decoding, "flash_decoding", lambda query, segments: "the kernel")
    assert multi_head_attention(query, [segment])[0] == "the kernel"
    assert multi_head_attention(query, [segment], top_k=9)[0] == "the kernel"
    for options in ({"need_weights": True}, {"dropout": 0.1}, {"top_k": 3}, {"causal": True}):
        assert isinstance(multi_head_attention(query, [segment], **options)[0], torch.Tensor)


@pytest.mark.parametrize("shares, transposed, kv_heads", [(True, False, 1), (False, True, 2)])
def test_its_trial_finds_it_right(shares, transposed, kv_heads, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernel_trials, "_verdicts", {})
    monkeypatch.setattr(kernel_trials, "_seconds", lambda case: (1.0, 2.0))
    query = draw_query(10, 4, 32).to(DEVICE)
    segment = moved(draw_segment(2, kv_heads, 70, 32, shares, transposed))
    assert flash_decoding._is_usable(query, segment, _by_torch)
    [(name, device, sizes)] = kernel_trials._verdicts
    assert (name, device) == ("flash-decoding", query.device)
    assert sizes == Sizes(torch.float32, 32, 4, kv_heads, 2, 5, 128, shares, transposed)
    drawn_query, drawn = sizes.draw(query.device, segment)
    assert Sizes.of(drawn_query, drawn) == sizes
    assert bool(drawn.mask.any())


@pytest.mark.parametrize("is_fast", [True, False])
@pytest.mark.parametrize("shares, kv_heads", [(True, 1), (False, 2)])
def test_its_trial_with_an_ancestry(shares, kv_heads, is_fast, monkeypatch):
    """It is timed against reordering by moves, and attention by the kernel where that is faster."""
    query = draw_query(6, 4, 32).to(DEVICE)
    segment = moved(draw_segment(6, kv_heads, 70, 32, shares)._replace(ancestry=draw_ancestry(2, 3, 70)))
    sizes = Sizes.of(query, segment)
    assert sizes == Sizes(torch.float32, 32, 4, kv_heads, 2, 3, 128, shares, False, has_ancestry=True)
    drawn_query, drawn = sizes.draw(query.device, segment)
    assert Sizes.of(drawn_query, drawn) == sizes
    length = int((~drawn.mask).sum())
    parted = drawn.ancestry.shared.view(2, 3, 3)[:, 1:, 0]
    assert length == 86 and parted.min() >= length - 4 * 3 - 1 and parted.max() < length
    asked = []
    monkeypatch.setattr(flash_decoding, "computes", lambda *of: asked.append(of) or is_fast)
    case = flash_decoding._trial(sizes, query, segment, _by_torch)
    for found in (case.kernel(), case.plain()):
        torch.testing.assert_close(found.double(), case.expected, rtol=1e-5, atol=1e-5)
    kernel, other = case.timed()
    [(_, [without], _)] = asked
    assert without.ancestry is None and without.key is segment.key
    assert kernel().shape == other().shape == query.shape
    found = {function: [] for function in ("reorder_in_place", "flash_decoding")}
    for name, calls in found.items():
        function = getattr(flash_decoding, name)
        monkeypatch.setattr(flash_decoding, name, lambda *of, f=function, calls=calls: calls.append(of) or f(*of))
    _, other = case.timed()
    other()
    assert len(found["reorder_in_place"]) == (1 if shares else 2)
    assert len(found["flash_decoding"]) == (1 if is_fast else 0)


def test_small_numbers_are_compared_and_as_many_timed_as_are_used():
    segment = draw_segment(2, 1, 64, 32, shares=True)
    sizes = Sizes.of(draw_query(320 * 4, 4, 32), Segment(*[torch.empty(320, 1, 1000, 32)] * 2))
    assert (sizes.sequences, sizes.hypotheses, sizes.positions) == (512, 4, 1024)
    assert (sizes.compared.sequences, sizes.compared.positions) == (16, 512)
    found = flash_decoding._trial(sizes, torch.empty(0, device=DEVICE), moved(segment), _by_torch)
    assert found.expected.shape == (16 * 4, 4, 1, 32)
    if DEVICE == "cpu":  # whose free memory is not asked for
        assert found.timed_sizes == sizes == sizes.timed(None)
    _, plain = flash_decoding._pair(
        lambda *of: _by_torch(*of)[0], *sizes._replace(sequences=2).draw(torch.device("cpu"), segment)
    )
    assert plain().shape == (2 * 4, 4, 1, 32)


@pytest.mark.parametrize(
    "free, sequences, positions",
    [(2**40, 512, 1024), (2**30, 256, 1024), (2**29, 128, 1024), (2**21, 1, 512), (0, 1, 64)],
)
def test_what_is_timed_fits_half_of_the_free_memory(free, sequences, positions):
    """A position has 64 numbers of key and value, and 16 scores."""
    sizes = Sizes(torch.float16, 32, 4, 1, 512, 4, 1024, False, False)
    assert sizes.timed(free) == sizes._replace(sequences=sequences, positions=positions)


def test_what_is_timed_need_not_be_larger_than_the_caches():
    sizes = Sizes(torch.float16, 1024, 16, 1, 1024, 4, 2048, True, False)
    timed = sizes.timed(None)
    assert timed.positions == 2048 and 2**26 < timed.sequences * 2048 * (1024 + 64) <= 2**27


COMPILE = """
import json, re, sys, torch
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver
from elseq.attention import Segment
from elseq.attention.ancestry import Ancestry
from elseq.attention.kernels.flash_decoding_triton import GPU, launch

dtype, capability, shared_memory = getattr(torch, sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

class Absent:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", capability, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

def compile_only(self, *arguments, grid, warmup, **options):
    kernel = run(self, *arguments, grid=grid, warmup=True, **options)
    ptx = kernel.asm["ptx"]
    copies = re.findall(r"cp.async.c[ag].shared.global .*?(0x[0-9a-f]+),", ptx)
    narrow = len(re.findall(r"ld.global.b(?:16|32)", ptx)) + sum(int(size, 16) < 16 for size in copies)
    found = {"shared": kernel.metadata.shared, "narrow": narrow, "is_wgmma": "wgmma" in ptx}
    found["has_ancestry"] = kernel.name == "attend" and arguments[4] is not None
    print("kernel", json.dumps(found | {"name": kernel.name}), flush=True)

driver.set_active(Absent)
run, JITFunction.run = JITFunction.run, compile_only
for width, kv_heads in ((64, 16), (64, 1), (128, 1), (256, 1), (512, 1), (768, 1), (1024, 1)):
    segments = []
    hidden = torch.zeros(1, 1, 96, dtype=torch.bool)
    ancestry = Ancestry(8, 4, 96, hidden.device)
    for sequences, mask, *more in ((2, hidden), (8, None), (8, hidden, ancestry)):
        key, value = torch.zeros(2, sequences, kv_heads, 96, width, dtype=dtype)
        if sequences == 2 and width <= 256:
            key = key.transpose(2, 3).contiguous().transpose(2, 3)
        segments.append(Segment(key, key if width > 256 else value, mask, *more))
    launch(torch.zeros(8, 16, 1, width, dtype=dtype), segments, GPU(132, shared_memory, capability == 90))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype, capability, shared_memory",
    [
        ("float16", 80, A100),
        ("float32", 80, A100),
        ("bfloat16", 86, 99 * 1024),
        ("float16", 90, 227 * 1024),
        ("bfloat16", 90, 227 * 1024),
    ],
)
def test_it_compiles_for_gpus(dtype, capability, shared_memory, tmp_path):
    """Which needs none of them. No register is spilled, but for some that count or hold addresses, and several numbers
    are loaded at once, but for masks and rows."""
    environment = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "TRITON_DUMP_PTXAS_LOG": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, dtype, str(capability), str(shared_memory)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    compiled = re.findall(r"(\d+) bytes spill stores|^kernel (.*)", done.stdout, re.MULTILINE)
    kernels, spilled = [], None
    for bytes_spilled, found in compiled:
        spilled = int(bytes_spilled) if bytes_spilled else spilled
        if found:
            kernels.append(json.loads(found) | {"spilled": spilled})
    assert len(kernels) == 7 * 4  # for three segments, and to join them
    kernels = [kernel for kernel in kernels if kernel["name"] == "attend"]
    assert max(kernel["shared"] for kernel in kernels) <= shared_memory
    assert {kernel["is_wgmma"] for kernel in kernels} == {capability == 90 and dtype != "float32"}
    for has_ancestry, narrow, spilled in (
        (False, 8, 16 if dtype == "float32" else 0),
        (True, 40, 96 if capability == 90 else 64),
    ):
        chosen = [kernel for kernel in kernels if kernel["has_ancestry"] == has_ancestry]
        assert max(kernel["narrow"] for kernel in chosen) <= narrow
        assert max(kernel["spilled"] for kernel in chosen) <= spilled


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width, kv_heads, shares", [(64, 16, False), (64, 1, False), (512, 1, True), (1024, 1, True)])
def test_on_a_gpu(width, kv_heads, shares, dtype):
    torch.manual_seed(1)
    segments = [draw_segment(count, kv_heads, 300, width, shares, dtype=dtype) for count in (2, 8)]
    hidden = [hide(segments[0], [300, 100]), hide(segments[1], [77])]
    ancestry = draw_ancestry(2, 4, 300, kept=0.99)
    listed = [each._replace(ancestry=ancestry) for each in hidden[1]]
    query = draw_query(8, 16, width, dtype)
    allowed = tolerance(dtype, width)
    for chosen in (hidden[:1], hidden[1:], hidden, [listed], [hidden[0], listed]):
        found = launch(query, [segment for segment, _ in chosen], 132)
        wide = expected(query, [reference for _, reference in chosen])
        torch.testing.assert_close(found.double(), wide, rtol=allowed, atol=allowed)


@pytest.mark.gpu
@pytest.mark.parametrize("moves", [True, False])
def test_in_a_cuda_graph(moves):
    """A replayed step attends to what the cursor has reached, of the hypotheses that each continues."""
    device, beam, capacity = torch.device("cuda"), 4, 64
    torch.manual_seed(1)
    start, new = torch.randn(8, 5, 512, device=device), torch.zeros(8, 1, 512, device=device)
    cursor = Cursor(5, capacity, device, None if moves else Ancestry(8, beam, capacity, device))
    memory = FixedMemory((start,), 5, capacity, cursor, beam)
    state = DecodeState([LayerState(SelfAttentionMemory(EL))], cursor=cursor)
    state.layers[0].self_attention.generated = memory
    query = draw_query(8, 8, 512).to(device)
    found, order = torch.zeros(8, 8, 1, 512, device=device), torch.arange(8, device=device)

    def step():
        state.reorder(order)
        cursor.begin()
        memory.append(new)
        [((hidden,), mask, *_)] = memory.read()
        hidden = hidden.unsqueeze(1)
        found.copy_(flash_decoding.flash_decoding(query, [Segment(hidden, hidden, mask, cursor.ancestry)]))
        cursor.end()

    def begin():
        memory.load((start,), 5, None)
        cursor.position.fill_(5)
        if not moves:
            cursor.ancestry.reset()

    step()  # compiles
    begin()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    seen = start
    for _ in range(20):
        new.copy_(torch.randn(8, 1, 512, device=device))
        order.copy_(torch.arange(8, device=device) // beam * beam + torch.randint(beam, (8,), device=device))
        graph.replay()
        seen = torch.cat((seen[order], new), dim=1)
        hidden = seen[:, None].cpu()
        wide = expected(query.cpu(), [Segment(hidden, hidden)])
        torch.testing.assert_close(found.cpu().double(), wide, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width, heads, kv_heads", [(1024, 16, 1), (64, 16, 16), (64, 8, 1)])
def test_attention_is_right_with_the_kernel_or_without(width, heads, kv_heads, dtype, monkeypatch, tmp_path):
    """Whatever the trial finds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernel_trials, "_verdicts", {})
    torch.manual_seed(1)
    segment = draw_segment(4, kv_heads, 400, width, shares=kv_heads == 1 < heads // 8, dtype=dtype)
    query = draw_query(16, heads, width, dtype)
    found, _ = multi_head_attention(query.cuda(), [moved(segment)])
    wide, allowed = expected(query, [segment]), tolerance(dtype, width)
    torch.testing.assert_close(found.cpu().double(), wide, rtol=allowed, atol=allowed)
    assert len(kernel_trials._verdicts) == 1
