#!/usr/bin/env python3
"""SQuAD as a corpus for question generation: a paragraph and an answer in, the question out.

The split is that of Du et al. 2017 (1705.00106), by articles: their training and test articles are out of SQuAD's
training set, their validation articles are its development set. The source is "answer [SEP] paragraph", as in
ProphetNet (2001.04063), so that a source that is cut at its end keeps the answer. With --highlight it is the paragraph,
in which [HL] stands before and after the answer (Chan & Fan 2019, D19-5821).
"""

import http.client
import re
import shutil
import urllib.request
from collections import Counter
from itertools import chain
from typing import NamedTuple

from corpus_files import SPLITS, Sample, commands, counted, find, one_line, read_json, require, write_split

from elseq.arguments import count
from elseq.errors import UserError
from elseq.files import make_folder, read_lines, written_whole

# Single entries of the sentencepiece vocabulary; plain text for the GPT-2 BPE.
SEPARATOR = "[SEP]"  # between answer and paragraph
HIGHLIGHT = "[HL]"  # before and after the answer in its paragraph
# The SQuAD file that holds a split, and the list of its articles.
ORIGIN = {"train": "train-v1.1.json", "valid": "dev-v1.1.json", "test": "train-v1.1.json"}
DOCLISTS = {"train": "doclist-train.txt", "valid": "doclist-dev.txt", "test": "doclist-test.txt"}
QUESTIONS = {"train": 75_722, "valid": 10_570, "test": 11_877}  # Du et al., table 1
SQUAD_URL = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"
DOCLIST_URL = "https://raw.githubusercontent.com/xinyadu/nqg/master/data/"


# fetch


def squad_files():
    """{name: URL} of the files to download."""
    files = dict.fromkeys(ORIGIN.values(), SQUAD_URL) | dict.fromkeys(DOCLISTS.values(), DOCLIST_URL)
    return {name: url + name for name, url in files.items()}


def fetch(options):
    make_folder(options.output, options.source)
    for name, url in squad_files().items():
        if options.source is None:
            _download(url, options.output / name)
            continue
        path = find(options.source, name)
        if path is None:
            raise UserError(f"{options.source / name} is missing; put it there, or fetch SQuAD without --from")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); check it") from error
        with written_whole(options.output / path.name, "wb") as file:
            file.write(content)
    print(f"fetched: {', '.join(squad_files())}")


def _download(url, path):
    try:
        with urllib.request.urlopen(url) as response, written_whole(path, "wb") as file:
            shutil.copyfileobj(response, file)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"{url} cannot be read ({getattr(error, 'reason', error)}); give a folder that has the file (--from)"
        ) from error


# prepare


def read_articles(path):
    """{title: its questions} of train-v1.1.json or dev-v1.1.json: for each, its paragraph and its entry in the JSON.

    Raises:
        UserError: the file is not as SQuAD's are.
    """
    content = read_json(path)
    require(path, content, data=list)
    articles = {}
    for article_place, article in _each(content["data"], "article", path, title=str, paragraphs=list):
        entries = articles[article["title"]] = []
        for place, paragraph in _each(article["paragraphs"], "paragraph", article_place, context=str, qas=list):
            for entry_place, entry in _each(paragraph["qas"], "question", place, id=str, question=str, answers=list):
                next(
                    _each(entry["answers"], "answer", entry_place, text=str, answer_start=int), None
                )  # the one we read
                entries.append((paragraph["context"], entry))
    return articles


def _each(values, name, outer, **fields):
    """Each value with its name in errors. Checks that it has these fields."""
    for number, value in enumerate(values, start=1):
        place = f"{name} {number}, {outer}"
        require(place, value, **fields)
        yield place, value


def locate(paragraph, answer):
    """The place of the answer: that of the corpus if it is right, else the first occurrence, else None."""
    start = answer["answer_start"]
    if paragraph[start : start + len(answer["text"])] == answer["text"]:
        return start
    start = paragraph.find(answer["text"])
    return None if start < 0 else start


def cut_around(paragraph, start, length, number):
    """At most `number` words of the paragraph. The answer is in their middle if there are words on both sides.

    The answer, `length` characters from `start` on, stays whole, and so do the words that it begins and ends in.
    """
    words = list(re.finditer(r"\S+", paragraph))
    first = next(index for index, word in enumerate(words) if word.end() > start)
    last = next(index for index, word in enumerate(words) if word.end() >= start + length)
    room = max(number - (last + 1 - first), 0)
    before, after = first, len(words) - 1 - last
    left = min(before, max(room // 2, room - after))
    return paragraph[words[first - left].start() : words[min(last + room - left, len(words) - 1)].end()]


class Question(NamedTuple):
    identifier: str
    text: str
    answer: str
    paragraph: str
    start: int  # of the answer, in characters of the paragraph

    def source(self, words, highlight=False):
        """The source in one line; of the paragraph, so many words around the answer, or all."""
        paragraph, answer = self.paragraph, self.answer
        if highlight:
            answer = f"{HIGHLIGHT} {answer} {HIGHLIGHT}"
            paragraph = paragraph[: self.start] + answer + paragraph[self.start + len(self.answer) :]
            words = words and words + 2
        if words:
            paragraph = cut_around(paragraph, self.start, len(answer), words)
        return one_line(paragraph if highlight else f"{answer} {SEPARATOR} {paragraph}")


def read_questions(entries, faults):
    """The complete questions, in order. The faults of the others are counted in `faults`."""
    identifiers = set()
    for paragraph, entry in entries:
        if entry["id"] in identifiers:
            faults["question ids seen before"] += 1
            continue
        identifiers.add(entry["id"])
        answer = entry["answers"][0] if entry["answers"] else {"text": "", "answer_start": 0}
        if not (paragraph.strip() and entry["question"].strip() and answer["text"].strip()):
            faults["without a paragraph, question or answer"] += 1
            continue
        start = locate(paragraph, answer)
        if start is None:
            faults["answers that their paragraph does not have"] += 1
            continue
        faults["with a line break inside"] += any("\n" in text for text in (paragraph, entry["question"]))
        yield Question(entry["id"], entry["question"], answer["text"], paragraph, start)


def make_samples(entries, paragraph_words, faults, highlight=False):
    """Samples, in order, with `paragraph_words` words of a paragraph. Faults of entries are counted in `faults`."""
    for question in read_questions(entries, faults):
        yield Sample(question.source(paragraph_words, highlight), one_line(question.text))


def read_splits(folder, partial=False):
    """Of each split its name and, for each of its articles, the entries as `read_articles` gives them.

    Args:
        partial: accept fewer questions than the published split has.

    Raises:
        UserError: files that are missing, are not as SQuAD's are, or do not belong together.
    """
    paths = {name: find(folder, name) for name in dict.fromkeys(ORIGIN.values())}
    for name, path in paths.items():
        if path is None:
            raise UserError(f"{folder / name} is missing; run the stage fetch again")
    articles = {name: read_articles(path) for name, path in paths.items()}
    for split in SPLITS:
        known, doclist = articles[ORIGIN[split]], folder / DOCLISTS[split]
        chosen = []
        for number, line in enumerate(read_lines(doclist), start=1):
            for title in line.split():
                if title not in known:
                    raise UserError(
                        f"{paths[ORIGIN[split]]} lacks {title} of line {number} of {doclist}; fetch SQuAD v1.1 again"
                    )
                chosen.append(known[title])
        questions = sum(map(len, chosen))
        if questions != QUESTIONS[split] and not partial:
            raise UserError(
                f"{split} has {questions} questions, where the published split has {QUESTIONS[split]}; fetch SQuAD "
                "v1.1 again, or give --partial for a part of it"
            )
        yield split, chosen


def prepare(options):
    for split, articles in read_splits(options.folder, options.partial):
        entries = list(chain.from_iterable(articles))
        faults = Counter()
        samples = list(make_samples(entries, options.paragraph_words, faults, options.highlight))
        written = write_split(options.output, split, samples, options.size.get(split))
        print(f"{split}: {len(entries)} questions in {len(articles)} articles, {written} written{counted(faults)}")


def main(arguments=None):
    parser, preparing = commands(__doc__, fetch, prepare)
    preparing.add_argument(
        "--highlight", action="store_true", help="mark the answer in its paragraph, instead of placing it before it"
    )
    preparing.add_argument(
        "--paragraph-words", type=count, help="of each paragraph, so many words around the answer (default: all)"
    )
    preparing.add_argument("--partial", action="store_true", help="accept fewer questions than the published split has")
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
