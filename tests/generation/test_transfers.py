"""What a search asks a GPU for. Here it runs on the CPU, and the questions are counted."""

import math
from collections import Counter
from functools import cache
from itertools import product

import pytest
import torch
from fairseq import search
from fairseq.token_generation_constraints import pack_constraints
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from elseq.generation import SequenceGenerator, transfers
from elseq.generation.hypotheses import FinishedHypotheses
from elseq.generation.selection import Selection
from elseq.generation.transfers import HostCopy, to_device
from tests.generation.test_search import SEARCHES
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
CPU = torch.device("cpu")
READS = {
    "item",
    "tolist",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "__contains__",
    "nonzero",
    "argwhere",
    "masked_select",
    "is_nonzero",
    "equal",
    "allclose",
    "cpu",
    "numpy",
    "unique",
    "multinomial",  # asks whether the probabilities are any
}
COPIES = {"to", "type_as", "copy_", "cuda"}
MAKES = {"tensor", "arange", "zeros", "ones", "empty", "full", "rand", "randint", "eye", "linspace"}


class Questions(TorchFunctionMode):
    """Counts the calls for which the host would wait: it reads a tensor, or copies one to the device.

    A tensor is the host's if it is made without a device, or of tensors of the host only.
    """

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        tensors = [each for each in tree_leaves((args, kwargs)) if torch.is_tensor(each)]
        on_host = [getattr(tensor, "is_on_host", False) for tensor in tensors]
        has_device = any(isinstance(each, torch.device) for each in (*args, *kwargs.values()))
        if name in COPIES:
            waits = on_host[0] and not (all(on_host) and not has_device) and not kwargs.get("non_blocking")
        elif name in READS:
            waits = not all(on_host)
        elif name in ("__getitem__", "__setitem__"):
            waits = not all(on_host) and self._reads(*args)
        else:
            waits = name == "tensor" and has_device
        self.found.update([name] * bool(waits))
        result = function(*args, **kwargs)
        if name == "cpu" or (all(on_host) and not has_device and (tensors or name in MAKES)):
            self.to_host(result)
        return result

    @staticmethod
    def _reads(tensor, index, value=None):
        """Whether an index is a mask, or a slice up to a number on the device. A mask whose places all become the same
        number is not read."""
        indices = index if type(index) is tuple else (index,)
        masks = [each for each in indices if torch.is_tensor(each) and each.dtype == torch.bool]
        ends = [end for each in indices if isinstance(each, slice) for end in (each.start, each.stop, each.step)]
        return any(map(torch.is_tensor, ends)) or (bool(masks) and not isinstance(value, int | float))

    @staticmethod
    def to_host(result):
        for each in tree_leaves(result):
            if torch.is_tensor(each):
                each.is_on_host = True
        return result


@pytest.fixture
def questions(monkeypatch):
    """Of all steps; what `transfers` does without waiting is not among them, but when the host asks for `HostCopy`."""
    found = Questions()
    monkeypatch.setattr(transfers, "is_asynchronous", lambda device: True)

    def unseen(function):
        def call(*args):
            with torch._C.DisableTorchFunction():
                return function(*args)

        return call

    tensors = unseen(HostCopy.tensors)

    def told(self):
        found.found["told"] += 1
        return Questions.to_host(tensors(self))

    monkeypatch.setattr(HostCopy, "tensors", told)
    for module in ("beams", "hypotheses", "logits_processors"):
        monkeypatch.setattr(f"elseq.generation.{module}.to_device", unseen(to_device))
    return found


def make_batch(lengths=(3, 7, 1, 5)):
    return make_sample(DICTIONARY, make_sources(DICTIONARY, lengths))


STRATEGIES = {
    "greedy": {"beam_size": 1},
    "beam": {},
    "patience": {"beam_patience": 2.0},
    "bound": {"early_stopping": "bound"},
    "never": {"early_stopping": "never", "len_penalty": 2.0},
    "sampling": {"strategy": lambda: search.Sampling(DICTIONARY)},
    "one sample": {"strategy": lambda: search.Sampling(DICTIONARY), "beam_size": 1},
    "sampling, top-k": {"strategy": lambda: search.Sampling(DICTIONARY, sampling_topk=3)},
    "sampling, top-p": {"strategy": lambda: search.Sampling(DICTIONARY, sampling_topp=0.6)},
    "diverse groups": {"strategy": lambda: search.DiverseBeamSearch(DICTIONARY, 2, 0.7), "beam_size": 4},
    "diverse siblings": {"strategy": lambda: search.DiverseSiblingsSearch(DICTIONARY, 0.8)},
    "lengths by the source": {"strategy": lambda: search.LengthConstrainedBeamSearch(DICTIONARY, 1, 0, 1, 2)},
}


make_model = cache(lambda family, method="kv", seed=1: make_models(family, DICTIONARY, seed)[method])


def translation(options=None, extra=None):
    return lambda: (make_model("transformer"), make_batch(), options or {}, extra or {})


def prompts(**options):
    """Of several lengths."""
    model = make_elseq_model("language_model", DICTIONARY, "kv", **options)
    sample, extra = make_prompts(DICTIONARY, (3, 7, 2, 5))
    return model, sample, {}, extra


def ensemble():
    models = [make_model("transformer", "el", seed) for seed in (1, 2)]
    return models, make_batch(), {}, {}


def fusion():
    return make_model("transformer"), make_batch(), {"lm_model": make_model("language_model", seed=5)}, {}


SETTINGS = {
    "translation": translation(),
    "hidden states": lambda: (make_model("bart", "el"), make_batch(), {}, {}),
    "n-grams": translation({"no_repeat_ngram_size": 2}),
    "suppressed words": translation({"tokens_to_suppress": ["w3"]}),
    "penalty": translation({"unk_penalty": 1.0}),
    "temperature": translation({"temperature": 1.3}),
    "sums": translation({"normalize_scores": False}),
    "prefix": translation(None, {"prefix_tokens": torch.arange(4, 14).repeat(4, 1)}),
    "prompts": prompts,
    "window": lambda: prompts(local_attention_radius=3),
    "ensemble": ensemble,
    "fusion": fusion,
}


# All strategies for one kind of batch, and all kinds of batches for a search without draws and for one with.
CASES = [
    pytest.param(strategy, setting, marks=() if is_short else pytest.mark.slow)
    for strategy, setting in product(STRATEGIES, SETTINGS)
    for is_short in [setting == "translation" or strategy in ("beam", "sampling, top-k")]
]


def decode(strategy, make_setting, extra=None, **limits):
    model, sample, options, given = make_setting()
    options = {"beam_size": 3, **options, **STRATEGIES[strategy], **limits}
    make_strategy = options.pop("strategy", None)
    models = model if isinstance(model, list) else [model]
    generator = SequenceGenerator(
        models, DICTIONARY, search_strategy=None if make_strategy is None else make_strategy(), **options
    )
    torch.manual_seed(1)
    return generator, lambda: generator.generate(models, sample, **{**given, **(extra or {})})


@pytest.mark.few_cases(10)
@pytest.mark.parametrize("strategy, setting", CASES)
def test_a_step_waits_for_nothing(questions, strategy, setting):
    """But that it is told what ended."""
    counts = []
    for length in (5, 8):
        questions.found.clear()
        generator, generate = decode(strategy, SETTINGS[setting], min_len=length, max_len_b=length)
        generator.may_end_early = True  # so that every step is looked at
        with questions:
            generate()
        counts.append(Counter(questions.found))
    assert counts[1] - counts[0] == Counter(told=3)


def test_a_kernel_that_draws_waits_for_nothing(questions, kernel_draws):
    test_a_step_waits_for_nothing(questions, "sampling", "n-grams")


@pytest.mark.few_cases(4)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sentences_that_end_ask_for_nothing(questions, strategy):
    """At several steps, or all at once."""
    decode(strategy, translation())[1]()  # what is asked once of a model
    counts = []
    for limits in ({"max_len_a": 1, "max_len_b": 3}, {"max_len_b": 9}):
        questions.found.clear()
        _, generate = decode(strategy, translation(), **limits)
        with questions:
            found = generate()
        counts.append(Counter(questions.found))
        if "max_len_a" in limits:
            assert len({len(hypotheses[0]["tokens"]) for hypotheses in found}) > 2
    told = [count.pop("told") for count in counts]
    assert counts[0] == counts[1] and min(told) > 3


@pytest.mark.parametrize("options", [{"beam_size": 1}, {"beam_size": 3}], ids=str)
def test_the_end_waits_as_often_for_many_sentences(questions, options):
    model = make_models("transformer", DICTIONARY)["kv"]
    generator = SequenceGenerator([model], DICTIONARY, **options, min_len=5, max_len_b=5)
    counts = []
    for sentences in (2, 5):
        questions.found.clear()
        sample = make_batch([3] * sentences)
        with questions:
            generator.generate([model], sample)
        counts.append(questions.found["cpu"])
    assert counts == [1, 1]


def test_sentences_with_nothing_left_are_asked_about_together(questions):
    """Of 24 entries one word may follow, and it must not occur twice."""
    words = [word for word in DICTIONARY.symbols[DICTIONARY.nspecial :] if word != "w7"]
    options = {"tokens_to_suppress": [*words, "<s>"], "unk_penalty": math.inf, "no_repeat_ngram_size": 1, "min_len": 5}
    model = make_model("transformer")
    generator = SequenceGenerator([model], DICTIONARY, beam_size=2, max_len_b=9, **options)
    counts = []
    for sentences in (2, 5, 2):
        questions.found.clear()
        sample = make_batch([3] * sentences)
        with questions:
            found = generator.generate([model], sample)
        assert [best["tokens"].tolist() for best, *_ in found] == [
            [DICTIONARY.index("w7"), DICTIONARY.eos()]
        ] * sentences
        counts.append(Counter(questions.found))
    assert counts[1] == counts[2]


def test_questions_are_seen(questions):
    with questions:
        marks = torch.tensor([True, False], device=CPU)
        assert marks[0] and marks[marks].tolist() == [True] and int(marks.sum()) == len(marks.nonzero()) == 1
    names = ["tensor", "__bool__", "__getitem__", "tolist", "__int__", "nonzero"]
    assert questions.found == Counter(names)


@pytest.mark.parametrize("beam", [1, 3])
def test_the_host_is_told_when_the_next_step_runs(monkeypatch, as_on_gpu, beam):
    model = make_models("transformer", DICTIONARY)["kv"]
    generator = SequenceGenerator([model], DICTIONARY, beam_size=beam, max_len_b=12)
    steps, looks = [], []
    step, collect = generator.stepper.step, FinishedHypotheses.collect
    monkeypatch.setattr(generator.stepper, "step", lambda tokens: steps.append(tokens.size(1) - 1) or step(tokens))
    monkeypatch.setattr(
        FinishedHypotheses,
        "collect",
        lambda finished, result: looks.append((result.step, steps[-1])) or collect(finished, result),
    )
    generator.generate([model], make_batch())
    assert len(looks) > 3 and all(running == min(look + 1, 12) for look, running in looks)


@pytest.fixture
def look_later(request):
    """To be called between two decodings on the CPU."""
    return lambda: request.getfixturevalue("as_on_gpu")


@pytest.mark.parametrize(
    "limits",
    [{"max_len_b": 12}, pytest.param({"max_len_a": 1, "max_len_b": 2, "min_len": 4}, marks=pytest.mark.slow)],
    ids=str,
)
@pytest.mark.parametrize("strategy, setting", CASES)
def test_looking_later_changes_nothing(look_later, strategy, setting, limits):
    extra = {"prefix_tokens": pad_rows([[5, 6, 7], [8, DICTIONARY.eos()], [9, 10], []], DICTIONARY.pad())}
    extra = extra if setting == "prefix" else {}
    expected = decode(strategy, SETTINGS[setting], extra, **limits)[1]()
    look_later()
    assert_same_hypotheses(decode(strategy, SETTINGS[setting], extra, **limits)[1](), expected)


@pytest.mark.parametrize("representation", ["ordered", "unordered"])
def test_constraints_are_looked_at_later(look_later, representation):
    words = [[[5], [7, 8]], [], [[9]], [[6]]]
    constraints = pack_constraints([[torch.tensor(phrase) for phrase in phrases] for phrases in words])
    model = make_models("transformer", DICTIONARY)["kv"]

    def generate():
        strategy = search.LexicallyConstrainedBeamSearch(DICTIONARY, representation)
        generator = SequenceGenerator(
            [model], DICTIONARY, beam_size=4, max_len_a=1, max_len_b=8, search_strategy=strategy
        )
        return generator.generate([model], make_batch(), constraints=constraints)

    expected = generate()
    assert len({len(best["tokens"]) for best, *_ in expected}) > 1
    look_later()
    assert_same_hypotheses(generate(), expected)


def test_a_strategy_of_a_plugin_is_asked_about_the_others_alone(look_later):
    """It may remember its sentences, or draw numbers."""
    seen = []

    class Plugin(search.Sampling):
        def prune_sentences(self, batch_idxs):
            seen.append(("leave", len(batch_idxs)))

        def step(self, step, lprobs, scores, prev_output_tokens=None, original_batch_idxs=None):
            seen.append((step, original_batch_idxs.tolist()))
            return super().step(step, lprobs, scores, prev_output_tokens, original_batch_idxs)

    model = make_models("transformer", DICTIONARY)["kv"]

    def generate():
        seen.clear()
        torch.manual_seed(1)
        generator = SequenceGenerator(
            [model], DICTIONARY, beam_size=2, max_len_a=1, max_len_b=4, search_strategy=Plugin(DICTIONARY)
        )
        return generator.generate([model], make_batch()), list(seen)

    expected, in_order = generate()
    assert sum(each[0] == "leave" for each in in_order) > 1
    look_later()
    found, in_the_same_order = generate()
    assert in_the_same_order == in_order
    assert_same_hypotheses(found, expected)


@pytest.mark.few_cases(10)
@pytest.mark.parametrize("family", ["transformer", "language_model"])
@pytest.mark.parametrize("name", SEARCHES)
def test_the_same_hypotheses(look_later, family, name):
    """Of sentences that end at different steps."""
    options = {"beam_size": 4, "max_len_b": 12, **SEARCHES[name]}
    strategy = options.pop("strategy", None)
    model = make_models(family, DICTIONARY)["kv"]
    sample, extra = make_batch((3, 7, 1, 5, 2, 6, 4)), {}
    if family == "language_model":
        prefixes = [row[:-1] for row in make_sources(DICTIONARY, [3] * 7)]
        sample = make_sample(DICTIONARY, [[DICTIONARY.eos(), *row] for row in prefixes], left=False)
        if name not in ("no length", "allowed words"):
            extra = {"prefix_tokens": torch.tensor(prefixes)}

    def generate():
        torch.manual_seed(1)
        given = {} if strategy is None else {"search_strategy": strategy()}
        return SequenceGenerator([model], DICTIONARY, **options, **given).generate([model], sample, **extra)

    expected = generate()
    look_later()
    assert_same_hypotheses(generate(), expected)


@pytest.mark.parametrize(
    "rule", [{"beam_patience": 2.0}, {"early_stopping": "bound"}, {"early_stopping": "never"}], ids=str
)
def test_the_same_rules_of_stopping(monkeypatch, rule):
    model = make_models("transformer", DICTIONARY, seed=4)["kv"]
    sample = make_batch((3, 7, 1, 5, 2, 6, 4))
    generator = SequenceGenerator([model], DICTIONARY, beam_size=4, max_len_b=17, len_penalty=2.0, **rule)
    expected = generator.generate([model], sample)
    monkeypatch.setattr(transfers, "is_asynchronous", lambda device: True)
    assert_same_hypotheses(generator.generate([model], sample), expected)


@pytest.mark.parametrize("beam", [1, 3])
def test_the_same_prefixes(monkeypatch, beam):
    """Of several lengths, of which one ends its sentence."""
    model = make_models("transformer", DICTIONARY)["el"]
    prefix = pad_rows([[5, 6, 7], [8, DICTIONARY.eos()], [9, 10], []], DICTIONARY.pad())
    generator = SequenceGenerator([model], DICTIONARY, beam_size=beam, max_len_b=9)
    expected = generator.generate([model], make_batch(), prefix_tokens=prefix)
    monkeypatch.setattr(transfers, "is_asynchronous", lambda device: True)
    assert_same_hypotheses(generator.generate([model], make_batch(), prefix_tokens=prefix), expected)


@pytest.mark.parametrize("lengths", [(35, 3), (35, 35, 34)])
def test_no_position_beyond_the_last(monkeypatch, lengths):
    """A sentence ends at the last position of the model, and one with a shorter prompt goes on."""
    model = make_models("language_model", DICTIONARY, positions=40, decoder_learned_pos=True)["kv"]
    sample, prompts = make_prompts(DICTIONARY, [length - 1 for length in lengths])
    generator = SequenceGenerator([model], DICTIONARY, beam_size=3, min_len=5, max_len_b=12)
    expected = generator.generate([model], sample, **prompts)
    assert [len(found[0]["tokens"]) for found in expected] == [min(12, 40 - length) + 1 for length in lengths]
    monkeypatch.setattr(transfers, "is_asynchronous", lambda device: True)
    assert_same_hypotheses(generator.generate([model], sample, **prompts), expected)


def test_only_sentences_at_their_limit_need_the_log_probabilities_of_all_tokens(monkeypatch, as_on_gpu):
    model = make_models("transformer", DICTIONARY)["kv"]
    options = {"beam_size": 2, "max_len_a": 1, "max_len_b": 2, "tokens_to_suppress": [DICTIONARY.eos_word]}
    generator = SequenceGenerator([model], DICTIONARY, **options)
    steps, candidates = {}, Selection.candidates

    def seen(selection, step, next_tokens):
        steps[step.number] = step.at_limit is not None
        return candidates(selection, step, next_tokens)

    monkeypatch.setattr(Selection, "candidates", seen)
    generator.generate([model], make_batch((3, 9)))
    # The words of the first sentence are chosen in no step more.
    assert len(steps) == 13 and [number for number, is_at_limit in steps.items() if is_at_limit] == [6, 12]


def test_copies_for_the_host():
    tensors = torch.tensor([[False, True], [True, True]]), torch.tensor([0.5, -math.inf])
    copies = HostCopy(marks=tensors[0], scores=tensors[1]).tensors()
    assert list(copies) == ["marks", "scores"] and all(map(torch.equal, copies.values(), tensors))
    assert all(each.device == CPU for each in copies.values())


def test_an_empty_list_has_the_type_of_the_others():
    for numbers in ([], [[]], [[1, 2]]):
        assert to_device(numbers, CPU).dtype == torch.long and to_device(numbers, CPU).tolist() == numbers


@pytest.mark.gpu
def test_a_gpu_goes_on_meanwhile():
    marks = torch.zeros(2, 2, dtype=torch.bool, device="cuda")
    torch.cuda._sleep(100_000_000)
    marks[1, 0] = True
    copy = HostCopy(marks=marks, doubled=2 * marks)
    done = torch.cuda.Event()
    torch.cuda._sleep(100_000_000)
    done.record()
    assert [each.tolist() for each in copy.tensors().values()] == [[[False, False], [True, False]], [[0, 0], [2, 0]]]
    assert not done.query()
