#!/usr/bin/env python3
"""Long sources, in which one text is marked among others, out of a corpus whose sources are one marked text each.

A source of the corpus has the symbol [HL] before and after what its target is about, the highlight format of question
generation (Chan & Fan 2019, D19-5821). It is placed at random among other sources or targets of the corpus, which are
drawn at random and have no symbols. A source of --length tokens has as many as fit, and a longer one of the same
example has these and more.
"""

import argparse
import functools
import random
import statistics
from collections import Counter
from typing import NamedTuple

from corpus_files import SPLITS, Sample, counted, one_line, sample_evenly, sizes, write_split
from squad_questions import HIGHLIGHT

from elseq.arguments import Parser, choices, count, read_path
from elseq.errors import UserError
from elseq.files import read_lines
from elseq.subwords.pieces import Sentencepiece

END = 1  # tokens of the end symbol
KINDS = ("hidden", "mixed", "own", "other")


def read_split(folder, name):
    """Its samples.

    Raises:
        UserError: a file that is missing, lines without their counterpart, or a source in which nothing is marked.
    """
    paths = [folder / f"{name}.{field}" for field in Sample._fields]
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} is missing; name the folder of a corpus that has it")
    sources, targets = (list(read_lines(path)) for path in paths)
    if len(sources) != len(targets):
        raise UserError(
            f"{paths[0]} has {len(sources):,} lines and {paths[1]} has {len(targets):,}; each source needs its target"
        )
    for number, source in enumerate(sources, start=1):
        if source.count(HIGHLIGHT) != 2:
            raise UserError(
                f"line {number} of {paths[0]} has {HIGHLIGHT} {source.count(HIGHLIGHT)} times; mark one part of it, "
                "by one symbol before and one after it"
            )
    return [Sample(*sample) for sample in zip(sources, targets, strict=True)]


def without_marks(text):
    return one_line(text.replace(HIGHLIGHT, " "))


class Source(NamedTuple):
    text: str
    tokens: int
    texts: int


class Surroundings:
    """The texts to put around a marked one."""

    def __init__(self, samples, count_tokens, side="source"):
        """
        Args:
            samples: the samples of a corpus.
            count_tokens: returns the number of tokens of a text.
            side: the field of the samples with the texts.
        """
        self._texts = list(dict.fromkeys(without_marks(getattr(sample, side)) for sample in samples))
        self._count_tokens = count_tokens
        self._side = side

    def _others(self, own, generator):
        """Texts other than this one, each once."""
        seen = set()
        while len(seen) < len(self._texts):
            drawn = generator.randrange(len(self._texts))
            if drawn not in seen:
                seen.add(drawn)
                if self._texts[drawn] != own:
                    yield self._texts[drawn]

    def surround(self, sample, length, kind="hidden", seed=0):
        """The long source of a short one, or None if that is too long itself.

        Args:
            sample: its source is a marked text. Neither that nor its target is one of the others.
            length: tokens at most, the end symbol included. A mixed source has fewer: one in x has x times the tokens
                of its marked text or more, so that each doubling of the length has as many tokens of all sources.
            kind: one of `KINDS`.
            seed: of what is random. The draws do not depend on the length.

        Raises:
            UserError: the other texts do not fill the source.
        """
        generator = random.Random(seed)
        place, part = generator.random(), 1 - generator.random()
        source = sample.source
        tokens = self._count_tokens(source)
        room = length - END - tokens
        if room < 0:
            return None
        others = self._others(without_marks(getattr(sample, self._side)), generator)
        if kind == "own":
            texts = [source]
        elif kind == "other":
            texts = [next((other for other in others if self._count_tokens(other) < length), None)]
            if texts == [None]:
                raise UserError("the corpus has no other text that fits; give a larger --length")
        else:
            if kind == "mixed":
                room = min(room, int(tokens / part) - tokens)
            texts = self._fill(others, room, length)
            texts.insert(int(place * (len(texts) + 1)), source)
        text = " ".join(texts)
        return Source(text, self._count_tokens(text) + END, len(texts))

    def _fill(self, others, room, length):
        """As many of the others as fit, up to the first that does not."""
        texts = []
        for other in others:
            room -= self._count_tokens(other)
            if room < 0:
                return texts
            texts.append(other)
        raise UserError(
            f"all texts together do not fill a source of {length:,} tokens; give a smaller --length, or more splits "
            "(--others)"
        )


def write(options):
    vocabulary = Sentencepiece(options.sentencepiece)
    count_tokens = functools.cache(lambda text: len(vocabulary.pieces(text)))
    for split, size in options.size.items():
        samples = read_split(options.folder, split)
        others = samples if options.others is None else sum((read_split(options.folder, n) for n in options.others), [])
        surroundings = Surroundings(others, count_tokens, options.other_side)
        faults, written, sources = Counter(), [], []
        for number, sample in enumerate(sample_evenly(samples, size)):
            source = surroundings.surround(sample, options.length, options.texts, seed=f"{split} {number}")
            if source is None:
                faults[f"with more than {options.length:,} tokens left out"] += 1
                continue
            sources.append(source)
            written.append(Sample(source.text, sample.target))
        number = write_split(options.output, split, written)
        tokens, texts = (
            statistics.fmean(getattr(source, field) for source in sources) for field in ("tokens", "texts")
        )
        print(f"{split}: {number} written, with {tokens:,.0f} tokens and {texts:.1f} texts on average{counted(faults)}")


def main(arguments=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=read_path, help="of the corpus: SPLIT.source and SPLIT.target")
    parser.add_argument("output", type=read_path)
    parser.add_argument(
        "--length", type=count, required=True, metavar="L", help="tokens of a source at most, the end symbol included"
    )
    parser.add_argument(
        "--sentencepiece", type=read_path, required=True, metavar="MODEL", help="the model whose pieces are the tokens"
    )
    parser.add_argument(
        "--size",
        type=sizes,
        required=True,
        metavar="SPLIT=N,...",
        help="the splits to write, and how many examples, evenly out of each",
    )
    parser.add_argument(
        "--others",
        type=choices(SPLITS),
        metavar="SPLIT,...",
        help="the splits out of which the other texts are (default: the one that is written)",
    )
    parser.add_argument(
        "--other-side",
        choices=Sample._fields,
        default="source",
        help="the side of the corpus out of which the other texts are (default: %(default)s)",
    )
    parser.add_argument(
        "--texts",
        choices=KINDS,
        default=KINDS[0],
        help="hidden: the marked text among others that fill the length; mixed: among fewer, also none; own: the "
        "marked text alone; other: one of the others alone (default: %(default)s)",
    )
    write(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
