"""Steps captured and replayed, on the CPU: by a tape of operations, which stands for a CUDA graph."""

import gc
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from fairseq import search as strategies
from fairseq.token_generation_constraints import pack_constraints

from elseq.attention import DecodeState
from elseq.attention.kernels import flash_decoding
from elseq.attention.methods import EL, KV
from elseq.errors import UserError
from elseq.generation import SequenceGenerator, captured_steps, steppers
from elseq.generation.captured_steps import CapturedSteps, can_capture
from tests.tape import Tape, TapedWork
from tests.tiny_models import (
    assert_same_hypotheses,
    make_dictionary,
    make_elseq_model,
    make_models,
    make_prompts,
    make_sample,
    make_sources,
    pad_rows,
)

DICTIONARY = make_dictionary(20)
SEARCHES = {
    "greedy": {"beam_size": 1, "max_len_b": 12},
    "beam": {"beam_size": 4, "max_len_b": 17},
    "limits of each sentence": {"beam_size": 3, "max_len_a": 1.5, "max_len_b": 2},
    "n-gram blocking": {"beam_size": 4, "max_len_b": 14, "no_repeat_ngram_size": 2, "min_len": 8},
}


@pytest.fixture
def begin_to_capture(monkeypatch):
    """From when this is called on steps are captured, with little room, so that it has to grow."""

    def begin():
        monkeypatch.setattr(captured_steps, "ROOM", 5)
        monkeypatch.setattr(captured_steps, "CHEAP", 0)
        monkeypatch.setattr(captured_steps, "IDLE", 1)
        monkeypatch.setattr(captured_steps, "CapturedWork", TapedWork)
        monkeypatch.setattr(TapedWork, "replays", 0)
        monkeypatch.setattr(steppers, "can_capture", lambda decoder, max_length, positions: decoder.reach(positions))

    return begin


def search(model, sample, extra=None, **options):
    return SequenceGenerator([model], DICTIONARY, **options).generate([model], sample, **(extra or {}))


@pytest.mark.few_cases(10)
@pytest.mark.parametrize("family", ["transformer", "bart", "language_model"])
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize("options", SEARCHES.values(), ids=SEARCHES)
def test_the_same_hypotheses(begin_to_capture, reordering, family, method, options):
    model = make_models(family, DICTIONARY)[method]
    rows = make_sources(DICTIONARY, (3, 7, 1, 5, 2, 6, 4))
    if family == "language_model":
        options = {**options, "max_len_a": 0, "max_len_b": 12}
    sample = make_sample(DICTIONARY, rows, left=family != "language_model")
    expected = search(model, sample, **options)
    begin_to_capture()
    assert_same_hypotheses(search(model, sample, **options), expected)
    assert TapedWork.replays > 3


def allowed_words(sentence, words):
    start = DICTIONARY.nspecial + (sentence + len(words)) % 3
    return [*range(start, len(DICTIONARY), 3), *([DICTIONARY.eos()] if len(words) > 4 else [])]


def constrained(dictionary):
    return strategies.LexicallyConstrainedBeamSearch(dictionary, "unordered")


WORDS = [[[5, 9], [11]], [[20]], [], [[7], [8], [6]], [[4]], [], [[9]]]
OPTIONS = {
    "greedy, n-grams": ({"beam_size": 1, "no_repeat_ngram_size": 2}, {}),
    "sums": ({"normalize_scores": False}, {}),
    "suppressed words": ({"tokens_to_suppress": ["w1", "w5", "w7"]}, {}),
    "unknown words": ({"unk_penalty": -3.0, "temperature": 1.7}, {}),
    "as long as the source": ({"match_source_len": True}, {}),
    "sampling": ({"strategy": strategies.Sampling}, {}),
    "one sample": ({"strategy": strategies.Sampling, "beam_size": 1}, {}),
    "sampling, top-k": ({"strategy": lambda words: strategies.Sampling(words, sampling_topk=3)}, {}),
    "sampling, top-p": ({"strategy": lambda words: strategies.Sampling(words, sampling_topp=0.6)}, {}),
    "diverse groups": ({"strategy": lambda words: strategies.DiverseBeamSearch(words, 2, 0.7)}, {}),
    "diverse siblings": ({"strategy": lambda words: strategies.DiverseSiblingsSearch(words, 0.8)}, {}),
    "allowed words": ({"strategy": lambda words: strategies.PrefixConstrainedBeamSearch(words, allowed_words)}, {}),
    "constraints": (
        {"strategy": constrained, "beam_size": 6},
        {"constraints": pack_constraints([[torch.tensor(phrase) for phrase in phrases] for phrases in WORDS])},
    ),
    "prefixes": ({}, {"prefix_tokens": pad_rows([[5, 6, 7], [8], [9, 2], [], [4, 4], [10], []], DICTIONARY.pad())}),
}


@pytest.mark.few_cases(20)
@pytest.mark.parametrize("where", ["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize(("options", "extra"), OPTIONS.values(), ids=OPTIONS)
def test_options(begin_to_capture, reordering, request, where, method, options, extra):
    model = make_models("transformer", DICTIONARY)[method]
    sample = make_sample(DICTIONARY, make_sources(DICTIONARY, (3, 7, 1, 5, 2, 6, 14)))
    expected = seeded_search([model], sample, extra, **options)
    if where == "as on a GPU":
        request.getfixturevalue("as_on_gpu")
    begin_to_capture()
    assert_same_hypotheses(seeded_search([model], sample, extra, **options), expected)
    assert TapedWork.replays > 3


def seeded_search(models, sample, extra=None, strategy=None, **options):
    given = {} if strategy is None else {"search_strategy": strategy(DICTIONARY)}
    generator = SequenceGenerator(models, DICTIONARY, **{"beam_size": 4, "max_len_b": 17, **options, **given})
    torch.manual_seed(1)
    return generator.generate(models, sample, **(extra or {}))


MODELS = {
    "multi-query": {"num_kv_heads": 1},
    "grouped-query": {"num_kv_heads": 2, "cross_num_kv_heads": 1},
    "wide heads": {"head_dim": 8},
    "top-k": {"attention_top_k": 3, "ffn_top_k": 10},
    "norms before": {"decoder_normalize_before": True},
}


@pytest.mark.parametrize("family", ["transformer", "bart", "language_model"])
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_models(begin_to_capture, as_on_gpu, family, method, options):
    model = make_elseq_model(family, DICTIONARY, method, **options)
    sample = make_sample(DICTIONARY, make_sources(DICTIONARY, (3, 7, 1, 5)), left=family != "language_model")
    options = {"min_len": 7, "max_len_b": 12}
    expected = seeded_search([model], sample, **options)
    begin_to_capture()
    assert_same_hypotheses(seeded_search([model], sample, **options), expected)
    assert TapedWork.replays > 3


@pytest.mark.parametrize("strategy", [None, strategies.Sampling])
def test_ensembles_and_language_models(begin_to_capture, as_on_gpu, strategy):
    models = [make_models("bart", DICTIONARY, seed)[method] for seed, method in ((1, "kv"), (2, "el"), (3, "stock"))]
    options = {"lm_model": make_models("language_model", DICTIONARY)["kv"], "lm_weight": 0.6, "strategy": strategy}
    sample = make_sample(DICTIONARY, make_sources(DICTIONARY, (3, 7, 1, 5)))
    expected = seeded_search(models, sample, **options)
    begin_to_capture()
    assert_same_hypotheses(seeded_search(models, sample, **options), expected)
    assert TapedWork.replays > 3


@pytest.mark.few_cases(7)
@pytest.mark.parametrize("family", ["transformer", "bart", "language_model"])
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize(
    "rule", [{"beam_patience": 2.0}, {"early_stopping": "bound"}, {"early_stopping": "never"}], ids=str
)
def test_rules_of_stopping(begin_to_capture, family, method, rule):
    """With weights for which each of them finds other hypotheses than fairseq's rule."""
    model = make_models(family, DICTIONARY, seed=4)[method]
    rows = make_sources(DICTIONARY, (3, 7, 1, 5, 2, 6, 4))
    sample = make_sample(DICTIONARY, rows, left=family != "language_model")
    options = {"beam_size": 4, "max_len_b": 12 if family == "language_model" else 17, "len_penalty": 2.0}
    by_default, expected = search(model, sample, **options), search(model, sample, **options, **rule)
    begin_to_capture()
    assert_same_hypotheses(search(model, sample, **options, **rule), expected)
    assert TapedWork.replays > 3
    words = [[[each["tokens"].tolist() for each in sentence] for sentence in found] for found in (by_default, expected)]
    assert words[0] != words[1]


@pytest.mark.parametrize("learned_pos", [True, False])
@pytest.mark.parametrize("method", ["kv", "el"])
def test_prompts(begin_to_capture, method, learned_pos):
    """Of different lengths; positions that are computed are so for all steps, beyond those of the model."""
    positions = 40 if learned_pos else 12
    model = make_models("language_model", DICTIONARY, positions=positions, decoder_learned_pos=learned_pos)[method]
    sample, prompts = make_prompts(DICTIONARY, (2, 9, 5, 1))
    options = {"beam_size": 3, "max_len_b": 25, "max_len": 40, "min_len": 15}
    expected = search(model, sample, prompts, **options)
    begin_to_capture()
    assert_same_hypotheses(search(model, sample, prompts, **options), expected)
    assert TapedWork.replays > 3


def test_not_beyond_learned_positions(begin_to_capture):
    """A captured step could not say that there are no more."""
    model = make_models("language_model", DICTIONARY, positions=14)["kv"]
    sample, prompts = make_prompts(DICTIONARY, (2, 9))
    begin_to_capture()
    search(model, sample, prompts, beam_size=3, max_len_b=50)
    assert TapedWork.replays == 0
    with pytest.raises(UserError, match="the model has 14 positions and was given token number 15"):
        search(model, sample, prompts, beam_size=3, min_len=20, max_len_b=50, max_len=99)


def test_alignments_are_not_replayed(begin_to_capture):
    model = make_models("transformer", DICTIONARY)["kv"]
    begin_to_capture()
    found = search(model, make_sample(DICTIONARY, make_sources(DICTIONARY, (3, 7))), print_alignment="hard")
    assert len(found[0][0]["alignment"])
    assert TapedWork.replays == 0


def count_states():
    return sum(type(each) in (DecodeState, CapturedSteps) for each in gc.get_objects())


def test_nothing_is_held_between_batches(begin_to_capture):
    model = make_models("bart", DICTIONARY)["el"]
    generator = SequenceGenerator([model], DICTIONARY, beam_size=2, max_len_b=12)
    begin_to_capture()
    # torch's first operation under a dispatch mode imports modules, and a failed import's traceback holds the frames.
    with Tape():
        torch.zeros(2).index_select(0, torch.arange(2))
    gc.collect()
    gc.disable()
    try:
        before = count_states()
        generator.generate([model], make_sample(DICTIONARY, make_sources(DICTIONARY, (3, 7))))
        assert TapedWork.replays > 3
        assert count_states() == before
    finally:
        gc.enable()


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("method", ["kv", "el"])
def test_hypotheses_are_found_by_the_kernel(begin_to_capture, monkeypatch, method):
    """Interpreted, which a tape cannot record."""
    model = make_models("transformer", DICTIONARY)[method]
    sample = make_sample(DICTIONARY, make_sources(DICTIONARY, (3, 7, 1)))
    options = {"beam_size": 3, "max_len_b": 11}
    expected = search(model, sample, **options)
    begin_to_capture()
    monkeypatch.setattr(captured_steps, "CapturedWork", lambda device: lambda work: work())
    monkeypatch.setattr("elseq.attention.methods.method.computes_step", lambda query: False)  # the kernel of a CPU
    monkeypatch.setattr(flash_decoding, "computes", lambda query, segments, plain: query.size(2) == 1)
    by_ancestry, computed = [], flash_decoding.flash_decoding

    def compute(query, segments):
        by_ancestry.append(segments[-1].ancestry)
        return computed(query, segments)

    monkeypatch.setattr(flash_decoding, "flash_decoding", compute)
    assert_same_hypotheses(search(model, sample, **options), expected, tolerance=1e-5)
    used = [ancestry for ancestry in by_ancestry if ancestry is not None]
    assert len({id(ancestry) for ancestry in used}) == 3  # one for all layers, until the room grows
    assert any((ancestry.shared.sort(dim=1)[0][:, :-1] > 3).any() for ancestry in used)


@pytest.mark.parametrize("method", [KV, EL], ids=lambda method: method.name)
@torch.no_grad()
def test_room_and_idle_sentences(monkeypatch, reordering, method):
    """What a step reads doubles; finished sentences are dropped then, or when they are half of all."""
    monkeypatch.setattr(captured_steps, "ROOM", 4)
    monkeypatch.setattr(captured_steps, "CHEAP", 0)
    monkeypatch.setattr(captured_steps, "IDLE", 1)
    model = make_models("transformer", DICTIONARY)["kv"]
    sample = make_sample(DICTIONARY, make_sources(DICTIONARY, (3, 7, 1, 5, 2, 4)))
    decoder, encoder_out = model.decoder, model.encoder.forward_torchscript(sample["net_input"])
    plain, fixed = decoder.new_state(encoder_out, method), decoder.new_state(encoder_out, method)
    beam, longest = 2, 11

    def decode(tokens: torch.Tensor, state: DecodeState) -> torch.Tensor:
        return decoder.decode(tokens, state)[0][:, -1]

    steps = CapturedSteps(decode, fixed, beam, longest)
    tokens = torch.randint(4, len(DICTIONARY), (6 * beam, longest))
    rooms, sentences = [], []
    for step in range(longest):
        expected = decode(tokens[:, step : step + 1], plain)
        torch.testing.assert_close(steps.step(tokens[:, : step + 1]), expected)
        assert fixed.length == step + 1
        rooms.append(0 if fixed.cursor is None else fixed.cursor.ahead.size(-1))
        assert fixed.cursor is None or (fixed.cursor.ancestry is None) == (reordering == "moved")
        sentences.append(len(fixed.layers[0].cross_attention.tensors[0]))
        rows, kept = torch.arange(len(tokens)).view(-1, beam), None
        if step in (2, 4, 5, 6):
            kept = torch.arange(len(rows))[1:]
            rows = rows[kept]
            plain.keep(kept)
        order = rows.flip(1).flatten() if step % 3 else rows.flatten()
        plain.reorder(order)
        steps.reorder(order, kept)
        if steps._rows is not None:
            order_within = steps._step.order
            idle = torch.ones(len(order_within), dtype=torch.bool).index_fill(0, steps._rows, False)
            assert torch.equal(order_within[idle], idle.nonzero().flatten())  # which moves nothing
        tokens = tokens.index_select(0, order)
    assert rooms == [0, 4, 4, 4, 8, 8, 8, 8, 11, 11, 11]
    # One leaves after the third step and is gone when room has to grow, at the fifth; after the eighth half are idle.
    assert sentences == [6, 6, 6, 6, 5, 5, 5, 2, 2, 2, 2]


@pytest.mark.parametrize(("sentences", "expected"), [(1, [141]), (8, [141]), (32, [42, 64, 128, 128, 141])])
def test_captures_of_a_batch_of_summaries(monkeypatch, sentences, expected):
    """In float16 by BART-large, a beam of 4: one for each room, and one when half of many hypotheses are idle."""
    rooms = []
    monkeypatch.setattr(captured_steps, "CapturedWork", lambda device: lambda work: work())

    def ignore(*_):
        pass

    def decode(tokens, state):
        state.length += 1
        return tokens.float()

    cursor = SimpleNamespace(position=torch.zeros(1), begin=ignore, end=ignore)
    state = SimpleNamespace(
        length=0, cursor=cursor, keep=ignore, reorder=ignore, fix=lambda room, *_: rooms.append(room)
    )
    beam = 4
    state.bytes_of_position = lambda: 12 * 2 * 1024 * 2 * beam * sentences
    steps = CapturedSteps(decode, state, beam, 141)
    for length in range(1, 142):
        steps.step(torch.zeros(sentences * beam, length, dtype=torch.long))
        kept = None
        if length > 56 and not length % 3 and sentences > 1:
            sentences -= 1
            kept = torch.arange(sentences)
        steps.reorder(torch.arange(sentences * beam), kept)
    assert rooms == expected


class OnGpu:
    """A decoder, but for where its parameters are."""

    def __init__(self, decoder):
        self.decoder = decoder

    def parameters(self):
        return iter([SimpleNamespace(is_cuda=True)])

    def __getattr__(self, name):
        return getattr(self.decoder, name)


def test_what_is_captured():
    def decoder(family="transformer", **options):
        return OnGpu(make_models(family, DICTIONARY, **options)["kv"].decoder)

    assert can_capture(decoder(), 30, 30)
    assert can_capture(decoder("language_model"), 30, 40)
    assert not can_capture(decoder().decoder, 30, 30)  # on a CPU
    assert not can_capture(decoder(), captured_steps.SHORTEST_OUTPUT - 1, 30)
    assert not can_capture(decoder(), 30, 41)
    assert can_capture(decoder(decoder_learned_pos=False), 30, 4000)
    local, noisy = decoder(), decoder()
    local.layers[1].self_attn.window = 3
    assert not can_capture(local, 30, 30)
    noisy.layers[0].dropout_module.apply_during_inference = True
    assert not can_capture(noisy, 30, 30)
