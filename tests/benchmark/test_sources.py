"""Sources against counting by hand."""

from types import SimpleNamespace

import pytest
from fairseq.data import Dictionary

from elseq.benchmark.models import checkpoint_model
from elseq.benchmark.sources import check_positions, count_positions, make_batches, random_sources, read_sources
from elseq.errors import UserError


@pytest.fixture
def model_file(tmp_path):
    """Words a to c are 4 to 6; 6 positions."""
    (tmp_path / "dict.txt").write_text("a 1\nb 1\nc 1\n")

    def make(is_language_model=False, special=1):
        return SimpleNamespace(
            dictionary=str(tmp_path / "dict.txt"),
            is_language_model=is_language_model,
            special_positions=special,
            source_positions=0 if is_language_model else 6,
            target_positions=6,
        )

    return make


def test_lines_are_numbers(model_file, tmp_path):
    (tmp_path / "source").write_text("b a\nc unknown\n")
    unk, eos = Dictionary().unk(), Dictionary().eos()
    assert read_sources(model_file(), tmp_path / "source") == [[5, 4, eos], [6, unk, eos]]


@pytest.mark.parametrize("special", [1, 2])
def test_random_sources_take_the_positions_asked_for(model_file, special):
    model = model_file(special=special)
    sources = random_sources(model, 5, 30)
    assert count_positions(model, sources) == [5] * 30
    assert {word for source in sources for word in source[:-1]} == {4, 5, 6}
    assert {source[-1] for source in sources} == {2}
    assert random_sources(model, 5, 30) == sources
    with pytest.raises(
        UserError, match=f"^source_length {special} leaves no room for a word; give at least {special + 1}"
    ):
        random_sources(model, special, 1)


@pytest.mark.parametrize(
    ("is_language_model", "positions", "output", "sentence"),
    [
        (False, [3, 6], 5, None),
        (False, [3, 7], 1, "the sources take up to 7 positions, the model has 6"),
        (False, [3], 6, "the output takes 7 positions, the model has 6"),
        (True, [2, 4], 2, None),
        (True, [2, 4], 3, "prompt and output take 7 positions, the model has 6"),
    ],
)
def test_positions(model_file, is_language_model, positions, output, sentence):
    if sentence is None:
        return check_positions(model_file(is_language_model), positions, output)
    with pytest.raises(UserError, match=f"^{sentence}; "):
        check_positions(model_file(is_language_model), positions, output)


def test_batches_are_of_the_longest_first():
    sources = [[0] * length for length in (2, 5, 3, 5)]
    assert make_batches(sources, 3, equal_lengths=False) == [[1, 3, 2], [0]]
    assert make_batches(sources, 3, equal_lengths=True) == [[1, 3], [2], [0]]


def test_checkpoint(tiny_translation, tmp_path):
    model_file = checkpoint_model(tiny_translation.checkpoint, tiny_translation.data)
    assert not model_file.is_language_model
    assert model_file.source_positions == 64
    sources = read_sources(model_file, tiny_translation.raw / "test.src")
    assert len(sources) == 21
    with pytest.raises(UserError, match="holds no dictionary .*; name another folder"):
        checkpoint_model(tiny_translation.checkpoint, tmp_path)


def test_random_sources_of_different_lengths(model_file):
    """The longest first, so that there is one of them; all lengths occur."""
    positions = count_positions(model_file(), random_sources(model_file(), 5, 30, shortest=3))
    assert positions[0] == 5 and set(positions) == {3, 4, 5}
    with pytest.raises(UserError, match="^source_length 1 leaves no room for a word; give at least 2$"):
        random_sources(model_file(), 5, 30, shortest=1)
