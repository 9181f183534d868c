"""Captured steps kept for the next batches, on the CPU: by a tape of operations, which stands for a CUDA graph."""

import copy
import gc
from contextlib import nullcontext
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from fairseq import search

from elseq.attention import DecodeState
from elseq.attention.kernels import flash_decoding
from elseq.attention.methods import EL, KV, Choice
from elseq.errors import UserError
from elseq.generation import SequenceGenerator, budget, captured_steps, cuda_graphs, kept_steps, steppers
from elseq.generation.kept_steps import FREE, Buffers, KeptSteps, shared_sizes
from elseq.generation.planner import Workload, decoding_state_bytes
from elseq.generation.strategies import seeded
from elseq.kernel_trials import SWITCH
from elseq.precision import floats
from elseq.precision.linear import Product
from tests.generation.test_transfers import STRATEGIES
from tests.tape import TapedWork
from tests.tiny_models import (
    assert_same_hypotheses,
    make_dictionary,
    make_models,
    make_prompts,
    make_sample,
    make_sources,
    pad_rows,
)

DICTIONARY = make_dictionary(20)
# Lengths of sources: the first three batches have sizes in common, with other padding and other numbers of sentences.
# Their sentences finish at different steps.
BATCHES = [(3, 7, 1, 5, 2), (6, 2, 6, 6, 1), (4,) * 8]
OTHER = (9, 3, 12, 8, 1)


@pytest.fixture
def begin_to_keep(monkeypatch):
    """From when this is called on steps are captured and kept."""
    monkeypatch.setattr(floats, "fastest", lambda dtype: Product)  # on a GPU layers are ordinary

    def begin():
        monkeypatch.setattr(captured_steps, "CapturedWork", TapedWork)
        monkeypatch.setattr(TapedWork, "captures", 0)
        monkeypatch.setattr(TapedWork, "replays", 0)
        monkeypatch.setattr(steppers, "can_capture", lambda decoder, max_length, positions: decoder.reach(positions))
        monkeypatch.setattr(kept_steps, "can_keep", lambda device: True)
        monkeypatch.setattr(KeptSteps, "is_possible", True)

    return begin


def sample_of(lengths, seed=1, left=True):
    return make_sample(DICTIONARY, make_sources(DICTIONARY, lengths, seed), left)


def make_generator(*models, beam=4, **options):
    return SequenceGenerator(list(models), DICTIONARY, **{"beam_size": beam, "max_len_b": 14, **options})


def buffers_of(generator):
    """Those that are kept for batches of one size."""
    [buffers] = generator.stepper.steppers[0].kept._buffers.values()
    return buffers


def alone(models, sample, extra=None, **options):
    """As it is found without any capture."""
    return make_generator(*models, **options).generate(models, sample, **(extra or {}))


@pytest.mark.few_cases(5)
@pytest.mark.parametrize(
    ("family", "method"),
    [*product(["transformer", "bart", "language_model"], ["kv", "el"]), ("transformer", "kv+el")],
)
@pytest.mark.parametrize("beam", [1, 4])
def test_batches_of_like_size_are_captured_once(begin_to_keep, reordering, family, method, beam):
    model = make_models(family, DICTIONARY)["kv"]
    model.decoder.decode_attention = method
    has_source = family != "language_model"
    lengths = [*BATCHES, *([OTHER] if has_source else []), BATCHES[0]]
    samples = [sample_of(each, seed, has_source) for seed, each in enumerate(lengths)]
    expected = [alone([model], sample, beam=beam) for sample in samples]
    begin_to_keep()
    generator, captures = make_generator(model, beam=beam), []
    for sample, hypotheses in zip(samples, expected, strict=True):
        assert_same_hypotheses(generator.generate([model], sample), hypotheses, tolerance=1e-5)
        captures.append(TapedWork.captures)
    # Beyond 8 positions of the source there are other buffers.
    assert captures == ([1, 1, 1, 2, 2] if has_source else [1, 1, 1, 1])
    assert TapedWork.replays > 20


@pytest.mark.few_cases(3)
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("learned_pos", [True, False])
def test_prompts(begin_to_keep, reordering, method, beam, learned_pos):
    model = make_models("language_model", DICTIONARY, decoder_learned_pos=learned_pos)[method]
    lengths = [(2, 10, 5, 1), (9, 9, 9), (16, 1, 7, 4), (0, 0, 0), (3, 20, 4), (1, 2, 16)]
    given = [make_prompts(DICTIONARY, each, seed) for seed, each in enumerate(lengths)]
    options = {"beam": beam, "min_len": 4}
    expected = [alone([model], *each, **options) for each in given]
    begin_to_keep()
    generator, captures = make_generator(model, **options), []
    for (sample, extra), hypotheses in zip(given, expected, strict=True):
        assert_same_hypotheses(generator.generate([model], sample, **extra), hypotheses, tolerance=1e-5)
        captures.append(TapedWork.captures)
    # Without prompts (a start symbol alone) there are other buffers, and so beyond 16 tokens.
    assert captures == [1, 1, 1, 2, 3, 3]


def test_ensembles_and_language_models(begin_to_keep, reordering, as_on_gpu):
    """Each model has its own."""
    models = [make_models("bart", DICTIONARY, seed)[method] for seed, method in ((1, "kv"), (2, "el"))]
    options = {"lm_model": make_models("language_model", DICTIONARY)["kv"], "lm_weight": 0.6}
    samples = [sample_of(each, seed) for seed, each in enumerate(BATCHES)]
    expected = [alone(models, sample, **options) for sample in samples]
    begin_to_keep()
    generator = make_generator(*models, **options)
    for sample, hypotheses in zip(samples, expected, strict=True):
        assert_same_hypotheses(generator.generate(models, sample), hypotheses, tolerance=1e-5)
        assert TapedWork.captures == 3


@pytest.mark.few_cases(3)
@pytest.mark.parametrize("family", ["bart", "language_model"])
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize("beam", [1, 3])
def test_parts(begin_to_keep, reordering, monkeypatch, as_on_gpu, family, method, beam):
    """As half of the sentences are finished, the others go on in the first half of the same buffers."""
    model = make_models(family, DICTIONARY)[method]
    if family == "bart":
        given = [
            (sample_of(each, seed), {}) for seed, each in enumerate([(3, 7, 1, 5, 2, 6, 4), (1, 7, 7, 3, 2), (6,) * 8])
        ]
        options = {"max_len_a": 1.5, "max_len_b": 2}
    else:
        lengths = [(3, 7, 2, 5, 2, 6, 4), (2, 7, 8, 3, 2), (6,) * 8]
        given = [make_prompts(DICTIONARY, each, seed) for seed, each in enumerate(lengths)]
        options = {"max_len_b": 20, "max_len": 24}
    options["beam"] = beam
    expected = [alone([model], *each, **options) for each in given]
    monkeypatch.setattr(captured_steps, "IDLE", 1)
    begin_to_keep()
    generator, kept = make_generator(model, **options), []
    for (sample, extra), hypotheses in zip(given, expected, strict=True):
        assert_same_hypotheses(generator.generate([model], sample, **extra), hypotheses, tolerance=1e-5)
        kept.append(buffers_of(generator))
    assert len(kept[0].steps) > 1
    assert kept[0] is kept[1] is kept[2]
    assert TapedWork.captures <= len(kept[0].steps)


@pytest.mark.few_cases(4)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("family", ["bart", pytest.param("language_model", marks=pytest.mark.slow)])
def test_sentences_leave_after_the_pass_of_the_models(begin_to_keep, monkeypatch, request, family, strategy):
    """Whatever the search strategy; and what other batches left in the buffers is not read, not even after an error."""
    model = make_models(family, DICTIONARY)["kv"]
    options = {"beam": 3, "max_len_a": 1, "max_len_b": 3, **STRATEGIES[strategy]}
    options["beam"] = options.pop("beam_size", options["beam"])
    make_strategy = options.pop("strategy", lambda: None)
    given = []
    for seed, lengths in enumerate([(3, 7, 2, 5, 2, 6, 4), (2, 7, 8, 3, 2), (6,) * 8]):
        sample, extra = (sample_of(lengths, seed), {}) if family == "bart" else make_prompts(DICTIONARY, lengths, seed)
        prefix = [[5, 6], [7, DICTIONARY.eos()], [DICTIONARY.pad()], [8]]
        extra["prefix_tokens"] = pad_rows((2 * prefix)[: len(lengths)], DICTIONARY.pad())
        given.append((sample, extra))

    def generate(generator, seed):
        torch.manual_seed(seed)
        return generator.generate([model], given[seed][0], **given[seed][1])

    expected = [
        generate(make_generator(model, **options, search_strategy=make_strategy()), seed) for seed in range(len(given))
    ]
    request.getfixturevalue("as_on_gpu")
    monkeypatch.setattr(captured_steps, "IDLE", 1)
    begin_to_keep()
    generator = make_generator(model, **options, search_strategy=make_strategy())
    step = generator.stepper.step
    for seed, hypotheses in enumerate(expected):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(generator.stepper, "step", lambda tokens: step(tokens) if tokens.size(1) < 4 else 1 / 0)
            generate(generator, (seed + 1) % len(given))
        for buffers in generator.stepper.steppers[0].kept._buffers.values():
            spoil(buffers)
        assert_same_hypotheses(generate(generator, seed), hypotheses)
    assert TapedWork.replays > 10 and KeptSteps.is_possible


def spoil(buffers):
    """What a batch leaves there, by what it may not leave."""
    for memory in buffers.state._sentence_memories():
        memory.mask.logical_not_()
    for tensors in (
        *(memory.tensors for memory in buffers.state._sentence_memories()),
        *(layer.self_attention.generated.tensors() for layer in buffers.state.layers),
        [step.output for step in buffers.steps.values()],
    ):
        for tensor in tensors:
            tensor.fill_(torch.nan)
    buffers.state.cursor.position.fill_(5)
    for step in buffers.steps.values():
        step.order.zero_()
        step.tokens.fill_(9)


@pytest.mark.parametrize("setting", ["allow_tf32", "allow_fp16_reduced_precision_reduction"])
def test_another_precision_of_products(begin_to_keep, setting):
    model = make_models("transformer", DICTIONARY)["kv"]
    begin_to_keep()
    generator = make_generator(model)
    products = torch.backends.cuda.matmul
    before, captures = getattr(products, setting), []
    try:
        for value in (before, not before, not before):
            setattr(products, setting, value)
            generator.generate([model], sample_of(BATCHES[0]))
            captures.append(TapedWork.captures)
    finally:
        setattr(products, setting, before)
    assert captures == [1, 2, 2]


@torch.no_grad()
def test_weights_in_place_and_others(begin_to_keep, monkeypatch):
    """What changes in its place is seen by a graph; for what is elsewhere there is another."""
    model, other = (make_models("transformer", DICTIONARY, seed)["kv"] for seed in (1, 2))
    sample = sample_of(BATCHES[0])
    begin_to_keep()
    short = {"beam": 2, "max_len_b": 6}
    generator = make_generator(model, **short)

    def check(captures):
        with monkeypatch.context() as patch:
            patch.setattr(steppers, "can_capture", lambda *_: False)
            expected = alone([copy.deepcopy(model)], sample, **short)
        before = TapedWork.captures
        assert_same_hypotheses(generator.generate([model], sample), expected, tolerance=1e-5)
        assert TapedWork.captures - before == captures
        return expected[0][0]["positional_scores"].tolist()

    found = [check(1), check(0)]
    model.load_state_dict(other.state_dict())
    found.append(check(0))
    model.decoder.layers[0].fc1.weight.add_(0.5)
    found.append(check(0))
    model.decoder.layers[1].fc1.weight = torch.nn.Parameter(model.decoder.layers[1].fc1.weight * 3)
    found.append(check(1))
    model.decoder.layers[1].fc2.weight.data = model.decoder.layers[1].fc2.weight.data * -2
    found.append(check(1))
    model.decoder.layers[0].encoder_attn.top_k = 2
    found.append(check(1))
    model.decoder.layers[0].activation_fn = torch.sigmoid
    found.append(check(1))
    model.double()
    found.append(check(1))
    found.append(check(0))
    assert found[0] == found[1] and found[-2] == found[-1]
    assert len({str(each) for each in found}) == len(found) - 2


@torch.no_grad()
def test_embeddings_that_are_also_the_encoders(begin_to_keep):
    model = make_models("transformer", DICTIONARY, share_all_embeddings=True)["kv"]
    embedding = model.decoder.embed_tokens
    assert embedding is model.encoder.embed_tokens
    sample, weights, expected = sample_of(BATCHES[0]), [], []
    for weight in (embedding.weight, torch.nn.Parameter(embedding.weight * 3)):
        embedding.weight = weight
        weights += [weight] * 2
        expected += [alone([model], sample)] * 2
    begin_to_keep()
    generator = make_generator(model)
    for embedding.weight, hypotheses in zip(weights, expected, strict=True):
        assert_same_hypotheses(generator.generate([model], sample), hypotheses)
    assert TapedWork.captures == 2 and KeptSteps.is_possible


def test_a_model_that_normalizes_in_its_own_way(begin_to_keep):
    """By what does not belong to its decoder."""
    model = make_models("transformer", DICTIONARY)["kv"]

    class Plugin(type(model)):
        def get_normalized_probs(self, net_output, log_probs, sample=None):
            return super().get_normalized_probs(net_output, log_probs, sample) + self.bonus

    model.__class__ = Plugin
    torch.manual_seed(1)
    cases = []
    for model.bonus in torch.randn(2, len(DICTIONARY)).mul(3).unbind():
        cases += [(model.bonus, sample, alone([model], sample)) for sample in map(sample_of, BATCHES[:2])]
    begin_to_keep()
    generator, captures = make_generator(model), []
    for model.bonus, sample, expected in cases:
        assert_same_hypotheses(generator.generate([model], sample), expected)
        captures.append(TapedWork.captures)
    assert captures == [1, 1, 2, 2]


def test_a_table_of_positions_that_grows(begin_to_keep):
    model = make_models("transformer", DICTIONARY, positions=12, decoder_learned_pos=False)["kv"]
    sample = sample_of(BATCHES[0])
    expected = alone([model], sample)
    begin_to_keep()
    generator = make_generator(model)
    for captures in (1, 1):
        assert_same_hypotheses(generator.generate([model], sample), expected)
        assert TapedWork.captures == captures
    model.decoder.reach(500)
    assert_same_hypotheses(generator.generate([model], sample), expected)
    assert TapedWork.captures == 2


def test_a_graph_that_is_wrong(begin_to_keep, monkeypatch, caplog):
    """It is found out on the first batch that it was not captured on, whose hypotheses are right all the same."""
    model = make_models("transformer", DICTIONARY)["kv"]
    samples = [sample_of(each, seed) for seed, each in enumerate(BATCHES)]
    expected = [alone([model], sample) for sample in samples]
    begin_to_keep()
    generator = make_generator(model)
    assert_same_hypotheses(generator.generate([model], samples[0]), expected[0])
    [step] = buffers_of(generator).steps.values()
    replay = step.work.tape.replay
    monkeypatch.setattr(step.work.tape, "replay", lambda: (replay(), step.output.mul_(1.01)))
    for captures, sample, hypotheses in zip((2, 3), samples[1:], expected[1:], strict=True):
        assert_same_hypotheses(generator.generate([model], sample), hypotheses)
        assert TapedWork.captures == captures
        assert not cuda_graphs.held_bytes()
    [record] = caplog.records
    assert record.getMessage().startswith(
        "decoding steps are captured anew for each batch, because a kept graph errs by "
    )


def test_a_graph_of_a_model_without_some_words(begin_to_keep, caplog):
    """-inf is the same with a graph and without."""
    model = make_models("transformer", DICTIONARY)["kv"]
    output_layer = model.decoder.output_layer
    model.decoder.output_layer = lambda features: output_layer(features).index_fill(2, torch.tensor([7, 8]), -torch.inf)
    samples = [sample_of(each, seed) for seed, each in enumerate(BATCHES)]
    expected = [alone([model], sample) for sample in samples]
    begin_to_keep()
    generator = make_generator(model)
    for sample, hypotheses in zip(samples, expected, strict=True):
        assert_same_hypotheses(generator.generate([model], sample), hypotheses)
    assert TapedWork.captures == 1 and not caplog.records


@torch.no_grad()
def test_no_number_is_the_fault_of_no_graph(begin_to_keep):
    model = make_models("transformer", DICTIONARY)["kv"]
    begin_to_keep()
    generator = make_generator(model)
    generator.generate([model], sample_of(BATCHES[0]))
    weights = model.decoder.output_projection.weight[5]
    before = weights.clone()
    weights.fill_(torch.nan)
    with pytest.raises(UserError, match="not a number"):
        generator.generate([model], sample_of(BATCHES[1]))
    weights.copy_(before)
    generator.generate([model], sample_of(BATCHES[2]))
    assert TapedWork.captures == 1


def test_each_graph_is_compared_once(begin_to_keep, monkeypatch):
    model = make_models("transformer", DICTIONARY)["kv"]
    begin_to_keep()
    compared = []
    prove = KeptSteps.prove
    monkeypatch.setattr(KeptSteps, "prove", lambda *given: compared.append(prove(*given)) or compared[-1])
    generator = make_generator(model)
    for lengths in (*BATCHES, OTHER, OTHER, OTHER):
        generator.generate([model], sample_of(lengths))
    assert compared == [True, True]


def test_memory_that_runs_out_is_released(begin_to_keep, monkeypatch):
    model = make_models("bart", DICTIONARY)["kv"]
    samples = [sample_of(each, seed) for seed, each in enumerate(BATCHES)]
    expected = alone([model], samples[1])
    begin_to_keep()
    generator = make_generator(model)
    generator.generate([model], samples[0])
    held = cuda_graphs.held_bytes()
    assert held == buffers_of(generator).state.size_bytes() > 0
    encode, tries = model.encoder.forward_torchscript, []

    def with_little_memory(net_input):
        tries.append(cuda_graphs.held_bytes())
        if tries[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(net_input)

    monkeypatch.setattr(model.encoder, "forward_torchscript", with_little_memory)
    assert_same_hypotheses(generator.generate([model], samples[1]), expected)
    assert tries == [held, 0]

    monkeypatch.setattr(model.encoder, "forward_torchscript", lambda net_input: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generator.generate([model], samples[1])
    assert cuda_graphs.held_bytes()
    cuda_graphs.release_memory()

    def without_memory(net_input):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model.encoder, "forward_torchscript", without_memory)
    with pytest.raises(torch.OutOfMemoryError):  # once: there is nothing to release
        generator.generate([model], samples[1])


@pytest.mark.parametrize("is_seeded", [False, True])
def test_random_numbers_are_drawn_again(is_seeded, begin_to_keep, monkeypatch):
    """When memory runs out amid a search."""
    model = make_models("transformer", DICTIONARY)["kv"]
    options = {"search_strategy": search.Sampling(DICTIONARY)}
    torch.manual_seed(1)
    expected = alone([model], sample_of(BATCHES[1]), **options)
    begin_to_keep()
    generator = make_generator(model, **options)
    generator.generate([model], sample_of(BATCHES[0]))
    step, calls = generator.stepper.step, []

    def with_little_memory(tokens):
        calls.append(tokens.size(1))
        if len(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(tokens)

    monkeypatch.setattr(generator.stepper, "step", with_little_memory)
    torch.manual_seed(1)
    with seeded(generator, 1) if is_seeded else nullcontext():
        assert_same_hypotheses(generator.generate([model], sample_of(BATCHES[1])), expected)
    assert calls[:6] == [1, 2, 3, 4, 5, 1]


def test_what_is_held(begin_to_keep):
    """By one generator for each model: a state for each size of batches, until the generator goes."""
    models = [make_models("transformer", DICTIONARY, seed)["kv"] for seed in (1, 2)]
    short = {"beam": 2, "max_len_b": 6}
    begin_to_keep()

    def count_states():
        gc.collect()
        return sum(type(each) is DecodeState for each in gc.get_objects())

    def held():
        return sum(holder.size_bytes() > 0 for holder in cuda_graphs.holders)

    before = count_states()
    first, second = make_generator(models[0], **short), make_generator(models[0], **short)
    ensemble = make_generator(*models, **short)
    for generator, sizes, expected in (
        (first, BATCHES[0], 1),
        (second, OTHER, 1),
        (first, BATCHES[0], 1),
        (ensemble, OTHER, 2),
        (ensemble, (1,), 2),
        (first, (1,), 2),
    ):
        generator.generate([], sample_of(sizes))
        assert held() == expected
    assert count_states() == before + 3  # two of the second model
    del generator, ensemble
    gc.collect()
    assert held() == 1
    cuda_graphs.release_memory()
    assert held() == 0
    first.generate([], sample_of((1,)))
    del first
    assert count_states() == before
    assert not cuda_graphs.held_bytes()


def test_inference_mode(begin_to_keep):
    """Its tensors cannot be changed outside."""
    model = make_models("transformer", DICTIONARY)["kv"]
    expected = alone([model], sample_of(BATCHES[0]))
    begin_to_keep()
    generator = make_generator(model)
    for is_on, captures in ((True, 1), (True, 1), (False, 2), (False, 2), (True, 3)):
        with torch.inference_mode(is_on):
            assert_same_hypotheses(generator.generate([model], sample_of(BATCHES[0])), expected)
        assert TapedWork.captures == captures


def test_a_copy_of_a_generator_keeps_its_own(begin_to_keep):
    model = make_models("transformer", DICTIONARY)["kv"]
    begin_to_keep()
    generator = make_generator(model)
    expected = generator.generate([model], sample_of(BATCHES[0]))
    copied = copy.deepcopy(generator)
    assert copied.stepper.steppers[0].kept._model is copied.models[0] is not model
    assert_same_hypotheses(copied.generate([], sample_of(BATCHES[0])), expected)
    assert TapedWork.captures == 2


@pytest.mark.parametrize("why", ["a memory budget", "autocast", "no capture", "alignment"])
def test_nothing_is_kept(begin_to_keep, monkeypatch, why):
    model = make_models("transformer", DICTIONARY)["kv"]
    begin_to_keep()
    generator = make_generator(model)
    generator.generate([model], sample_of(BATCHES[0]))
    assert cuda_graphs.held_bytes()
    if why == "a memory budget":
        budget.capacity([model], generator, 10**8, str)
        assert not cuda_graphs.held_bytes()  # before a batch is read: the budget is for it alone
        generator = copy.deepcopy(generator)
    elif why == "no capture":
        monkeypatch.setattr(kept_steps.CapturedWork, "is_possible", False)
    elif why == "alignment":
        monkeypatch.setattr(steppers, "can_capture", lambda *_: False)
    with torch.autocast("cpu", enabled=why == "autocast"):
        generator.generate([model], sample_of(BATCHES[0]))
    assert not cuda_graphs.held_bytes()


def test_where_graphs_are_kept(monkeypatch):
    gpu = torch.device("cuda")
    assert kept_steps.can_keep(gpu)
    assert not kept_steps.can_keep(torch.device("cpu"))
    monkeypatch.setenv(SWITCH, "off")
    assert not kept_steps.can_keep(gpu)
    monkeypatch.setenv(SWITCH, "of")
    with pytest.raises(UserError, match=f"{SWITCH} is 'of'; set it to on or off"):
        kept_steps.can_keep(gpu)


def test_too_little_memory(begin_to_keep, monkeypatch):
    """Buffers may take a quarter of what is free."""
    model = make_models("transformer", DICTIONARY)["kv"]
    begin_to_keep()
    asked = []
    monkeypatch.setattr(kept_steps, "has_memory", lambda device, size: asked.append(size))
    generator = make_generator(model)
    for _ in range(2):
        generator.generate([model], sample_of(BATCHES[0]))
        assert not cuda_graphs.held_bytes()
    of_position = 2 * 16 * 4  # bytes of keys and values, in one of two layers
    assert asked == [4 * 2 * of_position * (8 * 8 + 8 * 4 * 16)] * 2
    assert TapedWork.captures == 2


def test_those_not_used_for_the_longest_time_are_given_up(begin_to_keep, monkeypatch):
    """All together take a quarter of what would be free without them."""
    model = make_models("transformer", DICTIONARY)["kv"]
    batches = {name: sample_of(lengths) for name, lengths in (("a", BATCHES[0]), ("b", OTHER), ("c", (17,) * 5))}
    expected = {name: alone([model], sample) for name, sample in batches.items()}
    begin_to_keep()
    sizes, captures = {}, []
    for name, sample in batches.items():
        generator = make_generator(model)
        generator.generate([model], sample)
        sizes[name] = buffers_of(generator).state.size_bytes()
    assert sizes["a"] < sizes["b"] < sizes["c"]
    cuda_graphs.release_memory()
    memory = FREE * (sizes["a"] + sizes["c"])
    monkeypatch.setattr(kept_steps, "has_memory", lambda device, size: size <= memory - cuda_graphs.held_bytes())
    monkeypatch.setattr(TapedWork, "captures", 0)
    for name in "ababacacbcb":
        assert_same_hypotheses(generator.generate([model], batches[name]), expected[name])
        captures.append(TapedWork.captures)
        assert cuda_graphs.held_bytes() <= memory // FREE
    # Two of these sizes do not fit with a third: b is given up for c, and a for b.
    assert captures == [1, 2, 2, 2, 2, 3, 3, 3, 4, 5, 6]


def bart_large():
    """The sizes of its decoder, in float16."""
    sizes = SimpleNamespace(num_heads=16, head_dim=64, num_kv_heads=16, memory_width=1024)
    attention = SimpleNamespace(sizes=sizes, window=None, top_k=None)
    layers = [SimpleNamespace(self_attn=attention, encoder_attn=attention)] * 12
    weight = torch.zeros(1, dtype=torch.float16)
    return SimpleNamespace(layers=layers, round_to=None, parameters=lambda: iter([weight]))


@pytest.mark.parametrize(
    ("workload", "method", "expected"),
    [
        (Workload(1, 4, 1024, 141), KV, Workload(1, 4, 1024, 256)),
        (Workload(1, 4, 1025, 201), KV, Workload(1, 4, 2048, 256)),
        (Workload(3, 4, 600, 141), KV, Workload(4, 4, 1024, 256)),  # 110 MiB of the source, and 96 MiB of the room
        (Workload(5, 4, 600, 141), KV, Workload(5, 4, 640, 160)),  # else 243 MiB and 192 MiB
        # 480 MiB of the room, and 186 MiB of the source: less than 4 captures.
        (Workload(32, 4, 900, 141), KV, Workload(32, 4, 1024, 160)),
        (Workload(128, 4, 1024, 141), KV, None),  # 1.9 GiB of the room
        (Workload(128, 4, 1024, 141), EL, Workload(128, 4, 1024, 160)),
        (Workload(24, 4, 40, 30), EL, Workload(32, 4, 64, 32)),  # less than 64 idle hypotheses
        (Workload(33, 4, 40, 30), EL, Workload(40, 4, 40, 32)),  # else 124
        (Workload(300, 4, 7, 12), EL, Workload(320, 4, 8, 16)),  # less than a quarter of them
        (Workload(3, 1, 0, 9, 100), KV, Workload(4, 1, 0, 16, 128)),
        (Workload(3, 1, 0, 9), KV, Workload(4, 1, 0, 16)),
    ],
)
def test_sizes_that_batches_share(workload, method, expected):
    sizes = shared_sizes(workload, bart_large(), Choice(method, method))
    assert sizes == expected
    if sizes is not None:
        assert shared_sizes(sizes, bart_large(), Choice(method, method)) == sizes


@pytest.mark.parametrize("method", [KV, EL], ids=lambda method: method.name)
def test_room_is_free_where_the_kernel_skips_it(method, monkeypatch):
    """The largest batch of the benchmarks."""
    workload, choice = Workload(320, 4, 1024, 83), Choice(method, method)
    assert shared_sizes(workload, bart_large(), choice) is None
    asked = []

    def computes(query, segments, plain):
        asked.append((query.shape, segments))
        return True

    monkeypatch.setattr(flash_decoding, "computes", computes)
    assert shared_sizes(workload, bart_large(), choice) == Workload(320, 4, 1024, 96)
    shape, [segment] = asked[-1]
    width, heads = (64, 16) if method is KV else (1024, 1)
    assert shape == (1280, 16, 1, width) and segment.key.shape == segment.value.shape == (1280, heads, 96, width)
    assert (segment.value is segment.key) == (method is EL) and segment.key.dtype == torch.float16
    top_k = bart_large()
    top_k.layers[0].self_attn.top_k = 8
    assert shared_sizes(workload, top_k, choice) is None


@pytest.mark.parametrize(("method", "mebibytes"), [(KV, 768), (EL, 208)], ids=lambda given: getattr(given, "name", ""))
def test_bytes_that_are_kept(method, mebibytes):
    """The figures of docs/generation.md."""
    workload = Workload(8, 4, 1024, 141)
    sizes = shared_sizes(workload, bart_large(), Choice(method, method))
    assert decoding_state_bytes(bart_large(), sizes, Choice(method, method)) == mebibytes * 2**20


def test_each_part_finds_hypotheses_as_it_did_first(monkeypatch):
    """Whatever a trial says of its sizes then: a graph repeats it."""
    least = [150]

    def has_step_kernel(query, segments):
        return segments[-1].ancestry is not None and len(query) >= least[0]

    monkeypatch.setattr("elseq.attention.methods.kv.has_step_kernel", has_step_kernel)
    monkeypatch.setattr(captured_steps, "CapturedWork", TapedWork)
    model = make_models("language_model", DICTIONARY)["kv"]
    state = model.decoder.new_state(None, KV)
    model.decoder.decode(torch.full((4, 1), 5), state)
    buffers = Buffers(Workload(100, 4, 0, 16), state)
    for least[0] in (150, 1000, 1):
        found = [buffers.part(sentences)[0].cursor.ancestry for sentences in (100, 50, 13)]
        assert [ancestry is not None for ancestry in found] == [True, True, False]
        assert [len(ancestry.rows) for ancestry in found[:2]] == [400, 200]


def test_parts_of_buffers(monkeypatch):
    monkeypatch.setattr(captured_steps, "CapturedWork", TapedWork)
    model = make_models("language_model", DICTIONARY)["kv"]
    state = model.decoder.new_state(None, KV)
    model.decoder.decode(torch.full((4, 1), 5), state)
    buffers, found = Buffers(Workload(100, 4, 0, 16), state), []
    for sentences in (100, 51, 50, 26, 25, 13, 12, 1):
        part, step = buffers.part(sentences)
        size = len(step.tokens) // 4
        assert len(part.layers[0].self_attention.generated.tensors()[0]) == 4 * size
        assert step is buffers.steps[size]
        found.append(size)
    assert found == [100, 100, 50, 50, 25, 25, 25, 13]  # not below 64 idle hypotheses
