"""What a batch is said to take, against every tensor that is alive while it is decoded."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elseq import native
from elseq.errors import UserError
from elseq.generation import SequenceGenerator
from elseq.generation.budget import batch_bytes, capacity, write_bytes
from elseq.generation.search import Usage
from elseq.precision import kernels, packed
from tests.tiny_models import make_dictionary, make_models, make_sample, make_sources


class PeakMemory(TorchDispatchMode):
    """The most bytes that the tensors made under it had at a time."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._seen = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        before = {id(storage) for storage in self._storages((args, kwargs))}
        for storage in self._storages(result):
            self._enter(storage, before)
        return result

    @staticmethod
    def _storages(tree):
        """All but those of packed weights, which cannot be asked for."""
        tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
        return [tensor.untyped_storage() for tensor in tensors if not tensor.is_mkldnn]

    def _enter(self, storage, before):
        if id(storage) in self._seen or id(storage) in before:
            return
        size = storage.nbytes()
        self._seen[id(storage)] = weakref.finalize(storage, self._leave, id(storage), size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _leave(self, key, size):
        del self._seen[key]
        self.now -= size


def test_the_measure():
    with PeakMemory() as memory:
        first = torch.ones(1000)
        second = first.view(10, 100)[2:]
        (first + 1).add_(second.sum())
        del first
        assert memory.now == second.untyped_storage().nbytes() == 4000
        del second
    assert memory.now == 0
    assert 8000 <= memory.peak <= 8100


def measure(
    family, method, sentences, length, beam, dtype=torch.float32, words=40, max_len=12, decode_dtype=None, **options
):
    """What is planned for a batch, what its decoding takes, and the largest decoding state."""
    dictionary = make_dictionary(words)
    model = make_models(family, dictionary, positions=200, **options)[method].to(dtype)
    model.decoder.decode_dtype = decode_dtype
    model.make_generation_fast_()
    search = SequenceGenerator([model], dictionary, beam_size=beam, max_len_b=max_len, min_len=max_len)
    rows = make_sources(dictionary, [length - 1] * sentences)
    prompt = {}
    if family == "language_model":
        sample = make_sample(dictionary, [[dictionary.eos(), *row[:-1]] for row in rows], left=False)
        prompt = {"prompt_tokens": sample["net_input"]["src_tokens"]}
    else:
        sample = make_sample(dictionary, rows)
    search.generate([model], sample, **prompt)  # the first batch prepares the weights, which are no part of a batch
    states = []
    with pytest.MonkeyPatch.context() as patch, PeakMemory() as memory:
        patch.setattr(Usage, "record", lambda self, size: states.append(size))
        search.generate([model], sample, **prompt)
    return batch_bytes(model, search, sentences, length), memory.peak, max(states)


@pytest.mark.parametrize("family", ["transformer", "bart", "language_model"])
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize(
    "sizes",
    [
        {"sentences": 1, "length": 5, "beam": 1},
        {"sentences": 9, "length": 60, "beam": 4},
        {"sentences": 3, "length": 150, "beam": 1},
        {"sentences": 4, "length": 10, "beam": 5, "words": 5000},
        {"sentences": 2, "length": 10, "beam": 4, "max_len": 45},
        {"sentences": 5, "length": 30, "beam": 3, "dtype": torch.bfloat16},
        {"sentences": 20, "length": 90, "beam": 2, "max_len": 3},
    ],
    ids=str,
)
def test_a_batch_takes_no_more_than_planned(family, method, sizes):
    planned, peak, state = measure(family, method, **sizes)
    assert state < peak <= planned < 3 * peak


@pytest.mark.parametrize("family", ["transformer", "language_model"])
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize("way", ["kernels", "torch"])
def test_a_batch_in_int8(family, method, way, monkeypatch):
    if way == "torch":
        monkeypatch.setattr(kernels, "available", lambda: False)
    for sizes in ({"sentences": 9, "length": 60, "beam": 4}, {"sentences": 20, "length": 90, "beam": 4, "words": 500}):
        planned, peak, state = measure(family, method, **sizes, decode_dtype="int8")
        assert state < peak <= planned < 3 * peak
        in_float32 = measure(family, method, **sizes)[2]
        # The kernel of attention reads the keys and values of sources and prompts in bfloat16.
        assert state < in_float32 if method == "kv" and native.library() is not None else state == in_float32


def searching(family="bart", method="el", **options):
    dictionary = make_dictionary(40)
    models = make_models(family, dictionary, positions=200)
    model = models[method]
    return model, SequenceGenerator([model], dictionary, beam_size=2, max_len_b=9)


@pytest.mark.parametrize("family", ["transformer", "language_model"])
def test_as_many_sentences_as_fit(family):
    model, search = searching(family)
    for length in (2, 17, 100):
        budget = batch_bytes(model, search, 1, length) * 5
        number = capacity([model], search, budget, str)(length)
        assert batch_bytes(model, search, number, length) <= budget < batch_bytes(model, search, number + 1, length)


def test_auto_is_the_larger():
    model, search = searching("bart", "kv")
    sizes = {}
    for attention in ("kv", "el", "auto"):
        model.decoder.decode_attention = attention
        sizes[attention] = batch_bytes(model, search, 3, 30)
    assert sizes["auto"] == sizes["kv"] > sizes["el"]


def test_symbols_that_the_task_adds_count():
    model, search = searching()
    budget = batch_bytes(model, search, 4, 30)
    assert capacity([model], search, budget, str)(30) == 4
    assert capacity([model], search, budget, str, extra=1)(30) == 3


def test_a_sentence_beyond_the_budget():
    model, search = searching()
    with pytest.raises(
        UserError, match=r"^line of 30 tokens alone needs about [\d.]+ KiB of memory and the budget is "
    ):
        capacity([model], search, 1000, lambda length: f"line of {length} tokens")(30)


def test_models_that_no_budget_is_known_for():
    model, search = searching("bart", "stock")
    with pytest.raises(UserError, match="give a number of tokens instead"):
        capacity([model], search, 10**9, str)


@pytest.mark.parametrize(
    "size, text",
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (3 * 2**29, "1.5 GiB"), (2**42, "4.0 TiB")],
)
def test_sizes_for_people(size, text):
    assert write_bytes(size) == text


@pytest.mark.parametrize("pays", [True, False])
def test_rows_that_packed_products_add(pays, monkeypatch):
    """20 hypotheses are multiplied as 32."""
    if pays and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no packed products")
    monkeypatch.setattr(packed, "pays", lambda dtype: pays)
    planned, peak, _ = measure("bart", "el", sentences=4, length=10, beam=5, words=5000)
    assert peak <= planned < 1.3 * peak
