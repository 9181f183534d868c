"""Shared by the scripts that prepare corpora: commands, and reading, choosing and writing examples."""

import argparse
import gzip
import json
import zlib
from typing import NamedTuple

from elseq.arguments import Parser, read_path
from elseq.errors import UserError
from elseq.files import check_text, decode_lines, make_folder, written_whole

SPLITS = ("train", "valid", "test")
REMEDY = "mend it, or fetch the corpus again"
KINDS = {str: "text", str | None: "text", list: "list", int: "whole number"}  # as they are called in an error


class Sample(NamedTuple):
    source: str
    target: str


def commands(description, fetch, prepare, corpora=()):
    """The parser of a script, and that of its command `prepare`, to which the script adds options.

    Args:
        fetch, prepare: what the commands call with their options.
        corpora: names, if the script knows several corpora.
    """
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(required=True, metavar="{fetch,prepare}")
    fetching = subparsers.add_parser("fetch", help="copy or download the files of the corpus")
    preparing = subparsers.add_parser("prepare", help="write an example a line")
    for command, run in ((fetching, fetch), (preparing, prepare)):
        if corpora:
            command.add_argument("corpus", choices=corpora)
        command.set_defaults(run=run)
    fetching.add_argument("output", type=read_path)
    fetching.add_argument(
        "--from",
        dest="source",
        type=read_path,
        help="folder that has the files, *.gz or not (default: they are downloaded)",
    )
    preparing.add_argument("folder", type=read_path, help="what fetch made")
    preparing.add_argument("output", type=read_path)
    preparing.add_argument(
        "--size", type=sizes, default={}, metavar="SPLIT=N,...", help="examples, evenly out of a split"
    )
    return parser, preparing


def sizes(text):
    """{split: number} of train=100,valid=20."""
    numbers = {}
    for part in text.split(","):
        split, _, number = part.partition("=")
        if split not in SPLITS or not number.isdecimal() or int(number) < 1:
            raise UserError(f"{part!r} is not SPLIT=N with a split of {', '.join(SPLITS)} and N above 0")
        numbers[split] = int(number)
    return numbers


def find(folder, name):
    """The file of this name, or its compressed form; None if there is neither."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)


def _open(path):
    """Its bytes, decompressed if its name ends in .gz."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def read_json(path):
    """
    Raises:
        UserError: a file that cannot be read, or is no JSON.
    """
    try:
        with _open(path) as file:
            return json.load(file)
    except (ValueError, RecursionError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); fetch it again") from error


def read_json_lines(path):
    """The value on each line.

    Raises:
        UserError: a file that cannot be read, or a line that is no JSON or has half of a character.
    """
    number = 0
    try:
        with _open(path) as file:
            for line in decode_lines(file, path):
                number += 1
                value = json.loads(line)
                if "\\u" in line:
                    check_text(json.dumps(value, ensure_ascii=False), f"line {number} of {path}", REMEDY)
                yield value
    except (ValueError, RecursionError) as error:
        raise UserError(f"line {number} of {path} is no JSON ({_reason(error)}); mend it, or fetch it again") from error
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} cannot be read after line {number} ({_reason(error)}); fetch it again") from error


def _reason(error):
    return getattr(error, "strerror", None) or getattr(error, "msg", None) or error


def require(place, row, **fields):
    """
    Args:
        place: where the row is, for the error.
        fields: the fields of the row, and the type of each, one of KINDS.

    Raises:
        UserError: the row is not an object with these fields, or a text has half of a surrogate pair.
    """
    for name, kind in fields.items():
        if not isinstance(row, dict) or not isinstance(row.get(name, ...), kind):
            raise UserError(f"{place} has no {KINDS[kind]} {name!r}: {str(row)[:80]}; {REMEDY}")
        if isinstance(row[name], str):
            check_text(row[name], place, REMEDY)


def one_line(text):
    """With single spaces and no line break, whatever Unicode calls one."""
    return " ".join(text.split())


def sample_evenly(samples, size):
    """`size` samples at equal distances; all if there are no more, or if size is None."""
    if size is None or size >= len(samples):
        return samples
    return [samples[number * len(samples) // size] for number in range(size)]


def write_split(folder, split, samples, size=None):
    """Write each field of `size` samples (None: all) to the lines of a file SPLIT.FIELD. Returns their number.

    Raises:
        UserError: there is no sample.
    """
    chosen = sample_evenly(samples, size)
    if not chosen:
        raise UserError(f"{split} has no example in which nothing is missing; give a corpus that has some")
    make_folder(folder)
    for field in chosen[0]._fields:
        with written_whole(folder / f"{split}.{field}") as file:
            file.writelines(f"{getattr(sample, field)}\n" for sample in chosen)
    return len(chosen)


def counted(faults):
    """The faults that occurred, with their numbers, in words."""
    return "".join(f"; {number} {fault}" for fault, number in sorted(faults.items()) if number)
