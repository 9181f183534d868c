"""Marked texts among others: what stands in a source, and where."""

import itertools

import pytest
import sentencepiece
from long_sources import main

from elseq.errors import UserError

SIZES = {"train": 120, "valid": 10, "test": 36}
WORDS = 6  # of a text


def text(split, number):
    """Of words that tell where they are from."""
    return [f"{split}{number}w{place}" for place in range(WORDS)]


def marked(words, first=0, last=WORDS):
    return " ".join([*words[:first], "[HL]", *words[first:last], "[HL]", *words[last:]])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Every other text is marked as a whole."""
    folder = tmp_path_factory.mktemp("corpus")
    for split, size in SIZES.items():
        sources = [marked(text(split, n), *((2, 4) if n % 2 else ())) for n in range(size)]
        (folder / f"{split}.source").write_text("".join(f"{line}\n" for line in sources))
        (folder / f"{split}.target").write_text("".join(f"about {split}{n}\n" for n in range(size)))
    return folder


@pytest.fixture(scope="module")
def vocabulary(corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("pieces") / "sentencepiece.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter((corpus / "train.source").read_text().splitlines()), model_writer=file,
            vocab_size=60, model_type="bpe", minloglevel=2, user_defined_symbols=["[HL]"], hard_vocab_limit=False,
        )  # fmt: skip
    return path


@pytest.fixture
def write(corpus, vocabulary, tmp_path, capsys):
    """(sources, targets, what is printed) of a split."""
    numbers = itertools.count()

    def write(length, *options, size="test=36", split="test", corpus=corpus):
        folder = tmp_path / str(next(numbers))
        arguments = [str(corpus), str(folder), f"--length={length}", f"--sentencepiece={vocabulary}", f"--size={size}"]
        main([*arguments, *options])
        sources, targets = ((folder / f"{split}.{side}").read_text().splitlines() for side in ("source", "target"))
        return sources, targets, capsys.readouterr().out

    return write


def divide(source, target):
    """The texts of a source, by split and number, and the place of its own, whose marks are as in the corpus."""
    words = source.replace("[HL] ", "").replace(" [HL]", "").split()
    texts = [words[start : start + WORDS] for start in range(0, len(words), WORDS)]
    names = [each[0].partition("w")[0] for each in texts]
    assert texts == [[f"{name}w{place}" for place in range(WORDS)] for name in names]
    own = target.removeprefix("about ")
    number = int(own.lstrip("abcdefghijklmnopqrstuvwxyz"))
    place = names.index(own) if own in names else None
    if place is not None:
        assert marked(texts[place], *((2, 4) if number % 2 else ())) in source
    assert source.count("[HL]") == (0 if place is None else 2)
    return names, place


@pytest.mark.parametrize("length", [80, 200, 500])
def test_sources_are_as_long_as_they_may_be(write, vocabulary, length):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
    sources, targets, printed = write(length)
    longest = max(len(processor.encode(" ".join(text("test", number)))) for number in range(36))
    tokens = [len(processor.encode(source)) + 1 for source in sources]  # with the end symbol
    assert targets == [f"about test{number}" for number in range(36)]
    assert all(length - longest < number <= length for number in tokens)
    numbers = [len(divide(*sample)[0]) for sample in zip(sources, targets, strict=True)]
    assert f"test: 36 written, with {sum(tokens) / 36:,.0f} tokens and {sum(numbers) / 36:.1f} texts" in printed


def test_others_are_each_once_and_in_any_order(write):
    sources, targets, _ = write(500)
    orders = set()
    for sample in zip(sources, targets, strict=True):
        names, place = divide(*sample)
        assert place is not None and len(set(names)) == len(names)
        orders.add(tuple(names))
        assert {name.rstrip("0123456789") for name in names} == {"test"}
    assert len(orders) == 36


def test_others_are_of_the_splits_that_are_given(write):
    sources, targets, _ = write(500, "--others=train,valid")
    found = set()
    for sample in zip(sources, targets, strict=True):
        names, place = divide(*sample)
        del names[place]
        found.update(name.rstrip("0123456789") for name in names)
    assert found == {"train", "valid"}


def test_others_may_be_targets(write):
    sources, targets, _ = write(300, "--other-side=target")
    for number, source in enumerate(sources):
        own = marked(text("test", number), *((2, 4) if number % 2 else ()))
        before, found, after = source.partition(own)
        others = f"{before}{after}".replace("about", "").split()
        assert found and len(others) > 10 and {f"about {other}" for other in others} <= set(targets)
        assert f"test{number}" not in others  # which would tell the target


def test_a_longer_source_has_the_texts_of_the_shorter_one(write):
    lengths = [write(length)[0] for length in (80, 200, 500)]
    for number, sources in enumerate(zip(*lengths, strict=True)):
        others = []
        for source in sources:
            names, place = divide(source, f"about test{number}")
            del names[place]
            others.append(names)
        for shorter, longer in itertools.pairwise(others):
            assert longer[: len(shorter)] == shorter and len(longer) > len(shorter)


def test_places_are_random_and_the_same_each_time(write):
    sources, targets, _ = write(300)
    assert write(300)[0] == sources
    shares = []
    for sample in zip(sources, targets, strict=True):
        names, place = divide(*sample)
        shares.append(place / (len(names) - 1))
    assert min(shares) < 0.1 and max(shares) > 0.9 and 0.35 < sum(shares) / len(shares) < 0.65


def test_mixed_sources_are_of_all_lengths(write, vocabulary):
    """One in x has x times the tokens of its text."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
    sources, targets, _ = write(600, "--texts=mixed", size="train=120", split="train")
    found, own, other = [], [], []
    for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
        names, place = divide(source, target)
        assert place is not None and len(processor.encode(source)) < 600
        found.append(len(names))
        words = text("train", number)
        own.append(len(processor.encode(marked(words, *((2, 4) if number % 2 else ())))))
        other.append(len(processor.encode(" ".join(words))))
    mean = sum(other) / len(other)
    for texts in (2, 3, 4, 6, 12):
        expected = sum(tokens / (tokens + (texts - 1) * mean) for tokens in own) / len(own)
        assert sum(number >= texts for number in found) / len(found) == pytest.approx(expected, abs=0.1)
    assert max(found) > 18


def test_one_text(write):
    own, other = (write(300, f"--texts={kind}") for kind in ("own", "other"))
    assert own[1] == other[1] == write(300)[1]
    for number, (right, wrong, target) in enumerate(zip(own[0], other[0], own[1], strict=True)):
        assert divide(right, target) == ([f"test{number}"], 0)
        names, place = divide(wrong, target)
        assert len(names) == 1 and place is None


def test_splits_are_those_with_a_size(write, tmp_path):
    *_, printed = write(80, size="train=4,valid=3", split="valid")
    assert [line.partition(" written")[0] for line in printed.splitlines()] == ["train: 4", "valid: 3"]
    assert not list(tmp_path.rglob("test.*"))


@pytest.mark.parametrize(
    ("length", "options", "sentence"),
    [
        (9000, [], "^all texts together do not fill a source of 9,000 tokens; give a smaller --length, or more splits"),
        (5, [], "^test has no example in which nothing is missing"),
        (0, [], "^--length '0' is not a whole number above 0"),
        (80, ["--size=tests=5"], "^--size 'tests=5' is not SPLIT=N"),
        (80, ["--others=test,dev"], "^--others 'dev' is unknown; choose from train, valid, test"),
        (80, ["--sentencepiece=nowhere"], "^nowhere is missing; give a sentencepiece model"),
    ],
)
def test_refused_in_one_sentence(write, length, options, sentence):
    with pytest.raises(UserError, match=sentence):
        write(length, *options)


@pytest.mark.parametrize(
    ("source", "target", "sentence"),
    [
        (None, "a\nb\n", r"test\.source is missing; name the folder of a corpus that has it"),
        ("[HL] a [HL]\n", "a\nb\n", r"test\.source has 1 lines and .*test\.target has 2; each source needs its target"),
        ("[HL] a [HL]\n[HL] b\n", "a\nb\n", r"^line 2 of .*test\.source has \[HL\] 1 times; mark one part of it"),
        ("[HL] a [HL]\n[HL] a [HL]\n", "a\nb\n", "do not fill a source"),
    ],
)
def test_corpora_that_cannot_be_used(write, tmp_path, source, target, sentence):
    if source is not None:
        (tmp_path / "test.source").write_text(source)
    (tmp_path / "test.target").write_text(target)
    with pytest.raises(UserError, match=sentence):
        write(80, corpus=tmp_path)


def test_texts_that_are_too_long_are_counted(write, corpus, tmp_path):
    for side in ("source", "target"):
        (tmp_path / f"test.{side}").write_text((corpus / f"test.{side}").read_text())
    with (tmp_path / "test.source").open("a") as file:
        file.write(marked(["long"] * 300, 0, 300) + "\n")
    with (tmp_path / "test.target").open("a") as file:
        file.write("a long one\n")
    sources, _, printed = write(100, corpus=tmp_path, size="test=37")
    assert len(sources) == 36 and "1 with more than 100 tokens left out" in printed
