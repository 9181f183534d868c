#!/usr/bin/env python3
"""Documents of your own, and their summaries, as a corpus: {train,valid,test}.jsonl, or .jsonl.gz, with "document" and
"summary" on each line, become SPLIT.source, .target and .reference as summaries.py writes them.
"""

import argparse
from collections import Counter

from corpus_files import SPLITS, counted, find, sizes, write_split
from summaries import Corpus, make_samples

from elseq.arguments import Parser, choices, read_path
from elseq.errors import UserError
from elseq.files import make_folder

DOCUMENTS = Corpus(hub={}, article="document", summary="summary", samples={})


def write(options):
    paths = {split: find(options.folder, f"{split}.jsonl") for split in options.splits}
    for split, path in paths.items():
        if path is None:
            raise UserError(f"{options.folder / split}.jsonl is missing; put it there, or name other --splits")
    make_folder(options.output, options.folder)
    for split, path in paths.items():
        faults = Counter()
        samples = list(make_samples(path, DOCUMENTS, None, faults))
        written = write_split(options.output, split, samples, options.size.get(split))
        print(f"{split}: {len(samples)} documents, {written} written{counted(faults)}")


def main(arguments=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=read_path)
    parser.add_argument("output", type=read_path)
    parser.add_argument(
        "--splits", type=choices(SPLITS), default=list(SPLITS), metavar="SPLIT,...", help="(default: all three)"
    )
    parser.add_argument(
        "--size", type=sizes, default={}, metavar="SPLIT=N,...", help="documents, evenly out of a split"
    )
    write(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
