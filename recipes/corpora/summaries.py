#!/usr/bin/env python3
"""CNN/DailyMail and XSum as a corpus for summarization: an article in, its summary out, each on a line.

prepare writes {train,valid,test}.source, .target and .reference: the article, its summary, and the summary with <q>
between its sentences, for the ROUGE-Lsum of CNN/DailyMail, whose summaries are a few sentences.
"""

import gzip
import json
from collections import Counter
from typing import NamedTuple

from corpus_files import SPLITS, commands, counted, find, one_line, read_json_lines, require, write_split

from elseq.arguments import count
from elseq.errors import UserError
from elseq.files import make_folder, written_whole

SENTENCE_SEPARATOR = "<q>"
FILES = {"train": "train", "valid": "validation", "test": "test"}


class Corpus(NamedTuple):
    """The source of a corpus, the names of its fields, and the numbers of samples of its published splits."""

    hub: dict  # arguments of datasets.load_dataset
    article: str
    summary: str
    samples: dict[str, int]


CORPORA = {
    "cnn_dm": Corpus(
        hub={"path": "abisee/cnn_dailymail", "name": "3.0.0"},
        article="article",
        summary="highlights",
        samples={"train": 287_113, "valid": 13_368, "test": 11_490},
    ),
    "xsum": Corpus(
        # The corpus itself is a program there, which `datasets` no longer runs; these are the files it made.
        hub={"path": "EdinburghNLP/xsum", "revision": "refs/convert/parquet"},
        article="document",
        summary="summary",
        samples={"train": 204_045, "valid": 11_332, "test": 11_334},
    ),
}


class Sample(NamedTuple):
    source: str
    target: str
    reference: str


# fetch


def fetch(options):
    found = _from_folder(options.source) if options.source else _from_hub(CORPORA[options.corpus])
    make_folder(options.output, options.source)
    for split in SPLITS:
        path = options.output / f"{FILES[split]}.jsonl.gz"
        path.unlink(missing_ok=True)
        if split in found:
            number = _write_json_lines(path, found[split])
            print(f"{split}: {number} samples, of {CORPORA[options.corpus].samples[split]} that are published")
        else:
            print(f"{split}: none")


def _from_folder(folder):
    """{split: its rows} of the splits that are there."""
    paths = {split: path for split in SPLITS if (path := find(folder, f"{FILES[split]}.jsonl"))}
    if not paths:
        raise UserError(
            f"{folder} has none of train.jsonl, validation.jsonl and test.jsonl (or *.jsonl.gz); name another folder"
        )
    return {split: read_json_lines(path) for split, path in paths.items()}


def _from_hub(corpus):
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "the corpus is downloaded by the package datasets: pip install 'elseq[data]', or give a folder (--from)"
        ) from error
    try:
        loaded = datasets.load_dataset(**corpus.hub)
    except Exception as error:  # of the network, of the hub, of its file formats
        raise UserError(
            f"{corpus.hub['path']} cannot be loaded ({one_line(str(error))}); give a folder that has it (--from)"
        ) from error
    return {split: loaded[name] for split, name in FILES.items() if name in loaded}


def _write_json_lines(path, rows):
    number = 0
    with written_whole(path, "wb") as file, gzip.open(file, "wt", encoding="utf-8") as text:
        for row in rows:
            text.write(json.dumps(row, ensure_ascii=False) + "\n")
            number += 1
    return number


# prepare


def make_samples(path, corpus, article_words, faults):
    """Samples, in order, with the first words of an article. Faults of rows are counted in `faults`.

    Raises:
        UserError: a row without the fields of the corpus.
    """
    seen = set()
    for number, row in enumerate(read_json_lines(path), start=1):
        names = (corpus.article, corpus.summary)
        require(f"line {number} of {path}", row, **dict.fromkeys(names, str | None))
        article, summary = (row[name] or "" for name in names)  # JSON's null is an empty text
        sentences = [line for line in map(one_line, summary.splitlines()) if line]
        if not article.strip() or not sentences:
            faults["with an empty article or summary left out"] += 1
            continue
        if row.get("id") is not None:
            identifier = str(row["id"])
            if identifier in seen:
                faults["whose id was seen before left out"] += 1
                continue
            seen.add(identifier)
        faults["articles with a line break inside joined"] += len(article.strip().splitlines()) > 1
        words = article.split()[:article_words]
        yield Sample(" ".join(words), " ".join(sentences), SENTENCE_SEPARATOR.join(sentences))


def share(samples, wanted):
    """Splits that are missing, cut from the end of the largest that is there, for trials on a part of a corpus."""
    samples = dict(samples)
    for split in SPLITS:
        if split not in samples:
            largest = max(samples, key=lambda name: len(samples[name]))
            half = len(samples[largest]) // 2
            number = min(wanted.get(split, half), half)
            samples[split] = samples[largest][-number:]
            samples[largest] = samples[largest][:-number]
            print(f"{split}: is missing; {number} samples of {largest} take its place, and leave {largest}")
    return samples


def prepare(options):
    corpus = CORPORA[options.corpus]
    samples = {}
    for split in SPLITS:
        path = find(options.folder, f"{FILES[split]}.jsonl")
        if path is None:
            continue
        faults = Counter()
        samples[split] = list(make_samples(path, corpus, options.article_words, faults))
        published = corpus.samples[split]
        print(f"{split}: {len(samples[split])} samples of {published} that are published{counted(faults)}")
    if not samples.keys() >= set(SPLITS) and not (options.share and any(map(len, samples.values()))):
        missing = ", ".join(split for split in SPLITS if split not in samples)
        raise UserError(
            f"{options.folder} lacks {missing}; give the whole corpus, or SMALL=1 for a trial with what is there"
        )
    for split, found in share(samples, options.size).items():
        print(f"{split}: {write_split(options.output, split, found, options.size.get(split))} written")


def main(arguments=None):
    parser, preparing = commands(__doc__, fetch, prepare, corpora=CORPORA)
    preparing.add_argument("--article-words", type=count, help="of each article, so many words (default: all)")
    preparing.add_argument("--share", action="store_true", help="make up for a missing split out of the largest one")
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
