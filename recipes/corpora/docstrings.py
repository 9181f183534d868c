#!/usr/bin/env python3
"""Build a corpus for the expansion of abbreviated text from the docstrings of this Python and its packages.

A target is a sentence of a docstring. Its source is the same sentence with every word cut to its first letters, as in
"Ret the num of ele in the lis." Source files are parsed, never imported. Whole modules go to test, valid or train, in
the order of a hash of their path. No sentence occurs twice, whatever its case and punctuation, and no training sentence
shares six words in a row with a sentence of test or valid.
"""

import argparse
import ast
import functools
import hashlib
import multiprocessing
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from corpus_files import Sample, write_split
from tqdm import tqdm

from elseq.arguments import Parser, count, read_path
from elseq.errors import UserError

SPLITS = ("test", "valid", "train")  # in the order in which they are filled
SKIPPED_FOLDERS = {"test", "tests", "site-packages", "dist-packages", "__pycache__"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
WORD = re.compile(r"[A-Za-z]+")
PARAGRAPH_END = re.compile(r"\n\s*\n|\n[^\w\s]{3,}(?:\n|$)")  # an empty line, or the ruler under a heading
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
PROSE = re.compile(r"[A-Z][a-z]*(?:[-'][A-Za-z]+)*(?:,? [A-Za-z]+(?:[-'][A-Za-z]+)*)+[.!?]")
SHARED_WORDS = 6  # in a row, from which on two sentences are near-duplicates


class Limits(NamedTuple):
    """Of the words of a sentence."""

    shortest: int = 8
    longest: int = 20

    def allow(self, sentence: str) -> bool:
        return self.shortest <= sentence.count(" ") + 1 <= self.longest


def installed_roots() -> list[Path]:
    paths = sysconfig.get_paths()
    return sorted({Path(paths[name]) for name in ("stdlib", "purelib", "platlib")})


def source_files(root: Path) -> Iterator[tuple[str, Path]]:
    """(path under the root, path) of each source file that is no test."""
    for path in root.rglob("*.py"):
        module = path.relative_to(root)
        if not SKIPPED_FOLDERS.intersection(module.parts):
            yield module.as_posix(), path


def docstrings(source: bytes) -> Iterator[str]:
    """The docstrings of one source file; none if this Python cannot parse it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield text


def sentences(text: str, limits: Limits) -> Iterator[str]:
    """The sentences of a docstring that are prose: words, commas and an end; no numbers, names of code or markup."""
    for paragraph in PARAGRAPH_END.split(text):
        for sentence in SENTENCE_END.split(" ".join(paragraph.split())):
            if limits.allow(sentence) and PROSE.fullmatch(sentence):
                yield sentence


def abbreviate(sentence: str, letters: int) -> str:
    """Each word cut to so many letters."""
    return WORD.sub(lambda word: word[0][:letters], sentence)


def read_module(path: Path, limits: Limits) -> list[str]:
    """The sentences of a source file; none if it cannot be read, as a link that leads nowhere."""
    try:
        source = path.read_bytes()
    except OSError:
        return []
    return [sentence for text in docstrings(source) for sentence in sentences(text, limits)]


def words_in_a_row(sentence: str) -> set[tuple[str, ...]]:
    """Every `SHARED_WORDS` words in a row, in lower case; all words of a shorter sentence."""
    words = [word.lower() for word in WORD.findall(sentence)]
    length = min(SHARED_WORDS, len(words))
    return set(zip(*(words[start : len(words) - length + start + 1] for start in range(length)), strict=True))


def fill_splits(modules: Iterable[list[str]], sizes: dict[str, int]) -> dict[str, list[str]]:
    """Fill the splits one after the other with the sentences of whole modules; stop when the last one is full.

    What does not fit into a split is dropped, and so is every near-duplicate, as the description of this file says.
    """
    splits = {name: [] for name in SPLITS}
    seen, held_out = set(), set()
    modules = iter(modules)
    with tqdm(total=sum(sizes.values()), desc="sentences", unit=" sentences", disable=None) as bar:
        for name in SPLITS:
            chosen = splits[name]
            while len(chosen) < sizes[name] and (module := next(modules, None)) is not None:
                before = len(chosen)
                for sentence in module:
                    key = " ".join(WORD.findall(sentence.lower()))
                    if key not in seen and (name != "train" or held_out.isdisjoint(words_in_a_row(sentence))):
                        chosen.append(sentence)
                    seen.add(key)
                del chosen[sizes[name] :]
                bar.update(len(chosen) - before)
            if name != "train":
                held_out.update(*map(words_in_a_row, chosen))
    return splits


def read_modules(pool, roots: Iterable[Path], limits: Limits) -> Iterator[list[str]]:
    """The sentences of one module after the other, in the order of a hash of their path, read by the pool."""
    files = {module: path for root in roots for module, path in source_files(root)}
    ordered = [files[module] for module in sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest())]
    return pool.imap(functools.partial(read_module, limits=limits), ordered, chunksize=20)


def main(arguments=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=read_path, help="folder for {train,valid,test}.{source,target}")
    parser.add_argument(
        "--root", type=read_path, action="append", help="folder of sources (default: this Python and its packages)"
    )
    parser.add_argument("--letters", type=count, default=3, help="that are left of a word (default: %(default)s)")
    for name, size in (("train", 32000), ("valid", 300), ("test", 1000)):
        parser.add_argument(f"--{name}-size", type=count, default=size, metavar="N", help="(default: %(default)s)")
    for field, default in Limits._field_defaults.items():
        parser.add_argument(f"--{field}", type=count, default=default, metavar="WORDS", help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    limits = Limits(options.shortest, options.longest)
    sizes = {name: getattr(options, f"{name}_size") for name in SPLITS}
    with multiprocessing.Pool(2) as pool:  # ended before all is read, once the splits are full
        splits = fill_splits(read_modules(pool, options.root or installed_roots(), limits), sizes)
    for name in SPLITS:
        if not splits[name]:
            raise UserError(f"there are too few documented sources to fill {name}; name a larger --root")
    for name, targets in splits.items():
        samples = [Sample(abbreviate(sentence, options.letters), sentence) for sentence in targets]
        write_split(options.output, name, samples)
    print("sentences: " + ", ".join(f"{name} {len(splits[name])}" for name in reversed(SPLITS)))


if __name__ == "__main__":
    main()
