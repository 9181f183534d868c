"""Data: numpy 2, batches that hold every sentence, and sentences about input that cannot be used."""

import atexit
import functools
import logging
import math
import re
import sys
import textwrap
import types
import weakref

import numpy as np
from fairseq.data import (
    Dictionary,
    data_utils,
    encoders,
    indexed_dataset,
    iterators,
    language_pair_dataset,
    token_block_dataset,
)
from fairseq.data.encoders import gpt2_bpe_utils
from fairseq.tasks import FairseqTask
from fairseq_cli import interactive

from elseq.compat.patching import Overlay, wrap
from elseq.compat.settings import values
from elseq.errors import UserError
from elseq.files import check_ordinary

logger = logging.getLogger(__name__)


def restore_numpy_names():
    """numpy 2 has neither `compat.long` (--sample-break-mode eos, --num-batch-buckets, fairseq-interactive with a
    language model) nor the argument `interpolation` of `percentile` (--num-batch-buckets)."""

    def percentile(*args, interpolation="linear", **kwargs):
        return np.percentile(*args, method=interpolation, **kwargs)

    old = Overlay(np, compat=types.SimpleNamespace(long=int), percentile=percentile)
    for module in (data_utils, token_block_dataset, language_pair_dataset):
        module.np = old


def keep_last_batch():
    """The last batch, that of the longest sentences, is dropped unless its size is a multiple of
    --required-batch-size-multiple (8): fairseq-generate prints fewer translations than there are sentences, validation
    and training leave them out, and data that fits in one batch is called empty. No data at all is an IndexError."""

    def batch_by_size(batch, indices, *args, **kwargs):
        if not isinstance(indices, np.ndarray):
            indices = np.fromiter(indices, dtype=np.int64)
        if len(indices) == 0:
            return []
        batches = batch(indices, *args, **kwargs)
        batched = sum(map(len, batches))
        return batches if batched == len(indices) else [*batches, indices[batched:]]

    wrap(data_utils, "batch_by_size", batch_by_size)


def stop_reading_ahead():
    """Nobody stops the thread that reads batches ahead: a command that ends early, by an error or by Ctrl-C, ends with
    it in the midst of a torch operation, and that aborts the process (exit code 134)."""
    readers = weakref.WeakSet()

    def run(run_reader, reader):
        readers.add(reader)
        run_reader(reader)

    def stop():
        for reader in list(readers):
            reader._max_len = 0  # it ends after the batch that it is at
            with reader._queue.mutex:
                reader._queue.maxsize = math.inf  # and finds room for it
                reader._queue.not_full.notify_all()
            reader.join(timeout=60)

    wrap(iterators.BackgroundConsumer, "run", run)
    atexit.register(stop)


def explain_long_sentences():
    """A sentence longer than the model's positions, or than a batch, ends in a traceback."""
    wrap(FairseqTask, "filter_indices_by_size", _filter_indices_by_size)
    wrap(data_utils, "batch_by_size", _batch_by_size)


def _filter_indices_by_size(filter_indices, task, indices, dataset, max_positions=None, ignore_invalid_inputs=False):
    try:
        return filter_indices(task, indices, dataset, max_positions, ignore_invalid_inputs)
    except Exception as error:
        found = re.match(r"Size of sample #(\d+) is invalid", str(error))
        if not found:
            raise
        index = int(found[1])
        raise UserError(
            f"sentence {index}{_excerpt(dataset, index)} has {_tokens(dataset.size(index))}, the model takes at most "
            f"{_tokens(max_positions)}: shorten it, leave it out by --skip-invalid-size-inputs-valid-test, or raise "
            "--max-source-positions and --max-target-positions if the model has more"
        ) from error


def _tokens(sizes):
    """A number of tokens, or those of source and target; a sentence without a target has 0 or none there."""
    sizes = [size for size in np.atleast_1d(sizes) if size]
    if len(sizes) == 1:
        return f"{sizes[0]} tokens"
    return " and ".join(f"{size} {side} tokens" for size, side in zip(sizes, ("source", "target"), strict=False))


def _excerpt(dataset, index):
    """How a sentence begins, in brackets: its number alone says little in fairseq-interactive."""
    if not isinstance(dataset, language_pair_dataset.LanguagePairDataset):
        return ""
    return f" ({textwrap.shorten(dataset.src_dict.string(dataset[index]['source']), 40, placeholder=' ...')})"


def _batch_by_size(batch, *args, **kwargs):
    try:
        return batch(*args, **kwargs)
    except AssertionError as error:
        found = re.match(r"Sentences lengths should not exceed max_tokens=(\d+)", str(error))
        if not found:
            raise
        raise UserError(
            f"a sentence of the data is longer than --max-tokens {found[1]}: raise that, or shorten the sentence"
        ) from error


def explain_unusable_dictionaries():
    """A dictionary that is missing (--lm-path needs a dict.txt in the data folder) or is none ends in a traceback,
    which seldom names the file."""
    wrap(Dictionary, "add_from_file", _add_from_file)


def _add_from_file(add, dictionary, file):
    if not isinstance(file, str):  # the open file that fairseq calls itself with
        return add(dictionary, file)
    if not file.startswith("/dev/fd/"):  # which a shell makes of <(COMMAND)
        check_ordinary(file)
    try:
        return add(dictionary, file)
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist; check the data folder and the languages") from error
    except Exception as error:  # fairseq has a kind of error for each of encoding, format and duplicates
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise UserError(f"{file} cannot be used as a dictionary ({reason}): make it by fairseq-preprocess") from error


def explain_unusable_subwords():
    """--bpe and --tokenizer without the file or the package that they need end in a traceback, and so does a text with
    a letter that an encoder.json lacks."""
    wrap(gpt2_bpe_utils.Encoder, "encode", _encode)
    wrap(encoders, "build_bpe", functools.partial(_build_encoder, "bpe"))
    wrap(encoders, "build_tokenizer", functools.partial(_build_encoder, "tokenizer"))


def _encode(encode, encoder, text):
    try:
        return encode(encoder, text)
    except KeyError as error:
        raise UserError(
            f"encoder.json has no {error.args[0]!r}, a piece that vocab.bpe makes of {textwrap.shorten(text, 40)!r}: "
            "take both files of the same model"
        ) from error


def _build_encoder(kind, build, cfg, *args, **kwargs):
    try:
        settings = values(cfg)
        for option, value in settings.items() if hasattr(settings, "items") else ():
            if isinstance(value, str) and re.search("json|vocab|model|codes|merges", option):
                check_ordinary(value)
        return build(cfg, *args, **kwargs)
    except Exception as error:  # every library has kinds of its own
        name = getattr(cfg, "_name", None) or getattr(cfg, kind, cfg)
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"--{kind} {name} cannot be used ({reason}): check its files and what it needs") from error


def explain_wrong_encoding():
    """Input that is not UTF-8 ends in a traceback with the number of a byte, and the lines that were read before and
    those that follow are lost; in the C locale it is let through. A missing --input file is a traceback too."""
    wrap(indexed_dataset.IndexedRawTextDataset, "read_data", _read_raw_data)
    for module in (interactive, sys.modules["__main__"]):  # the latter for python -m fairseq_cli.interactive
        if hasattr(module, "buffered_read"):
            module.buffered_read = buffered_read


def _read_raw_data(read_data, dataset, path, dictionary):
    try:
        return read_data(dataset, path, dictionary)
    except UnicodeDecodeError as error:
        with open(path, "rb") as lines:
            wrong = [number for number, (_, is_valid) in enumerate(_decode(lines), start=1) if not is_valid]
        raise UserError(_not_utf8(wrong, path)) from error


def _decode(lines):
    """Each line as text, and whether it was valid UTF-8; U+FFFD stands for what was not."""
    for line in lines:
        text = line.decode("utf-8", errors="replace")
        yield text, text.encode("utf-8") == line


def _not_utf8(numbers, name):
    first, more = numbers[0], len(numbers) - 1
    which = f"line {first} and {more} more of {name} are" if more else f"line {first} of {name} is"
    return f"{which} not valid UTF-8: convert with iconv"


def buffered_read(input, buffer_size):
    """Lists of up to `buffer_size` stripped lines of a file, or of the standard input if `input` is "-".

    A line that is not valid UTF-8 is translated as far as it can be read: to leave it out would change the numbers of
    all that follow, and to stop would lose them.

    Raises:
        UserError: the file cannot be opened; or, once every line has been translated, which ones were not valid.
    """
    name = "the standard input" if input == "-" else input
    buffer, wrong = [], []
    for number, (line, is_valid) in enumerate(_decode(_input_lines(input)), start=1):
        if not is_valid:
            wrong.append(number)
            logger.warning("line %d of %s is not valid UTF-8: what cannot be read is taken for unknown", number, name)
        buffer.append(line.strip())
        if len(buffer) >= buffer_size:
            yield buffer
            buffer = []
    if buffer:
        yield buffer
    if wrong:
        raise UserError(_not_utf8(wrong, name))


def _input_lines(input):
    if input == "-":
        if sys.stdin is None:
            raise UserError("the standard input is closed: give it lines, or --input FILE")
        # What a program puts in the place of the standard input may be text alone.
        lines = getattr(sys.stdin, "buffer", None) or (line.encode("utf-8", "surrogatepass") for line in sys.stdin)
        yield from lines
        return
    try:
        lines = open(input, "rb")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"--input {input} cannot be read ({error.strerror}): check the path") from error
    with lines:
        yield from lines
