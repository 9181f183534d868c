import random
from itertools import zip_longest

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elseq.errors import UserError, is_out_of_memory
from elseq.generation import cuda_graphs
from elseq.generation.batches import SplittingDecoder, cut_batches, largest

CUDA = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried ...")


@pytest.fixture(scope="module", autouse=True)
def no_garbage():
    """To collect it takes long late in a run of all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_graphs.gc, "collect", lambda: 0)
        yield


@given(lengths=st.lists(st.integers(0, 30), max_size=60), max_tokens=st.integers(1, 100))
def test_batches_hold_each_sentence_once_and_as_many_as_they_may(lengths, max_tokens):
    cut = [batch.tolist() for batch in cut_batches(lengths, lambda length: max(1, max_tokens // length))]
    assert sorted(sum(cut, [])) == [index for index, length in enumerate(lengths) if length]
    order = [lengths[index] for batch in cut for index in batch]
    assert order == sorted(order, reverse=True)
    for batch, following in zip_longest(cut, cut[1:]):
        assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= max_tokens
        assert following is None or (len(batch) + 1) * lengths[batch[0]] > max_tokens
        assert batch == sorted(batch, key=lambda index: (-lengths[index], index))


@given(limit=st.integers(0, 5000))
def test_the_largest_that_fits(limit):
    assert largest(lambda number: number <= limit) == limit


def decoder(room, lengths, error=CUDA):
    """One that runs out of memory beyond so many padded tokens, and the sizes of what it was given."""
    sizes = []

    def decode(numbers):
        sizes.append(len(numbers))
        if len(numbers) * max(lengths[number] for number in numbers) > room:
            raise error
        return [f"text {number}" for number in numbers]

    return SplittingDecoder(decode, lengths, lambda number: f"line {number + 1}"), sizes


@pytest.mark.parametrize("error", [CUDA, CPU, RuntimeError("not enough memory: you tried to"), MemoryError()], ids=repr)
def test_what_does_not_fit_is_split(error):
    lengths = [7] * 13
    decode, _ = decoder(room=25, lengths=lengths, error=error)
    parts = list(decode(np.arange(13)))
    assert [number for part, _ in parts for number in part] == list(range(13))
    assert all(results == [f"text {number}" for number in part] for part, results in parts)
    assert all(len(part) * 7 <= 25 for part, _ in parts)


def test_what_did_not_fit_once_is_not_tried_again():
    lengths = [10] * 32
    decode, sizes = decoder(room=100, lengths=lengths)
    list(decode(range(16)))
    assert sizes == [16, 8, 8]
    list(decode(range(16, 32)))
    assert sizes == [16, 8, 8, 8, 8]


def test_parts_come_as_soon_as_they_are_there():
    lengths = [1, 1, 90, 1]
    decode, _ = decoder(room=2, lengths=lengths)
    parts = decode([0, 1, 2, 3])
    assert next(parts) == ([0, 1], ["text 0", "text 1"])
    with pytest.raises(UserError, match=r"^line 3 does not fit the memory, even alone \(90 tokens\): shorten it"):
        next(parts)


def test_other_errors_pass():
    decode, _ = decoder(room=0, lengths=[1], error=RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        list(decode([0]))
    assert not is_out_of_memory(ValueError("not enough memory"))


@given(seed=st.integers(0, 1000))
def test_at_any_moment(seed):
    """Memory may be short now and there again later."""
    draw = random.Random(seed)
    lengths = [draw.randint(1, 9) for _ in range(20)]

    def decode(numbers):
        if len(numbers) > 1 and draw.random() < 0.5:
            raise CUDA
        return list(numbers)

    split = SplittingDecoder(decode, lengths, str)
    parts = [part for batch in (range(12), range(12, 20)) for part in split(batch)]
    assert all(numbers == results for numbers, results in parts)
    assert [number for numbers, _ in parts for number in numbers] == list(range(20))
