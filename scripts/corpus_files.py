"""What the scripts that prepare corpora share: cleaning, choosing and writing examples."""

import argparse
import gzip

from elseq.files import written_whole

SPLITS = ("train", "valid", "test")


def find(folder, name):
    """The file of this name, or its compressed form; None if there is neither."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)


def open_text(path):
    """A text file, compressed if its name ends in .gz."""
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def one_line(text):
    """With single spaces and no line break, whatever Unicode calls one."""
    return " ".join(text.split())


def sizes(text):
    """{split: number} of train=100,valid=20."""
    numbers = {}
    for part in text.split(","):
        split, _, number = part.partition("=")
        if split not in SPLITS or not number.isdecimal() or int(number) < 1:
            raise argparse.ArgumentTypeError(
                f"{part!r} is not SPLIT=N with a split of {', '.join(SPLITS)} and N above 0"
            )
        numbers[split] = int(number)
    return numbers


def sample_evenly(samples, size):
    """So many, at equal distances; all where there are no more, or no size is given."""
    if size is None or size >= len(samples):
        return samples
    return [samples[number * len(samples) // size] for number in range(size)]


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        file.writelines(f"{line}\n" for line in lines)


def counted(faults):
    """Those that there are, in words."""
    return "".join(f"; {number} {fault}" for fault, number in sorted(faults.items()) if number)
