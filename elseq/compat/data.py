"""Data: numpy 2, batches that hold every sentence, and sentences about input that cannot be used."""

import re
import sys
import textwrap
import types

import numpy as np
from fairseq.data import data_utils, indexed_dataset, language_pair_dataset, token_block_dataset
from fairseq.tasks import FairseqTask
from fairseq_cli import interactive

from elseq.compat.patching import Overlay, wrap
from elseq.errors import UserError


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
        tokens = " and ".join(str(size) for size in np.atleast_1d(dataset.size(index)) if size)
        raise UserError(
            f"sentence {index}{_excerpt(dataset, index)} has {tokens} tokens, the model takes {max_positions}: "
            "shorten it, or leave it out by --skip-invalid-size-inputs-valid-test"
        ) from error


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


def explain_wrong_encoding():
    """Input that is not UTF-8 ends in a traceback with the number of a byte; in the C locale it is let through. So
    does a missing --input file."""
    wrap(indexed_dataset.IndexedRawTextDataset, "read_data", _read_raw_data)
    for module in (interactive, sys.modules["__main__"]):  # the latter for python -m fairseq_cli.interactive
        if hasattr(module, "buffered_read"):
            module.buffered_read = buffered_read


def _read_raw_data(read_data, dataset, path, dictionary):
    try:
        return read_data(dataset, path, dictionary)
    except UnicodeDecodeError:
        with open(path, "rb") as lines:
            for _ in _decode(lines, path):
                pass
        raise


def _decode(lines, name):
    for number, line in enumerate(lines, start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"line {number} of {name} is not valid UTF-8: convert it with iconv") from error


def buffered_read(input, buffer_size):
    """Lists of up to `buffer_size` stripped lines of a file, or of the standard input if `input` is "-".

    Raises `UserError` if the file cannot be opened or a line is not valid UTF-8.
    """
    buffer = []
    for line in _input_lines(input):
        buffer.append(line.strip())
        if len(buffer) >= buffer_size:
            yield buffer
            buffer = []
    if buffer:
        yield buffer


def _input_lines(input):
    if input == "-":
        yield from _decode(sys.stdin.buffer, "the standard input")
        return
    try:
        with open(input, "rb") as lines:
            yield from _decode(lines, input)
    except OSError as error:
        raise UserError(f"--input {input} cannot be read ({error.strerror}): check the path") from error
