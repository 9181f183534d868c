#!/usr/bin/env python3
"""SQuAD's questions, each of whose paragraphs is hidden among others: "answer [SEP] paragraph paragraph ..." in, the
question out.

The paragraph of a question stands at a random place among others of its article and, where these are too few, of the
articles that follow in the split. A source of --length tokens has as many as fit, and a longer one of the same question
has these and more. Run after `squad_questions.py fetch`, and after a sentencepiece model has been trained.
"""

import argparse
import functools
import random
import statistics
from collections import Counter, defaultdict
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from corpus_files import counted, one_line, sample_evenly, sizes, write_split
from squad_questions import SEPARATOR, Sample, add_options, read_questions, read_splits

from elseq.arguments import Parser, count
from elseq.errors import UserError
from elseq.subwords.pieces import Sentencepiece

END = 1  # tokens of the end symbol
KINDS = ("hidden", "own", "other")


class Source(NamedTuple):
    text: str
    tokens: int
    paragraphs: int


class Split:
    """The questions of a split, and what hides their paragraphs."""

    def __init__(self, name, articles, words, count_tokens, faults):
        """
        Args:
            articles: of each, its entries as `read_articles` gives them.
            words: of each paragraph, so many around an answer; None: all.
            count_tokens: the number of tokens of a text.
            faults: counts what is wrong with entries.
        """
        self.name = name
        self.questions = list(read_questions(chain.from_iterable(articles), faults))
        self._words = words
        self._count_tokens = count_tokens
        self._article_of = {paragraph: number for number, entries in enumerate(articles) for paragraph, _ in entries}
        paragraphs = [defaultdict(list) for _ in articles]  # and the questions about them
        for question in self.questions:
            paragraphs[self._article_of[question.paragraph]][question.paragraph].append(question)
        self._articles = [list(each.values()) for each in paragraphs]

    def _others(self, question, generator):
        """Other paragraphs: those of its article, those of the next, ..., each time in random order.

        A paragraph is cut around the answer of a random question about it: where it begins does not give away which one
        is the question's own.
        """
        own = self._article_of[question.paragraph]
        for article in self._articles[own:] + self._articles[:own]:
            for questions in generator.sample(article, len(article)):
                chosen = generator.choice(questions)
                if chosen.paragraph != question.paragraph:
                    yield chosen.excerpt(self._words)

    def hide(self, question, length, kind="hidden"):
        """The source of a question, or None if its paragraph alone is too long.

        Args:
            length: tokens at most, the end symbol included.
            kind: one of `KINDS`.

        Raises:
            UserError: the paragraphs of the split do not fill a source.
        """
        generator = random.Random(question.identifier)
        place = generator.random()
        beginning = f"{one_line(question.answer)} {SEPARATOR}"
        own = question.excerpt(self._words)
        room = length - END - self._count_tokens(beginning)
        if self._count_tokens(own) > room:
            return None
        others = self._others(question, generator)
        if kind == "own":
            paragraphs = [own]
        elif kind == "other":
            paragraphs = [next((other for other in others if self._count_tokens(other) <= room), None)]
            if paragraphs == [None]:
                raise UserError(f"{self.name} has no other paragraph than that of question {question.identifier}")
        else:
            paragraphs = self._fill(others, room - self._count_tokens(own), length)
            paragraphs.insert(int(place * (len(paragraphs) + 1)), own)
        text = " ".join([beginning, *paragraphs])
        return Source(text, self._count_tokens(text) + END, len(paragraphs))

    def _fill(self, others, room, length):
        """As many of the others as fit, up to the first that does not."""
        paragraphs = []
        for other in others:
            room -= self._count_tokens(other)
            if room < 0:
                return paragraphs
            paragraphs.append(other)
        raise UserError(
            f"all paragraphs of {self.name} together do not fill a source of {length:,} tokens; give a smaller --length"
        )


def write(options):
    vocabulary = Sentencepiece(options.sentencepiece)
    count_tokens = functools.cache(lambda text: len(vocabulary.pieces(text)))
    for name, articles in read_splits(options.folder, options.partial):
        if name not in options.size:
            continue
        faults = Counter()
        split = Split(name, articles, options.paragraph_words, count_tokens, faults)
        samples, sources = [], []
        for question in sample_evenly(split.questions, options.size[name]):
            source = split.hide(question, options.length, options.paragraphs)
            if source is None:
                faults[f"whose paragraph has more than {options.length:,} tokens left out"] += 1
                continue
            sources.append(source)
            samples.append(Sample(source.text, one_line(question.text)))
        written = write_split(options.output, name, samples, None)
        tokens, paragraphs = (
            statistics.fmean(getattr(source, field) for source in sources) for field in ("tokens", "paragraphs")
        )
        print(
            f"{name}: {written} questions written, with {tokens:,.0f} tokens and {paragraphs:.1f} paragraphs on "
            f"average{counted(faults)}"
        )


def main(arguments=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what squad_questions.py fetch made")
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--length", type=count, required=True, metavar="L", help="tokens of a source at most, the end symbol included"
    )
    parser.add_argument(
        "--sentencepiece", type=Path, required=True, metavar="MODEL", help="the model whose pieces are the tokens"
    )
    parser.add_argument(
        "--size",
        type=sizes,
        required=True,
        metavar="SPLIT=N,...",
        help="the splits to write, and how many questions, evenly out of each",
    )
    parser.add_argument(
        "--paragraphs",
        choices=KINDS,
        default=KINDS[0],
        help="hidden: that of the question among others; own: that of the question alone; other: one of the others "
        "alone (default: %(default)s)",
    )
    add_options(parser)
    write(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
