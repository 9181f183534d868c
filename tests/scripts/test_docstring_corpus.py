"""The corpus of docstrings: what becomes a sample, what is dropped, and that no module is in two splits."""

import pytest

from scripts.docstring_corpus import (
    Limits,
    Sample,
    docstrings,
    main,
    split_by_module,
    split_docstring,
    without_duplicates,
)

DOCUMENT = "It walks over every single one of them, in the order of their names, and adds."
FUNCTION = 'def function_{0}():\n    """Sum number {0} of it.\n\n    It adds {0}: {1}\n    """\n'
SPLITS = ("train", "valid", "test")


def texts(source):
    return list(docstrings(source.encode()))


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


def test_first_paragraph_is_the_summary_and_white_space_is_normal():
    text = f"Sum up\n  all   of it.\n\nNotes\n-----\n{DOCUMENT}\n\n\tEnd.\n"
    assert split_docstring(text, Limits()) == (f"Notes {DOCUMENT} End.", "Sum up all of it.")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sum up all of it.",
        f"Too short.\n\n{DOCUMENT}",
        "Sum up all of it.\n\nNearly empty.",
        f"{'word ' * 25}\n\n{DOCUMENT}",
    ],
)
def test_empty_and_near_empty_ones_are_dropped(text):
    assert split_docstring(text, Limits()) is None


def test_documents_are_cut():
    document, _ = split_docstring(f"Sum up all of it.\n\n{DOCUMENT}", Limits(min_document=2, max_document=3))
    assert document == "It walks over"


def test_duplicates_are_dropped():
    samples = [
        Sample("one/a.py", "A document, here.", "Say it."),
        Sample("two/a.py", "a document here", "The same document elsewhere."),
        Sample("one/b.py", "Another document.", "say it"),
        Sample("two/b.py", "A third document.", "Say it."),
    ]
    assert list(without_duplicates(samples)) == [samples[0], samples[3]]


def test_a_module_is_in_one_split_only_whatever_the_order():
    samples = [Sample(f"package/{i % 20}.py", f"document {i}", f"summary {i}") for i in range(200)]
    splits = split_by_module(samples, valid_size=15, test_size=25)
    assert [len(splits[name]) for name in SPLITS] == [200 - 20 - 30, 15, 25]
    modules = [{sample.module for sample in splits[name]} for name in SPLITS]
    assert not (modules[0] & modules[1] or modules[0] & modules[2] or modules[1] & modules[2])
    again = split_by_module(reversed(samples), valid_size=15, test_size=25)
    assert [{sample.module for sample in again[name]} for name in SPLITS] == modules


def write_sources(root):
    for number in range(40):
        root.mkdir(exist_ok=True)
        (root / f"module_{number}.py").write_text(FUNCTION.format(number, DOCUMENT))
    (root / "tests").mkdir()
    (root / "tests" / "test_it.py").write_text(FUNCTION.format("hidden", DOCUMENT))


def test_command_writes_parallel_files_the_same_each_time(tmp_path, capsys):
    write_sources(tmp_path / "sources")
    for run in ("first", "second"):
        main([str(tmp_path / run), f"--root={tmp_path / 'sources'}", "--valid-size=5", "--test-size=7"])
    assert "samples: train 28, valid 5, test 7\n" in capsys.readouterr().out
    for name, size in zip(SPLITS, (28, 5, 7), strict=True):
        source, target = ((tmp_path / "first" / f"{name}.{side}").read_text() for side in ("source", "target"))
        assert source.count("\n") == target.count("\n") == size
        assert "hidden" not in source
        for document, summary in zip(source.splitlines(), target.splitlines(), strict=True):
            number = summary.split()[2]
            assert document.startswith(f"It adds {number}:")
        assert (tmp_path / "second" / f"{name}.source").read_text() == source


def test_command_refuses_too_few_sources(tmp_path, capsys):
    (tmp_path / "sources").mkdir()
    with pytest.raises(SystemExit):
        main([str(tmp_path / "output"), f"--root={tmp_path / 'sources'}"])
    assert "too few documented sources" in capsys.readouterr().err
