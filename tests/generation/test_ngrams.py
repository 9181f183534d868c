import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elseq.generation.ngrams import repeated_tokens

VOCABULARY, UNUSED = 6, 5


def repeated_in(tokens, size):
    """Each token that would make the last n tokens an n-gram that is there already."""
    present = {tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)}
    last = tokens[len(tokens) - size + 1 :] if size > 1 else []
    return {word for word in range(VOCABULARY) if len(tokens) >= size and (*last, word) in present}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.integers(1, 4),
    st.integers(1, 4).flatmap(
        lambda rows: st.integers(0, 12).flatmap(
            lambda length: st.lists(
                st.lists(st.integers(0, 3), min_size=length, max_size=length), min_size=rows, max_size=rows
            )
        )
    ),
)
def test_equals_brute_force(size, rows):
    repeated = repeated_tokens(torch.tensor(rows).view(len(rows), -1), size, UNUSED)
    for row, tokens in enumerate(rows):
        assert set(repeated[row].tolist()) - {UNUSED} == repeated_in(tokens, size) - {UNUSED}


def test_a_view_of_the_tokens_so_far_will_do():
    """The search hands a slice of a longer buffer."""
    tokens = torch.tensor([[9, 1, 1, 9], [9, 2, 3, 9]])
    assert [set(row) - {UNUSED} for row in repeated_tokens(tokens[:, 1:3], 1, UNUSED).tolist()] == [{1}, {2, 3}]
