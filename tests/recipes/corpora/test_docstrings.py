"""The corpus of docstrings: what becomes a sentence, what is dropped, and that no two splits share text."""

import itertools
import re

import pytest

from elseq.errors import UserError
from recipes.corpora.docstrings import (
    SHARED_WORDS,
    SPLITS,
    Limits,
    abbreviate,
    docstrings,
    fill_splits,
    main,
    sentences,
    words_in_a_row,
)

SENTENCE = "It walks over every single one of them, in the order of their names."


def texts(source):
    return list(docstrings(source.encode()))


def prose(text, shortest=2, longest=20):
    return list(sentences(text, Limits(shortest, longest)))


def test_docstrings_of_modules_classes_functions_and_methods():
    source = (
        '"""a"""\nclass C:\n    """b"""\n    def f(self):\n        """c"""\nasync def g():\n    """d"""\nx = """no"""\n'
    )
    assert sorted(texts(source)) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("source", ["print 'of Python 2'", "x = \0", ""])
def test_sources_that_cannot_be_parsed_have_no_docstrings(source):
    assert texts(source) == []


def test_sources_are_not_run():
    assert texts('"""Do not run."""\nraise SystemExit') == ["Do not run."]


def test_sentences_with_their_white_space_made_normal():
    text = f"Sum up\n  all   of it. Don't stop!\n\nNotes\n-----\n{SENTENCE}\n\n\tWhat is next? And then\n"
    assert prose(text) == ["Sum up all of it.", "Don't stop!", SENTENCE, "What is next?"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no capital at the beginning.",
        "No end at the end",
        "It takes 2 numbers.",
        "It calls ``numpy.sum`` on them.",
        "Calls some_function of it.",
        "See Also ----- of it.",
        "size : The size of it.",
        "Übersetzt das alles.",
        "Word.",
    ],
)
def test_what_is_no_prose_is_left_out(text):
    assert prose(text) == []


def test_sentences_have_as_many_words_as_the_limits_say():
    assert prose("One two. One two three. One two three four.", 3, 3) == ["One two three."]


def test_abbreviations():
    assert abbreviate("Don't split a two-letter word, ever.", 3) == "Don't spl a two-let wor, eve."
    assert abbreviate(SENTENCE, 2) == "It wa ov ev si on of th, in th or of th na."


def test_words_in_a_row_are_those_of_every_window():
    words = [
        "it",
        "walks",
        "over",
        "every",
        "single",
        "one",
        "of",
        "them",
        "in",
        "the",
        "order",
        "of",
        "their",
        "names",
    ]
    windows = {tuple(words[start : start + SHARED_WORDS]) for start in range(len(words) - SHARED_WORDS + 1)}
    assert words_in_a_row(SENTENCE) == windows
    assert words_in_a_row("Just this.") == {("just", "this")}


def test_a_sentence_is_used_once():
    modules = [["Say it all."], ["Say it, all!", "Say more."], ["say it all.", "Say no more.", "Say more."]]
    splits = fill_splits(modules, {"test": 1, "valid": 5, "train": 5})
    assert splits == {"test": ["Say it all."], "valid": ["Say more.", "Say no more."], "train": []}


def test_training_shares_no_six_words_in_a_row_with_the_rest():
    held_out = ["Return the number of elements in the list.", "Raise an error if the given file is missing."]
    near = ["Get the number of elements in the list, or fail.", "Warn and raise an error if the given file exists."]
    far = ["Return a number of elements in this list.", "Raise an error if the file is missing."]
    splits = fill_splits([held_out[:1], held_out[1:], near + far], {"test": 1, "valid": 1, "train": 9})
    assert splits["train"] == far


def test_splits_are_filled_with_whole_modules_and_reading_stops_when_they_are_full():
    modules = ([f"sentence {chr(97 + number)} {chr(97 + row)}" for row in range(4)] for number in itertools.count())
    splits = fill_splits(modules, {"test": 5, "valid": 3, "train": 8})
    assert [len(splits[name]) for name in SPLITS] == [5, 3, 8]
    letters = [{sentence.split()[1] for sentence in splits[name]} for name in SPLITS]
    assert letters == [{"a", "b"}, {"c"}, {"d", "e"}]


def name_of(number):
    return "".join(chr(97 + digit) for digit in divmod(number, 26))


def write_sources(root):
    root.mkdir()
    for number in range(40):
        name = name_of(number)
        sentence = f"Sum {name} with {name} and again {name} before it ends with {name}."
        (root / f"module_{name}.py").write_text(f'def function():\n    """Sum.\n\n    {sentence}\n    """\n')
    (root / "nowhere.py").symlink_to(root / "missing.py")
    (root / "tests").mkdir()
    (root / "tests" / "test_it.py").write_text(f'"""{SENTENCE}"""')


def test_command_writes_parallel_files_the_same_each_time(tmp_path, capsys):
    write_sources(tmp_path / "sources")
    for run in ("first", "second"):
        main([str(tmp_path / run), f"--root={tmp_path / 'sources'}", "--valid-size=5", "--test-size=7"])
    assert "sentences: train 28, valid 5, test 7\n" in capsys.readouterr().out
    found = []
    for name, size in (("train", 28), ("valid", 5), ("test", 7)):
        source, target = ((tmp_path / "first" / f"{name}.{side}").read_text() for side in ("source", "target"))
        assert source.count("\n") == target.count("\n") == size
        assert source == re.sub(r"([A-Za-z]{3})[A-Za-z]+", r"\1", target)
        assert (tmp_path / "second" / f"{name}.target").read_text() == target
        found += target.splitlines()
    assert len(set(found)) == 40 and SENTENCE not in found


def test_command_refuses_too_few_sources(tmp_path):
    (tmp_path / "sources").mkdir()
    with pytest.raises(UserError, match="too few documented sources to fill test"):
        main([str(tmp_path / "output"), f"--root={tmp_path / 'sources'}"])
    assert not (tmp_path / "output").exists()
