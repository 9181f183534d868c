"""Repairs of data: numpy 2, complete batches, and errors about unusable input."""

import atexit
import collections
import contextlib
import functools
import logging
import math
import os
import re
import struct
import sys
import textwrap
import types
import weakref
from multiprocessing import resource_sharer

import numpy as np
from fairseq import tasks, utils
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
from fairseq.data.multilingual.multilingual_data_manager import MultilingualDatasetManager
from fairseq.tasks import FairseqTask
from fairseq_cli import interactive
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from elseq.compat.patching import Overlay, wrap
from elseq.compat.settings import values
from elseq.errors import UserError, described
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
    --required-batch-size-multiple (8): fairseq-generate prints fewer translations than sentences, validation and
    training omit them, and data that fits into one batch counts as empty. Empty data gives an IndexError."""

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
    """The thread that reads batches ahead is never stopped. If a command ends early, by an error or Ctrl-C, the thread
    is inside a torch operation, which aborts the process (exit code 134)."""
    readers = weakref.WeakSet()

    def run(run_reader, reader):
        readers.add(reader)
        run_reader(reader)

    def stop():
        for reader in list(readers):
            reader._max_len = 0  # it ends after its current batch
            with reader._queue.mutex:
                reader._queue.maxsize = math.inf  # and does not block on the queue
                reader._queue.not_full.notify_all()
            reader.join(timeout=60)

    wrap(iterators.BackgroundConsumer, "run", run)
    atexit.register(stop)


def end_workers_that_hear_nothing():
    """When Python's collector finds a data loader that fairseq has left in a cycle of references, the queues to its
    workers are gone first. They are not told to end, and are waited for: a training stands still for 5 s, between
    epochs."""

    def shut_down(shut, loader):
        pairs = zip(getattr(loader, "_workers", ()), getattr(loader, "_index_queues", ()), strict=False)
        for worker, queue in pairs:
            worker.join = functools.partial(_end, worker, queue)
        shut(loader)

    wrap(_MultiProcessingDataLoaderIter, "_shutdown_workers", shut_down)


def _end(worker, queue, timeout=None):
    """As `join`, when everything else of the loader has ended."""
    closing = getattr(queue, "_close", None)
    if closing is not None and not closing.still_active() and worker._parent_pid == os.getpid():
        worker.terminate()
    return type(worker).join(worker, timeout)


def end_workers_without_a_word():
    """A training that is ended by SIGTERM while it takes a batch from a worker leaves a traceback of the worker."""
    resource_sharer.sys = Overlay(sys, excepthook=_tell_of_sharing)


def _tell_of_sharing(kind, error, place):
    if not issubclass(kind, ConnectionError | EOFError):  # the other process is gone
        sys.excepthook(kind, error, place)


def explain_missing_data():
    """A folder of data, a subset or a language that there is not gives a traceback. Under Hydra, a relative folder that
    exists is one that does not: each job has a folder of its own."""
    wrap(tasks, "setup_task", _setup_task)
    wrap(MultilingualDatasetManager, "get_split_num_data_shards", _number_of_shards)
    for kind in {*tasks.TASK_REGISTRY.values()}:
        if "load_dataset" in vars(kind):
            wrap(kind, "load_dataset", _load_dataset)


def _setup_task(setup, cfg, *args, **kwargs):
    data = None if OmegaConf.is_config(cfg) and OmegaConf.is_missing(cfg, "data") else getattr(cfg, "data", None)
    if isinstance(data, str) and HydraConfig.initialized() and not os.path.exists(data):
        there = os.path.join(HydraConfig.get().runtime.cwd, data)
        if os.path.exists(there):
            raise UserError(f"{data} is not in the folder of this job, which Hydra has made: give task.data={there}")
    with missing_files_named():
        try:
            return setup(cfg, *args, **kwargs)
        except Exception as error:
            if not str(error).startswith("Could not infer language pair"):
                raise
            raise UserError(
                f"{cfg.data} holds no files of a language pair (SUBSET.SOURCE-TARGET.SOURCE); check the data folder, "
                "or give --source-lang and --target-lang"
            ) from error


def _number_of_shards(count, *args):
    """With one for a pair without data, so that fairseq looks for its files and tells that they are missing."""
    return collections.defaultdict(lambda: 1, count(*args))


def _load_dataset(load, *args, **kwargs):
    with missing_files_named():
        return load(*args, **kwargs)


@contextlib.contextmanager
def missing_files_named():
    """Have a `UserError` tell which file of the data is missing."""
    try:
        yield
    except FileNotFoundError as error:
        what = f"{error.filename} does not exist" if error.filename else str(error)
        raise UserError(f"{what}; check the data folder, the languages and the subset") from error
    except NotADirectoryError as error:
        raise UserError(f"{error.filename} is not a folder; give that of the data") from error


def explain_damaged_data():
    """Data that is cut off gives errors of numpy, sources and targets of different numbers an AssertionError without
    their names, and a dictionary that is shorter than that of the data an IndexError in the model, or on a GPU the end
    of the process."""
    for kind in (indexed_dataset.MMapIndexedDataset, indexed_dataset.MMapIndexedDataset.Index):
        wrap(kind, "__del__", lambda delete, opened: delete(opened) if "_bin_buffer_mmap" in vars(opened) else None)
    wrap(indexed_dataset.MMapIndexedDataset, "_do_init", _open_mapped)
    wrap(indexed_dataset.IndexedDataset, "read_index", _open_indexed)
    wrap(indexed_dataset, "make_dataset", _make_dataset)
    wrap(language_pair_dataset.LanguagePairDataset, "__init__", _pair)


def _open_indexed(init, dataset, path):
    try:
        init(dataset, path)
    except (AssertionError, KeyError, ValueError, struct.error) as error:
        if os.path.getsize(f"{path}.idx") and not os.path.getsize(f"{path}.bin"):
            raise UserError(f"{path}.bin is empty: give a subset that has sentences, or {_ANEW}") from error
        reason = re.split(r"\. |\.$", str(error))[0]
        raise UserError(f"{path}.idx or {path}.bin is damaged or cut off ({reason}): {_ANEW}") from error


_ANEW = "make the data again by fairseq-preprocess"


def _open_mapped(init, dataset, path):
    _open_indexed(init, dataset, path)
    index = dataset._index
    if len(index) and index._pointers[-1] + index.sizes[-1] * index._dtype_size > len(dataset._bin_buffer):
        raise UserError(f"{path}.bin is cut off: {_ANEW}")


def _make_dataset(make, path, impl, fix_lua_indexing=False, dictionary=None):
    dataset = make(path, impl, fix_lua_indexing, dictionary)
    if isinstance(dataset, indexed_dataset.MMapIndexedDataset) and isinstance(dictionary, Dictionary):
        kind = np.dtype(dataset._index.dtype)
        count = len(dataset._bin_buffer) // kind.itemsize
        largest = np.frombuffer(dataset._bin_buffer, kind, count).max(initial=0)  # fairseq reads the file, too
        if largest >= len(dictionary):
            raise UserError(
                f"{path}.bin has words up to number {largest}, and the dictionary has {len(dictionary)} entries: take "
                f"that of the data, or {_ANEW}"
            )
    return dataset


def _pair(init, dataset, src, src_sizes, src_dict, tgt=None, *args, **kwargs):
    if tgt is not None and len(src) != len(tgt):
        raise UserError(
            f"the source has {len(src)} examples{_where(src)}, the target {len(tgt)}{_where(tgt)}: make both by one "
            "fairseq-preprocess"
        )
    init(dataset, src, src_sizes, src_dict, tgt, *args, **kwargs)


def _where(dataset) -> str:
    """The file of a dataset, in brackets, where it is known."""
    while inner := getattr(dataset, "dataset", None) or next(iter(getattr(dataset, "datasets", ())), None):
        dataset = inner
    path = getattr(dataset, "_path", None) or getattr(dataset, "path", None)
    return f" ({path}.bin)" if isinstance(path, str) else ""


def explain_long_sentences():
    """A sentence longer than the model's positions, or than a batch, gives a traceback, and so do sentences that are
    all skipped."""
    wrap(FairseqTask, "filter_indices_by_size", _filter_indices_by_size)
    wrap(data_utils, "batch_by_size", _batch_by_size)
    first_batch = iterators.EpochBatchIterator.first_batch.fget
    iterators.EpochBatchIterator.first_batch = property(lambda batches: _first_batch(first_batch, batches))


def _first_batch(first, batches):
    if not batches.frozen_batches:
        raise UserError(
            "no sentence is left: there is none, or all are longer than --max-tokens or the model's positions; raise "
            "these"
        )
    return first(batches)


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
            f"{_tokens(max_positions)}: shorten it, leave it out by --skip-invalid-size-inputs-valid-test, raise "
            "--max-source-positions and --max-target-positions if the model has more, or read longer sources by "
            "--long-input of elseq's task"
        ) from error


def _tokens(sizes):
    """The number of tokens, or those of source and target. Without a target the second is 0 or missing."""
    sizes = [size for size in np.atleast_1d(sizes) if size]
    if len(sizes) == 1:
        return f"{sizes[0]} tokens"
    return " and ".join(f"{size} {side} tokens" for size, side in zip(sizes, ("source", "target"), strict=False))


def _excerpt(dataset, index):
    """The start of a sentence in brackets, because numbers alone are not helpful in fairseq-interactive."""
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
    """A missing dictionary (--lm-path needs a dict.txt in the data folder) or an invalid one gives a traceback, which
    rarely names the file, and never the line."""
    wrap(Dictionary, "add_from_file", _add_from_file)


def _add_from_file(add, dictionary, file):
    if not isinstance(file, str):  # an open file, from fairseq's recursive call
        return add(dictionary, file)
    if not file.startswith("/dev/fd/"):  # the shell's <(COMMAND)
        check_ordinary(file)
    first = len(dictionary)
    try:
        return add(dictionary, file)
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist; check the data folder and the languages") from error
    except Exception as error:  # fairseq raises different errors for encoding, format and duplicates
        raise _unusable_dictionary(file, dictionary, first, error) from error


def _unusable_dictionary(file, dictionary, first, error):
    """A sentence about a file of which the lines before the wrong one are entries of the dictionary, from `first`."""
    if isinstance(error.__context__, UnicodeError) and os.path.isfile(file):
        return _not_utf8(file)
    line = len(dictionary) - first + 1
    if repeated := re.match(r"Duplicate word found when loading Dictionary: '(.*)'\. Duplicate words", str(error)):
        word = repeated[1]
        earlier = dictionary.index(word) - first + 1
        where = f"of line {earlier}" if earlier > 0 else "which is in every dictionary"
        return UserError(
            f"line {line} of {file} repeats {word!r:.60}, {where}: make the dictionary by fairseq-preprocess, or if "
            "the model has a row for this line, too, put #fairseq:overwrite at its end"
        )
    reason = " ".join(str(error).split()).partition(". ")[0]
    if isinstance(error, ValueError):
        reason = f"line {line}: {reason}"
    return UserError(f"{file} cannot be used as a dictionary ({reason}): make it by fairseq-preprocess")


def explain_unusable_embeddings():
    """A file of embeddings (--encoder-embed-path, --decoder-embed-path) that does not exist, has no numbers, or has
    vectors of another size, gives a traceback."""

    def parse_embedding(parse, embed_path):
        try:
            return parse(embed_path)
        except OSError as error:
            raise UserError(f"embeddings {embed_path} cannot be read ({error.strerror}): check the path") from error
        except (ValueError, StopIteration) as error:
            raise UserError(
                f"{embed_path} holds no embeddings ({described(error)}): each line after the first has a word and its "
                "numbers"
            ) from error

    def load_embedding(load, embed_dict, vocab, embedding):
        for word, vector in embed_dict.items():
            if word in vocab and len(vector) != embedding.embedding_dim:
                raise UserError(
                    f"the embedding of {word!r:.60} has {len(vector)} numbers, the model takes "
                    f"{embedding.embedding_dim}: give that as --encoder-embed-dim or --decoder-embed-dim"
                )
        return load(embed_dict, vocab, embedding)

    wrap(utils, "parse_embedding", parse_embedding)
    wrap(utils, "load_embedding", load_embedding)


def explain_unusable_subwords():
    """--bpe and --tokenizer without the file or package that they need give a traceback, and so does a text with a
    letter that encoder.json does not have."""
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
    except Exception as error:  # every library raises other errors
        name = getattr(cfg, "_name", None) or getattr(cfg, kind, cfg)
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{name} cannot be used ({reason}): check its files and what it needs", f"--{kind}") from error


def explain_wrong_encoding():
    """Input that is not UTF-8 gives a traceback with the number of a byte, and the lines before and after it are lost.
    In the C locale it is accepted. A missing --input file gives a traceback, too."""
    wrap(indexed_dataset.IndexedRawTextDataset, "read_data", _read_raw_data)
    for module in (interactive, sys.modules["__main__"]):  # __main__ is python -m fairseq_cli.interactive
        if hasattr(module, "buffered_read"):
            module.buffered_read = buffered_read


def _read_raw_data(read_data, dataset, path, dictionary):
    try:
        return read_data(dataset, path, dictionary)
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error


def _decode(lines):
    """Each line as text, with U+FFFD for invalid bytes, and whether it was valid UTF-8."""
    for line in lines:
        text = line.decode("utf-8", errors="replace")
        yield text, text.encode("utf-8") == line


def _not_utf8(path):
    with open(path, "rb") as lines:
        wrong = [number for number, (_, is_valid) in enumerate(_decode(lines), start=1) if not is_valid]
    return _invalid(wrong, path)


def _invalid(numbers, name):
    first, more = numbers[0], len(numbers) - 1
    which = f"line {first} and {more} more of {name} are" if more else f"line {first} of {name} is"
    return UserError(f"{which} not valid UTF-8: convert with iconv")


def buffered_read(input, buffer_size):
    """Lists of up to `buffer_size` stripped lines of a file, or of the standard input if `input` is "-".

    The valid part of an invalid UTF-8 line is translated. Skipping the line would change the numbers of the next lines,
    and stopping would lose them.

    Raises:
        UserError: the file cannot be opened; or, after the last line, the numbers of the invalid lines.
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
        raise _invalid(wrong, name)


def _input_lines(input):
    if input == "-":
        if sys.stdin is None:
            raise UserError("the standard input is closed: give it lines, or --input FILE")
        # A replacement of the standard input may be a text stream without a buffer.
        lines = getattr(sys.stdin, "buffer", None) or (line.encode("utf-8", "surrogatepass") for line in sys.stdin)
        yield from lines
        return
    try:
        lines = open(input, "rb")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"--input {input} cannot be read ({error.strerror}): check the path") from error
    with lines:
        yield from lines
