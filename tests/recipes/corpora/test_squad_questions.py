"""SQuAD as a corpus for question generation: the split, the sources, and what is left out."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
import squad_questions
from squad_questions import cut_around, locate, main, make_samples

from elseq.errors import UserError
from tests import helpers

ROOT = Path(__file__).resolve().parents[3]
SQUAD = helpers.DATA / "squad"


PARAGRAPH = "The school has  a Catholic character. Atop its (gold) dome is a statue\nof the Virgin Mary."


def entry(answer="gold", question="What is the dome made of?", identifier="1", start=None):
    start = PARAGRAPH.find(answer) if start is None else start
    return {"id": identifier, "question": question, "answers": [{"text": answer, "answer_start": start}]}


def samples_of(*entries, words=None):
    faults = Counter()
    return [tuple(sample) for sample in make_samples([(PARAGRAPH, each) for each in entries], words, faults)], faults


def test_source_is_answer_separator_paragraph_in_one_line():
    samples, faults = samples_of(entry())
    one_line = "The school has a Catholic character. Atop its (gold) dome is a statue of the Virgin Mary."
    assert samples == [(f"gold [SEP] {one_line}", "What is the dome made of?")]
    assert faults["with a line break inside"] == 1


def test_answer_is_marked_in_the_paragraph():
    samples = list(make_samples([(PARAGRAPH, entry())], None, Counter(), highlight=True))
    marked = "Atop its ([HL] gold [HL]) dome is a statue of the Virgin Mary."
    assert samples == [(f"The school has a Catholic character. {marked}", "What is the dome made of?")]


@pytest.mark.parametrize("number", range(1, 20))
@pytest.mark.parametrize("answer", ["The school", "gold", "Catholic character", "Virgin Mary", "Mary."])
def test_marks_are_no_words_of_the_paragraph(answer, number):
    """Without them it is what is kept before a separator."""
    plain, marked = (
        next(make_samples([(PARAGRAPH, entry(answer))], number, Counter(), highlight)).source
        for highlight in (False, True)
    )
    assert marked.count("[HL] " + answer + " [HL]") == 1
    assert marked.replace("[HL] ", "").replace(" [HL]", "") == plain.partition(" [SEP] ")[2]


def test_paragraph_is_cut_around_the_answer():
    samples, _ = samples_of(entry(), words=5)
    assert samples[0][0] == "gold [SEP] Atop its (gold) dome is"


@pytest.mark.parametrize("number", range(1, 30))
@pytest.mark.parametrize("answer", ["The", "school has", "gold", "Catholic character", "Virgin Mary", "Mary.", "l"])
def test_cut_keeps_the_answer_and_as_many_words_as_it_may(answer, number):
    start = PARAGRAPH.find(answer)
    text = cut_around(PARAGRAPH, start, len(answer), number)
    words = PARAGRAPH.split()
    assert answer in text and text in PARAGRAPH
    assert len(text.split()) == min(max(number, len(answer.split())), len(words))


def test_faulty_entries_are_left_out_and_counted():
    samples, faults = samples_of(
        entry(),
        entry(question="The same id?"),
        entry(question=" \n", identifier="2"),
        entry(answer="", identifier="3"),
        {"id": "4", "question": "None?", "answers": []},
        entry(answer="silver", identifier="5", start=0),
        entry(answer="statue", identifier="6", start=3),
    )
    assert [source.partition(" ")[0] for source, _ in samples] == ["gold", "statue"]
    del faults["with a line break inside"]
    assert faults == {
        "question ids seen before": 1,
        "without a paragraph, question or answer": 3,
        "answers that their paragraph does not have": 1,
    }


def test_answer_where_the_corpus_says_else_its_first_occurrence():
    assert locate("a b a", {"text": "a", "answer_start": 4}) == 4
    assert locate("a b a", {"text": "a", "answer_start": 2}) == 0
    assert locate("a b a", {"text": "c", "answer_start": 2}) is None


def article(title, count):
    questions = [
        entry(question=f"Question {number} of {title}?", identifier=f"{title}-{number}") for number in range(count)
    ]
    return {"title": title, "paragraphs": [{"context": PARAGRAPH, "qas": questions}]}


@pytest.fixture
def squad(tmp_path):
    """Three articles for training, two for validation, one for the test, 10 questions each."""
    folder = tmp_path / "squad"
    folder.mkdir()
    for name, titles in {"train": "abcx", "dev": "de"}.items():
        with gzip.open(folder / f"{name}-v1.1.json.gz", "wt") as file:
            json.dump({"data": [article(title, 10) for title in titles]}, file)
    for name, titles in {"train": "abc", "dev": "de", "test": "x"}.items():
        (folder / f"doclist-{name}.txt").write_text("\n".join(titles))
    return folder


def test_commands(squad, tmp_path, capsys):
    main(["fetch", str(tmp_path / "raw"), "--from", str(squad)])
    main(["prepare", str(tmp_path / "raw"), str(tmp_path / "corpus"), "--partial", "--size", "valid=4"])
    printed = capsys.readouterr().out
    assert "train: 30 questions in 3 articles, 30 written" in printed
    assert "valid: 20 questions in 2 articles, 4 written" in printed
    questions = {
        split: (tmp_path / "corpus" / f"{split}.target").read_text().splitlines() for split in ("train", "test")
    }
    assert {question[-2] for question in questions["train"]} == set("abc")
    assert {question[-2] for question in questions["test"]} == {"x"}
    sources = (tmp_path / "corpus" / "train.source").read_text().splitlines()
    assert len(sources) == 30 and set(sources) == {samples_of(entry())[0][0][0]}


def test_parts_are_refused_unless_they_are_wanted(squad, tmp_path):
    with pytest.raises(UserError, match="train has 30 questions, where the published split has 75722"):
        main(["prepare", str(squad), str(tmp_path / "corpus")])


def with_question(**fields):
    """Two articles, of which the second's first paragraph has a second question with these fields."""
    wrong = article("d", 2)
    wrong["paragraphs"][0]["qas"][1] |= fields
    return {"data": [article("c", 1), wrong]}


QUESTION = "question 2, paragraph 1, article 2, .*dev-v1.1.json has no"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("not JSON", "dev-v1.1.json cannot be read as JSON .Expecting value: line 1 column 1"),
        (b"\xff\xfe", "dev-v1.1.json cannot be read as JSON"),
        ([], "dev-v1.1.json has no list 'data': "),
        ({"data": [{}]}, "^article 1, .*dev-v1.1.json has no text 'title': {}; mend it, or fetch the corpus again"),
        ({"data": [{"title": "d", "paragraphs": [5]}]}, "^paragraph 1, article 1, .* has no text 'context': 5"),
        (with_question(id=None), f"^{QUESTION} text 'id'"),
        (with_question(question=7), f"^{QUESTION} text 'question'"),
        (
            with_question(question="Half \ud83d?"),
            f"^{QUESTION.replace('has no', 'holds half a character')} .the lone surrogate .ud83d.: mend",
        ),
        (
            with_question(answers=[{"text": "\ude00", "answer_start": 0}]),
            f"^answer 1, {QUESTION.replace('has no', 'holds half a character')} .the lone surrogate .ude00.: mend",
        ),
        ("[" * 100_000, "dev-v1.1.json cannot be read as JSON .maximum recursion depth exceeded"),
        (with_question(answers="gold"), f"^{QUESTION} list 'answers'"),
        (with_question(answers=[{"text": "gold"}]), f"^answer 1, {QUESTION} whole number 'answer_start'"),
    ],
)
def test_other_files_are_refused(squad, tmp_path, content, sentence):
    (squad / "dev-v1.1.json.gz").unlink()
    content = content if isinstance(content, str | bytes) else json.dumps(content)
    (squad / "dev-v1.1.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=sentence):
        main(["prepare", str(squad), str(tmp_path / "corpus"), "--partial"])
    assert not (tmp_path / "corpus").exists()


def test_split_without_an_example(squad, tmp_path):
    empty = article("x", 1) | {"paragraphs": [{"context": " ", "qas": [entry()]}]}
    with gzip.open(squad / "train-v1.1.json.gz", "wt") as file:
        json.dump({"data": [article(title, 10) for title in "abc"] + [empty]}, file)
    with pytest.raises(UserError, match="^test has no example in which nothing is missing"):
        main(["prepare", str(squad), str(tmp_path / "corpus"), "--partial"])


def test_folder_that_is_read_is_not_written(squad):
    with pytest.raises(UserError, match=f"^{squad} is the folder that is read from"):
        main(["fetch", str(squad), "--from", str(squad)])


@pytest.mark.parametrize("option", ["--paragraph-words=0", "--size=test=0"])
def test_numbers(squad, tmp_path, option):
    with pytest.raises(UserError, match=f"^{option.partition('=')[0]} '.*0' is not"):
        main(["prepare", str(squad), str(tmp_path / "corpus"), "--partial", option])


def test_missing_files_and_articles_are_named(squad, tmp_path):
    (squad / "doclist-test.txt").write_text("x\ny\n")
    with pytest.raises(UserError, match=f"^{squad}/train-v1.1.json.gz lacks y of line 2 of {squad}/doclist-test.txt"):
        main(["prepare", str(squad), str(tmp_path / "corpus"), "--partial"])
    (squad / "doclist-test.txt").unlink()
    with pytest.raises(UserError, match="doclist-test.txt is missing"):
        main(["fetch", str(tmp_path / "raw"), "--from", str(squad)])
    with pytest.raises(UserError, match="doclist-test.txt cannot be read"):
        main(["prepare", str(squad), str(tmp_path / "corpus"), "--partial"])


def test_download(squad, tmp_path, monkeypatch):
    """From file:// here; nothing half-written is left where a file cannot be had."""
    for split in ("train", "dev"):
        content = gzip.decompress((squad / f"{split}-v1.1.json.gz").read_bytes())
        (squad / f"{split}-v1.1.json").write_bytes(content)
    for name in ("SQUAD_URL", "DOCLIST_URL"):
        monkeypatch.setattr(squad_questions, name, f"{squad.as_uri()}/")
    main(["fetch", str(tmp_path / "raw")])
    main(["prepare", str(tmp_path / "raw"), str(tmp_path / "corpus"), "--partial"])
    (squad / "dev-v1.1.json").unlink()
    with pytest.raises(UserError, match="dev-v1.1.json cannot be read"):
        main(["fetch", str(tmp_path / "again")])
    assert [path.name for path in (tmp_path / "again").iterdir()] == ["train-v1.1.json"]


@pytest.mark.skipif(not SQUAD.exists(), reason="SQuAD is not there (ELSEQ_DATA)")
def test_published_split(tmp_path, capsys):
    main(["prepare", str(SQUAD), str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    expected = {"train": (75722, 398), "valid": (10570, 48), "test": (11877, 44)}
    for line, (split, (questions, articles)) in zip(lines, expected.items(), strict=True):
        assert line.startswith(f"{split}: {questions} questions in {articles} articles, {questions} written")
    sources = (tmp_path / "test.source").read_text().splitlines()
    assert all(source.count(" [SEP] ") == 1 for source in sources)
    assert len(set(sources)) == 10515
