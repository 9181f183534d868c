"""Against texts encoded one by one, and against batches of one."""

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elseq.encoded_texts import EncodedTexts, Tokens, numbered
from elseq.errors import UserError

REMEDIES = "do this", "do that"


@given(texts=st.lists(st.none() | st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5), max_size=20))
def test_tokens_are_kept(texts):
    kept = Tokens()
    for tokens in texts:
        kept.append(None if tokens is None else torch.tensor(tokens))
    assert len(kept) == len(texts)
    assert list(kept.lengths) == [len(tokens or []) for tokens in texts]
    for index, tokens in enumerate(texts):
        assert kept[index].tolist() == (tokens or [])
        assert kept[index].dtype == torch.long
    assert kept.count(7) == sum((tokens or []).count(7) for tokens in texts)


def test_digest_of_tokens():
    def digest(*texts):
        kept = Tokens()
        for tokens in texts:
            kept.append(torch.tensor(tokens))
        return kept.digest()

    assert digest([1, 2], [3]) == digest([1, 2], [3])
    assert len({digest([1, 2], [3]), digest([1], [2, 3]), digest([1, 2, 3]), digest([1, 2], [4])}) == 4


@given(st.lists(st.integers(0, 5)))
def test_distinct_values(values):
    distinct, of_each = numbered(values)
    assert [distinct[number] for number in of_each] == values
    assert len(set(distinct)) == len(distinct) and distinct == sorted(distinct, key=values.index)


class Letters:
    """A generator whose tokens are letters, whose searches return them, and which takes four."""

    models, task = (), SimpleNamespace(symbols_of_source=0)

    def __init__(self, sign=1):
        self.sign = sign
        self.batches = []

    def make_search(self, cfg):
        return cfg

    def split_constraints(self, text, cfg):
        source, *phrases = text.split("+")
        return source, phrases

    def encode(self, text, search, name, truncate, remedies):
        if len(text) > 4 and not truncate:
            raise UserError(f"{name} is too long; {' or '.join(remedies)}")
        return torch.tensor([ord(letter) for letter in text[:4]]), len(text) > 4

    def encode_prefix(self, text, search, length, name):
        if len(text) > length:
            raise UserError(f"{name} is too long")
        return torch.tensor([ord(letter) for letter in text])

    def decode(self, search, sources, constraints, prefixes=None):
        self.batches.append(len(sources))
        prefixes = [torch.tensor([])] * len(sources) if prefixes is None else prefixes
        drawn = torch.rand(())
        return [
            [{"tokens": before.tolist() + (source * self.sign).tolist(), "phrases": phrases, "drawn": drawn}]
            for source, before, phrases in zip(sources, prefixes, constraints, strict=True)
        ]


def encode(texts, generators=None, of_text=None, truncate=False, seed=None):
    of_text = np.zeros(len(texts), np.int64) if of_text is None else np.array(of_text)
    cfg = SimpleNamespace(sampling=True, search=None, parameters=lambda: iter([torch.zeros(1)]))  # also the search
    options = {"cfg": cfg, "name": "text {}".format, "remedies": REMEDIES}
    return EncodedTexts(texts, generators or [Letters()], of_text, truncate=truncate, seed=seed, **options)


def decoded(encoded, max_tokens):
    found = {}
    for batch in encoded.batches(max_tokens, None):
        for part, hypotheses in encoded.decode(batch):
            found |= {index: best for index, [best] in zip(part, hypotheses, strict=True)}
    return found


@pytest.mark.parametrize("max_tokens", [1, 6, 100])
def test_each_text_has_its_own_output(max_tokens):
    texts, prefixes = ["abc", " ", "d+x+y", "efgh", "i", ""], ["a", "b", "", "gh", "", ""]
    generators = [Letters(), Letters(-1)]
    encoded = encode(texts, generators, [0, 1, 1, 1, 0, 0])
    kept = encoded.force_prefixes(prefixes, "prefix {}".format)
    assert encoded.blank.tolist() == [False, True, False, False, False, True]
    assert [kept[index].tolist() for index in range(6)] == [[97], [], [], [103, 104], [], []]
    assert [encoded.generator(index) for index in (0, 2)] == generators
    found = decoded(encoded, max_tokens)
    assert {index: best["tokens"] for index, best in found.items()} == {
        0: [97, 97, 98, 99],
        2: [-100],
        3: [103, 104, -101, -102, -103, -104],
        4: [105],
    }
    assert {index: best["phrases"] for index, best in found.items()} == {0: [], 2: ["x", "y"], 3: [], 4: []}
    expected = {1: [[1, 1], [1, 1]], 6: [[2], [1, 1]], 100: [[2], [2]]}
    assert [each.batches for each in generators] == expected[max_tokens]


def test_nothing_lives_on():
    """A search logs what it needed when it goes."""
    generator = Letters()
    generator.make_search = lambda cfg: searches.append(Search()) or searches[-1]
    searches = []

    class Search:
        pass

    encoded = encode(["abc", "de"], [generator])
    decoded(encoded, 6)
    [search] = map(weakref.ref, searches)
    searches.clear()
    gc.disable()
    try:
        del encoded
        assert search() is None
    finally:
        gc.enable()


def test_texts_that_are_too_long():
    with pytest.raises(UserError, match="^text 1 is too long; do this or do that$"):
        encode(["abc", "abcde"])
    encoded = encode(["abc", "abcde", "abcdefg"], truncate=True)
    assert list(encoded.truncated) == [1, 2] and list(encoded.sources.lengths) == [3, 4, 4]
    with pytest.raises(UserError, match="^prefix 0 is too long$"):
        encoded.force_prefixes(["abcd", "", ""], "prefix {}".format)


def test_random_numbers_depend_on_the_seed_and_the_batch():
    texts = ["a", "bcd", "efg"]
    drawn = [[best["drawn"].item() for best in decoded(encode(texts, seed=seed), 6).values()] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    alone = encode(texts, seed=1)
    [(_, [[best]])] = alone.decode([0])
    assert best["drawn"].item() == decoded(encode(texts, seed=1), 6)[0]["drawn"].item()
