"""Against hypotheses that are copied."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elseq.attention.ancestry import Ancestry
from tests.attention.reference import quick, seeds


class Copied:
    """The rows in which each hypothesis wrote its positions, as lists."""

    def __init__(self, hypotheses):
        self.written = [[] for _ in range(hypotheses)]

    def reorder(self, order):
        self.written = [list(self.written[parent]) for parent in order]

    def write(self):
        for number, rows in enumerate(self.written):
            rows.append(number)

    def shared(self, one, other):
        pairs = zip(self.written[one], self.written[other], strict=True)
        return next((place for place, (a, b) in enumerate(pairs) if a != b), len(self.written[one]))


def draw_order(sentences, beam):
    return (torch.randint(beam, (sentences, beam)) + torch.arange(0, sentences * beam, beam).unsqueeze(1)).flatten()


@quick
@given(seeds, st.integers(1, 3), st.integers(1, 5), st.integers(1, 9))
def test_rows_and_what_is_shared(seed, sentences, beam, capacity):
    torch.manual_seed(seed)
    hypotheses = sentences * beam
    ancestry, copied = Ancestry(hypotheses, beam, capacity, torch.device("cpu")), Copied(hypotheses)
    places = ancestry.rows.data_ptr(), ancestry.shared.data_ptr()
    for position in range(capacity):
        order = draw_order(sentences, beam)
        ancestry.reorder(order, torch.tensor([position]))
        copied.reorder(order.tolist())
        copied.write()
        assert ancestry.rows[:, : position + 1].tolist() == copied.written
        for number in range(hypotheses):
            first = number // beam * beam
            for other in range(beam):
                is_itself = first + other == number
                expected = capacity if is_itself else copied.shared(number, first + other)
                assert ancestry.shared[number, other] == expected
    assert (ancestry.rows.data_ptr(), ancestry.shared.data_ptr()) == places
    ancestry.reset()
    fresh = Ancestry(hypotheses, beam, capacity, torch.device("cpu"))
    assert torch.equal(ancestry.rows, fresh.rows) and torch.equal(ancestry.shared, fresh.shared)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_moving(shape):
    torch.manual_seed(1)
    ancestry = Ancestry(4, 2, 5, torch.device("cpu"))
    buffer = torch.randn(4, *shape, 5, 6)
    copied = buffer.clone()
    for position in range(1, 5):
        order = draw_order(2, 2)
        ancestry.reorder(order, torch.tensor([position]))
        copied[..., :position, :] = copied.index_select(0, order)[..., :position, :]
    assert torch.equal(ancestry.move(buffer), copied)


def test_the_first_hypotheses():
    """In the same tensors: what is done to them is done to all."""
    whole = Ancestry(6, 2, 4, torch.device("cpu"))
    part = whole.narrow(4)
    part.reorder(torch.tensor([1, 1, 2, 2]), torch.tensor([3]))
    assert whole.rows.tolist() == [[1, 1, 1, 0], [1] * 4, [2] * 4, [2, 2, 2, 3], [4] * 4, [5] * 4]
    assert whole.shared.tolist() == [[4, 3], [3, 4], [4, 3], [3, 4], [4, 0], [0, 4]]
    whole.reorder(torch.tensor([0, 0, 2, 3, 4, 4]), torch.tensor([4]))
    part.reset()
    assert whole.rows[:4].tolist() == [[0] * 4, [1] * 4, [2] * 4, [3] * 4]
    assert whole.rows[4:].tolist() == [[4] * 4, [4] * 4]
