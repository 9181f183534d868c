"""What a search asks a GPU for. Here it runs on the CPU, and the questions are counted."""

from collections import Counter

import pytest
import torch
from fairseq import search
from torch.overrides import TorchFunctionMode

from elseq.generation import SequenceGenerator, transfers
from elseq.generation.transfers import Places, to_device
from tests.generation.test_search import SEARCHES
from tests.tiny_models import assert_same_hypotheses, make_dictionary, make_models, make_sample, make_sources, pad_rows

DICTIONARY = make_dictionary(20)
CPU = torch.device("cpu")
WAITS = {
    "item",
    "tolist",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "nonzero",
    "cpu",
    "numpy",
    "unique",
    "tensor",
}


class Questions(TorchFunctionMode):
    """Counts the calls for which the host would wait: it reads a tensor, or copies one to the device."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in WAITS or (name in ("__getitem__", "__setitem__") and self._is_mask(args[1])):
            self.found[name] += 1
        return function(*args, **(kwargs or {}))

    @staticmethod
    def _is_mask(index):
        return any(
            torch.is_tensor(each) and each.dtype == torch.bool for each in (index if type(index) is tuple else [index])
        )


@pytest.fixture
def questions(monkeypatch, as_on_gpu):
    """Of all steps; what `transfers` does without waiting is not among them, but when the host is told of `Places`."""
    found = Questions()

    def unseen(function):
        def call(*args):
            with torch._C.DisableTorchFunction():
                return function(*args)

        return call

    tolist = unseen(Places.tolist)

    def told(self):
        found.found["told"] += 1
        return tolist(self)

    monkeypatch.setattr(Places, "tolist", told)
    for module in ("beams", "logits_processors", "search"):
        monkeypatch.setattr(f"elseq.generation.{module}.to_device", unseen(to_device))
    return found


def make_batch(lengths=(3, 7, 1, 5)):
    return make_sample(DICTIONARY, make_sources(DICTIONARY, lengths))


STRATEGIES = {
    "greedy": ({"beam_size": 1}, {}),
    "beam": ({}, {}),
    "n-grams": ({"no_repeat_ngram_size": 3}, {}),
    "suppressed words": ({"tokens_to_suppress": ["w3"]}, {}),
    "penalty": ({"unk_penalty": 1.0}, {}),
    "prefix": ({}, {"prefix_tokens": torch.arange(4, 14).repeat(4, 1)}),
    "sampling": ({"search_strategy": search.Sampling(DICTIONARY)}, {}),
    "sampling, top-k": ({"search_strategy": search.Sampling(DICTIONARY, sampling_topk=3)}, {}),
    "diverse groups": ({"search_strategy": search.DiverseBeamSearch(DICTIONARY, 2, 0.7), "beam_size": 4}, {}),
}


@pytest.mark.parametrize(("options", "extra"), STRATEGIES.values(), ids=STRATEGIES)
def test_a_step_waits_for_nothing(questions, options, extra):
    """But that it is told what ended, which sampling waits for: it draws numbers for the sentences that are left."""
    model = make_models("transformer", DICTIONARY)["kv"]
    counts = []
    for length in (5, 8):
        questions.found.clear()
        generator = SequenceGenerator(
            [model], DICTIONARY, **{"beam_size": 3, **options}, min_len=length, max_len_b=length
        )
        generator.may_end_early = True  # so that every step is looked at
        sample = make_batch()
        with questions:
            generator.generate([model], sample, **extra)
        counts.append(Counter(questions.found))
    assert counts[1] - counts[0] == Counter(told=3)


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


def test_questions_are_seen(questions):
    with questions:
        marks = torch.tensor([True, False])
        assert marks[0] and marks[marks].tolist() == [True] and int(marks.sum()) == len(marks.nonzero()) == 1
    names = ["tensor", "__bool__", "__getitem__", "tolist", "__int__", "nonzero"]
    assert questions.found == Counter(names)


@pytest.mark.parametrize("beam", [1, 3])
def test_the_host_is_told_when_the_next_step_runs(monkeypatch, as_on_gpu, beam):
    model = make_models("transformer", DICTIONARY)["kv"]
    generator = SequenceGenerator([model], DICTIONARY, beam_size=beam, max_len_b=12)
    steps, looks = [], []
    step, end = generator.model.step, generator._end
    monkeypatch.setattr(generator.model, "step", lambda tokens: steps.append(tokens.size(1) - 1) or step(tokens))
    monkeypatch.setattr(
        generator,
        "_end",
        lambda finished, look, *more: looks.append((look.step, steps[-1])) or end(finished, look, *more),
    )
    generator.generate([model], make_batch())
    assert len(looks) > 3 and all(running == min(look + 1, 12) for look, running in looks)


@pytest.mark.parametrize("family", ["transformer", "language_model"])
@pytest.mark.parametrize("name", SEARCHES)
def test_the_same_hypotheses(monkeypatch, family, name):
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
    monkeypatch.setattr(transfers, "is_free", lambda device: False)
    assert_same_hypotheses(generate(), expected)


@pytest.mark.parametrize(
    "rule", [{"beam_patience": 2.0}, {"early_stopping": "bound"}, {"early_stopping": "never"}], ids=str
)
def test_the_same_rules_of_stopping(monkeypatch, rule):
    model = make_models("transformer", DICTIONARY, seed=4)["kv"]
    sample = make_batch((3, 7, 1, 5, 2, 6, 4))
    generator = SequenceGenerator([model], DICTIONARY, beam_size=4, max_len_b=17, len_penalty=2.0, **rule)
    expected = generator.generate([model], sample)
    monkeypatch.setattr(transfers, "is_free", lambda device: False)
    assert_same_hypotheses(generator.generate([model], sample), expected)


@pytest.mark.parametrize("beam", [1, 3])
def test_the_same_prefixes(monkeypatch, beam):
    """Of several lengths, of which one ends its sentence."""
    model = make_models("transformer", DICTIONARY)["el"]
    prefix = pad_rows([[5, 6, 7], [8, DICTIONARY.eos()], [9, 10], []], DICTIONARY.pad())
    generator = SequenceGenerator([model], DICTIONARY, beam_size=beam, max_len_b=9)
    expected = generator.generate([model], make_batch(), prefix_tokens=prefix)
    monkeypatch.setattr(transfers, "is_free", lambda device: False)
    assert_same_hypotheses(generator.generate([model], make_batch(), prefix_tokens=prefix), expected)


@pytest.mark.parametrize("lengths", [(35, 3), (35, 35, 34)])
def test_no_position_beyond_the_last(monkeypatch, lengths):
    """A sentence ends at the last position of the model, and one with a shorter prompt goes on."""
    model = make_models("language_model", DICTIONARY, positions=40, decoder_learned_pos=True)["kv"]
    rows = [[DICTIONARY.eos(), *row[:-1]] for row in make_sources(DICTIONARY, [length - 1 for length in lengths])]
    prompts = pad_rows(rows, DICTIONARY.pad())
    sample = {"net_input": {"src_tokens": prompts, "src_lengths": prompts.ne(DICTIONARY.pad()).sum(dim=1)}}
    generator = SequenceGenerator([model], DICTIONARY, beam_size=3, min_len=5, max_len_b=12)
    expected = generator.generate([model], sample, prompt_tokens=prompts)
    assert [len(found[0]["tokens"]) for found in expected] == [min(12, 40 - len(row)) + 1 for row in rows]
    monkeypatch.setattr(transfers, "is_free", lambda device: False)
    assert_same_hypotheses(generator.generate([model], sample, prompt_tokens=prompts), expected)


def test_only_sentences_at_their_limit_need_the_log_probabilities_of_all_words(monkeypatch, as_on_gpu):
    model = make_models("transformer", DICTIONARY)["kv"]
    options = {"beam_size": 2, "max_len_a": 1, "max_len_b": 2, "tokens_to_suppress": [DICTIONARY.eos_word]}
    generator = SequenceGenerator([model], DICTIONARY, **options)
    steps, candidates = {}, generator._candidates

    def seen(step, next_words):
        steps[step.number] = step.at_limit is not None
        return candidates(step, next_words)

    monkeypatch.setattr(generator, "_candidates", seen)
    generator.generate([model], make_batch((3, 9)))
    # The first sentence is searched for one step more.
    assert len(steps) == 13 and [number for number, is_at_limit in steps.items() if is_at_limit] == [6, 7, 12]


def test_places():
    marks = torch.tensor([[False, True], [False, False], [True, True]])
    assert Places(marks).tolist() == [[0, 1], [2, 0], [2, 1]]
    assert Places(torch.zeros(2, 3, dtype=torch.bool)).tolist() == []


def test_an_empty_list_has_the_type_of_the_others():
    for numbers in ([], [[]], [[1, 2]]):
        assert to_device(numbers, CPU).dtype == torch.long and to_device(numbers, CPU).tolist() == numbers


@pytest.mark.gpu
def test_a_gpu_goes_on_meanwhile():
    marks = torch.zeros(2, 2, dtype=torch.bool, device="cuda")
    torch.cuda._sleep(100_000_000)
    marks[1, 0] = True
    places = Places(marks)
    done = torch.cuda.Event()
    torch.cuda._sleep(100_000_000)
    done.record()
    assert places.tolist() == [[1, 0]]
    assert not done.query()
