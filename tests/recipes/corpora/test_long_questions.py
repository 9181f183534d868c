"""SQuAD's questions with their paragraphs hidden among others: what stands in a source, and where."""

import itertools
import json
import sys
from pathlib import Path

import pytest
import sentencepiece

from elseq.errors import UserError
from tests import helpers

SQUAD = helpers.DATA / "squad"
sys.path.append(str(Path(__file__).resolve().parents[3] / "recipes" / "corpora"))  # scripts import their neighbours

from long_questions import main  # noqa: E402

ARTICLES = {"train": "abc", "dev": "de", "test": "xyz"}
PARAGRAPHS = 6  # of an article


def paragraph(title, number):
    """Of 12 words, each of which tells its place."""
    return " ".join(f"{title}{number}w{place}" for place in range(12))


def article(title):
    """Two questions about each paragraph, of which the answers are its fourth and its tenth word."""
    entries = []
    for number in range(PARAGRAPHS):
        context = paragraph(title, number)
        answers = [f"{title}{number}w{place}" for place in (3, 9)]
        questions = [
            {
                "id": answer,
                "question": f"Which {answer}?",
                "answers": [{"text": answer, "answer_start": context.find(answer)}],
            }
            for answer in answers
        ]
        entries.append({"context": context, "qas": questions})
    return {"title": title, "paragraphs": entries}


@pytest.fixture(scope="module")
def squad(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squad")
    for name, titles in {"train": ARTICLES["train"] + ARTICLES["test"], "dev": ARTICLES["dev"]}.items():
        (folder / f"{name}-v1.1.json").write_text(json.dumps({"data": [article(title) for title in titles]}))
    for name, titles in ARTICLES.items():
        (folder / f"doclist-{name}.txt").write_text("\n".join(titles))
    return folder


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("pieces") / "sentencepiece.model"
    text = [paragraph(title, number) for title in "abcdexyz" for number in range(PARAGRAPHS)]
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text * 5), model_writer=file, vocab_size=60, model_type="bpe", minloglevel=2,
            user_defined_symbols=["[SEP]"], hard_vocab_limit=False,
        )  # fmt: skip
    return path


@pytest.fixture
def write(squad, vocabulary, tmp_path, capsys):
    """(sources, questions, what is printed) of a split."""
    numbers = itertools.count()

    def write(length, *options, size="test=36", split="test"):
        folder = tmp_path / str(next(numbers))
        main(
            [str(squad), str(folder), f"--length={length}", f"--sentencepiece={vocabulary}", f"--size={size}"]
            + ["--partial", *options]
        )
        sources, targets = ((folder / f"{split}.{side}").read_text().splitlines() for side in ("source", "target"))
        return sources, targets, capsys.readouterr().out

    return write


def divide(source, words=12):
    """The answer, and the paragraphs of so many words."""
    answer, _, text = source.partition(" [SEP] ")
    found = text.split()
    assert len(found) % words == 0
    return answer, [" ".join(found[start : start + words]) for start in range(0, len(found), words)]


def own_place(answer, paragraphs):
    (place,) = [place for place, text in enumerate(paragraphs) if answer in text.split()]
    return place


@pytest.mark.parametrize("length", [80, 300, 700])
def test_sources_are_as_long_as_they_may_be(write, vocabulary, length):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
    sources, questions, printed = write(length)
    longest = max(len(processor.encode(paragraph(title, 1))) for title in "xyz") + 5
    tokens = [len(processor.encode(source)) + 1 for source in sources]  # with the end symbol
    assert len(tokens) == len(questions) == 36
    assert all(length - longest < number <= length for number in tokens)
    paragraphs = [len(divide(source)[1]) for source in sources]
    assert f"test: 36 questions written, with {sum(tokens) / 36:,.0f} tokens and {sum(paragraphs) / 36:.1f}" in printed


def test_paragraphs_are_those_of_the_split_from_the_article_on(write):
    sources, questions, _ = write(700)
    following = "xyzxyz"
    for source, question in zip(sources, questions, strict=True):
        answer, paragraphs = divide(source)
        assert question == f"Which {answer}?" and len(set(paragraphs)) == len(paragraphs)
        place = own_place(answer, paragraphs)
        own = paragraphs.pop(place)
        assert own == paragraph(answer[0], answer[1])
        titles = [text[0] for text in paragraphs]
        order = following[following.index(answer[0]) :]
        assert titles == sorted(titles, key=order.index)
        for title in titles[:-1]:  # the next article comes when the last one is used up
            if title != titles[-1]:
                assert titles.count(title) == PARAGRAPHS - (title == answer[0])


def test_a_longer_source_has_the_paragraphs_of_the_shorter_one(write):
    lengths = [write(length)[0] for length in (80, 300, 700)]
    for sources in zip(*lengths, strict=True):
        others = []
        for source in sources:
            answer, paragraphs = divide(source)
            del paragraphs[own_place(answer, paragraphs)]
            others.append(paragraphs)
        for shorter, longer in itertools.pairwise(others):
            assert longer[: len(shorter)] == shorter and len(longer) > len(shorter)


def test_places_are_random_and_the_same_each_time(write):
    sources, *_ = write(300)
    assert write(300)[0] == sources
    shares = []
    for source in sources:
        answer, paragraphs = divide(source)
        shares.append(own_place(answer, paragraphs) / (len(paragraphs) - 1))
    assert min(shares) == 0 and max(shares) == 1 and 0.3 < sum(shares) / len(shares) < 0.7


def test_all_paragraphs_are_cut_around_an_answer(write):
    sources, *_ = write(300, "--paragraph-words=5")
    for source in sources:
        answer, paragraphs = divide(source, 5)
        assert paragraphs[own_place(answer, paragraphs)].split()[2] == answer
        for text in paragraphs:
            assert text.split()[2].endswith(("w3", "w9"))  # their answers


def test_one_paragraph(write):
    own, other = (write(300, f"--paragraphs={kind}")[:2] for kind in ("own", "other"))
    assert own[1] == other[1] == write(300)[1]
    for right, wrong, question in zip(*own[:1], *other, strict=True):
        answer, paragraphs = divide(right)
        assert question == f"Which {answer}?" and paragraphs == [paragraph(answer[0], answer[1])]
        answer, paragraphs = divide(wrong)
        assert question == f"Which {answer}?" and len(paragraphs) == 1
        assert paragraphs[0][0] == answer[0] and paragraphs[0][1] != answer[1]


def test_splits_are_those_with_a_size(write, tmp_path):
    *_, printed = write(80, size="train=4,valid=3", split="valid")
    assert [line.partition(" questions")[0] for line in printed.splitlines()] == ["train: 4", "valid: 3"]
    assert not list(tmp_path.rglob("test.*"))


@pytest.mark.parametrize(
    ("length", "options", "sentence"),
    [
        (
            100_000,
            [],
            "^all paragraphs of test together do not fill a source of 100,000 tokens; give a smaller --length",
        ),
        (10, [], "^test has no example in which nothing is missing"),
        (0, [], "^--length '0' is not a whole number above 0"),
        (80, ["--size=tests=5"], "^--size 'tests=5' is not SPLIT=N"),
        (80, ["--sentencepiece=nowhere"], "^nowhere is missing; give a sentencepiece model"),
    ],
)
def test_refused_in_one_sentence(write, length, options, sentence):
    with pytest.raises(UserError, match=sentence):
        write(length, *options)


def test_questions_whose_paragraph_is_too_long_are_counted(squad, vocabulary, tmp_path, capsys):
    long, *others = article("x")["paragraphs"]
    long["context"] += " and so on" * 50
    (tmp_path / "squad").mkdir()
    for path in squad.iterdir():
        (tmp_path / "squad" / path.name).write_text(path.read_text())
    titles = [{"title": "x", "paragraphs": [long, *others]}, *map(article, "abcyz")]
    (tmp_path / "squad" / "train-v1.1.json").write_text(json.dumps({"data": titles}))
    main(
        [str(tmp_path / "squad"), str(tmp_path / "out"), "--length=300", f"--sentencepiece={vocabulary}"]
        + ["--size=test=36", "--partial"]
    )
    assert "test: 34 questions written" in (printed := capsys.readouterr().out)
    assert "2 whose paragraph has more than 300 tokens left out" in printed


@pytest.mark.slow
@pytest.mark.skipif(not SQUAD.exists(), reason="SQuAD is not there (ELSEQ_DATA)")
def test_the_published_split_fills_long_sources(vocabulary, tmp_path, capsys):
    main(
        [str(SQUAD), str(tmp_path), "--length=16384", f"--sentencepiece={vocabulary}", "--size=test=20"]
        + ["--paragraph-words=40"]
    )
    assert "test: 20 questions written, with 16," in capsys.readouterr().out
