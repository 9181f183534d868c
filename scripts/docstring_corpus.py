#!/usr/bin/env python3
"""Build a summarization corpus from the docstrings of the installed packages.

The first paragraph of a docstring is the summary, the rest is the document. Source files are parsed, never imported.
Whole modules go to train, valid or test, chosen by a hash of their path, so that no test text was seen in training.
"""

import argparse
import ast
import hashlib
import re
import sysconfig
import warnings
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

SPLITS = ("train", "valid", "test")
SKIPPED_FOLDERS = {"test", "tests", "site-packages", "dist-packages", "__pycache__"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
RULER = re.compile(r"([^\w\s])\1{2,}")  # the lines under headings, and doctest prompts


class Sample(NamedTuple):
    module: str
    document: str
    summary: str


class Limits(NamedTuple):
    """Counted in words: documents are cut to their maximum, summaries beyond theirs are left out."""

    min_document: int = 12
    max_document: int = 40
    min_summary: int = 3
    max_summary: int = 24


def installed_roots():
    paths = sysconfig.get_paths()
    return sorted({Path(paths[name]) for name in ("stdlib", "purelib", "platlib")})


def source_files(root):
    for path in sorted(root.rglob("*.py")):
        if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts):
            yield path.relative_to(root).as_posix(), path


def docstrings(source):
    """The docstrings of one source file; none if this Python cannot parse it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            return
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield text


def split_docstring(text, limits):
    """(document, summary) of a docstring, or None where it is too short or its summary too long."""
    summary, _, document = text.partition("\n\n")
    summary = RULER.sub(" ", summary).split()
    document = RULER.sub(" ", document).split()[: limits.max_document]
    if limits.min_summary <= len(summary) <= limits.max_summary and len(document) >= limits.min_document:
        return " ".join(document), " ".join(summary)
    return None


def fingerprint(text):
    return " ".join(re.findall(r"\w+", text.lower()))


def without_duplicates(samples):
    """Drop a document seen anywhere before, and a summary seen before in the same top-level package."""
    seen = set()
    for sample in samples:
        package = sample.module.partition("/")[0]
        keys = {fingerprint(sample.document), (package, fingerprint(sample.summary))}
        if seen.isdisjoint(keys):
            yield sample
        seen |= keys


def split_by_module(samples, valid_size, test_size):
    """Fill test, then valid, with whole modules in the order of their hash; what does not fit is dropped."""
    modules = {}
    for sample in samples:
        modules.setdefault(sample.module, []).append(sample)
    splits = {name: [] for name in SPLITS}
    for module in sorted(modules, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(splits["test"]) < test_size:
            name = "test"
        elif len(splits["valid"]) < valid_size:
            name = "valid"
        else:
            name = "train"
        splits[name] += modules[module]
    del splits["test"][test_size:], splits["valid"][valid_size:]
    return splits


def read_samples(roots, limits):
    files = [file for root in roots for file in source_files(root)]
    for module, path in tqdm(files, desc="docstrings", unit=" files", disable=None):
        for text in docstrings(path.read_bytes()):
            if pair := split_docstring(text, limits):
                yield Sample(module, *pair)


def write_splits(splits, output):
    output.mkdir(parents=True, exist_ok=True)
    for name, samples in splits.items():
        (output / f"{name}.source").write_text("".join(f"{sample.document}\n" for sample in samples), encoding="utf-8")
        (output / f"{name}.target").write_text("".join(f"{sample.summary}\n" for sample in samples), encoding="utf-8")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for {train,valid,test}.{source,target}")
    parser.add_argument(
        "--root", type=Path, action="append", help="folder of sources (default: the installed packages)"
    )
    parser.add_argument("--valid-size", type=int, default=400)
    parser.add_argument("--test-size", type=int, default=400)
    for field, default in Limits._field_defaults.items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, default=default, metavar="WORDS")
    options = parser.parse_args(arguments)
    limits = Limits(*(getattr(options, field) for field in Limits._fields))
    samples = without_duplicates(read_samples(options.root or installed_roots(), limits))
    splits = split_by_module(samples, options.valid_size, options.test_size)
    if not all(splits.values()):
        parser.error("too few documented sources to fill train, valid and test")
    write_splits(splits, options.output)
    print("samples: " + ", ".join(f"{name} {len(splits[name])}" for name in SPLITS))


if __name__ == "__main__":
    main()
