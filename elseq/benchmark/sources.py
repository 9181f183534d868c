"""Sources of a benchmark: lines of a file, or random tokens, as numbers and in batches."""

import random
from pathlib import Path

from fairseq.data import Dictionary

from elseq.benchmark.models import SEED, SPECIAL_SYMBOLS, ModelFile
from elseq.errors import UserError
from elseq.files import read_lines


def random_sources(model_file: ModelFile, length: int, count: int, shortest: int | None = None) -> list[list[int]]:
    """Sources that take `length` positions each, the special symbols that the model sees included.

    Args:
        model_file, length: as told.
        count: how many.
        shortest: positions of the shortest, where lengths are drawn, all as often; `length` is that of the first.

    Raises:
        UserError: a length that leaves no room for a word.
    """
    dictionary = Dictionary.load(model_file.dictionary)
    added = model_file.special_positions
    if (shortest or length) <= added:
        raise UserError(f"{shortest or length} leaves no room for a word; give at least {added + 1}", "source_length")
    draw = random.Random(SEED)
    lengths = (
        [length] * count if shortest is None else [length, *(draw.randint(shortest, length) for _ in range(count - 1))]
    )
    return [
        [draw.randrange(SPECIAL_SYMBOLS, len(dictionary)) for _ in range(each - added)] + [dictionary.eos()]
        for each in lengths
    ]


def read_sources(model_file: ModelFile, path: Path) -> list[list[int]]:
    """The lines of a text file, in words of the model's dictionary separated by spaces.

    Raises:
        UserError: a file that is missing or empty, or a line that is not UTF-8, is empty, or is too long for the model.
    """
    lines = list(read_lines(path))
    dictionary = Dictionary.load(model_file.dictionary)
    return [
        _encode(line, f"line {number} of {path}", dictionary, model_file) for number, line in enumerate(lines, start=1)
    ]


def count_positions(model_file: ModelFile, sources: list[list[int]]) -> list[int]:
    """Positions that each source takes in the model, special symbols included."""
    # Every source has an end symbol already. A language model has another symbol in its place, before the prompt.
    added = model_file.special_positions - 1
    return [len(source) + added for source in sources]


def check_positions(model_file: ModelFile, positions: list[int], output_length: int) -> None:
    """
    Raises:
        UserError: the model has too few positions for the sources, or for an output of `output_length` tokens.
    """
    longest = max(positions)
    if not model_file.is_language_model and longest > model_file.source_positions:
        raise UserError(
            f"the sources take up to {longest} positions, the model has {model_file.source_positions}; shorten them"
        )
    needed = output_length + (longest if model_file.is_language_model else 1)
    if needed > model_file.target_positions:
        what = "prompt and output take" if model_file.is_language_model else "the output takes"
        raise UserError(f"{what} {needed} positions, the model has {model_file.target_positions}; ask for less")


def make_batches(sources: list[list[int]], batch_size: int, equal_lengths: bool) -> list[list[int]]:
    """Indices of the sources of each batch, the longest first.

    Args:
        sources: all of them.
        batch_size: sources in a batch, at most.
        equal_lengths: only sources of the same length share a batch.
    """
    order = sorted(range(len(sources)), key=lambda index: -len(sources[index]))
    batches: list[list[int]] = []
    for index in order:
        fits = batches and len(batches[-1]) < batch_size
        if fits and equal_lengths:
            fits = len(sources[batches[-1][0]]) == len(sources[index])
        if fits:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _encode(line: str, place: str, dictionary: Dictionary, model_file: ModelFile) -> list[int]:
    words = line.split()
    if not words:
        raise UserError(f"{place} is empty: remove it")
    limit = (model_file.source_positions or model_file.target_positions) - model_file.special_positions
    if len(words) > limit:
        raise UserError(f"{place} has {len(words)} pieces, the model takes {limit}: shorten it or leave it out")
    return [*map(dictionary.index, words), dictionary.eos()]
