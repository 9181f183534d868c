#!/usr/bin/env python3
"""Encode the text of a corpus into subwords: by a sentencepiece model, trained here or given, by the BPE of GPT-2,
or by the tokenizer of a model that came from Hugging Face.

Nothing is downloaded. Several processes encode the lines, which keep their order, for fairseq-preprocess.
"""

import argparse
import functools
import io
import itertools
import multiprocessing
import os
import signal
import sys

import sentencepiece
from tqdm import tqdm

from elseq.arguments import Parser, count, read_path
from elseq.errors import UserError, as_option
from elseq.files import check_output_file, make_folder, read_lines, written_whole
from elseq.subwords import gpt2
from elseq.subwords.finding import read_subwords
from elseq.subwords.pieces import Sentencepiece

SIDES = ("source", "target")
# The options that name a vocabulary, and its kind as in --bpe.
KINDS = {"sentencepiece": "sentencepiece", "gpt2_bpe": "gpt2", "tokenizer_json": "hugging_face"}
BATCH_SIZE = 250  # lines that a process takes at a time


def corpus_files(corpus):
    """{path: number of lines} of the files to encode, the sources first."""
    paths = [path for side in SIDES for path in sorted(corpus.glob(f"*.{side}"))]
    if not paths:
        raise UserError(f"there is no file *.source or *.target in {corpus}; name the folder of a corpus")
    sizes = {path: sum(1 for _ in read_lines(path)) for path in paths}
    for path, size in sizes.items():
        target = path.with_suffix(".target")
        if sizes.get(target, size) != size:
            raise UserError(
                f"{path} has {size:,} lines and {target} has {sizes[target]:,}; each source needs its target"
            )
    return sizes


def train_sentencepiece(corpus, model_path, vocabulary_size, symbols):
    """Train a joint model on all lines of the training texts of both sides."""
    texts = [corpus / f"train.{side}" for side in SIDES]
    for text in texts:
        if not text.exists():
            raise UserError(f"{text} is missing; a sentencepiece model is trained on it")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            input=list(map(str, texts)),
            model_writer=model,
            vocab_size=vocabulary_size,
            model_type="bpe",
            user_defined_symbols=symbols,
            hard_vocab_limit=False,
            num_threads=2,
            max_sentence_length=max(len(line.encode()) for text in texts for line in read_lines(text)) + 1,
            minloglevel=1,
        )
    except RuntimeError as error:
        raise UserError(f"no vocabulary of {vocabulary_size} can be trained on {corpus}: {_one_line(error)}") from error
    with written_whole(model_path, "wb") as file:
        file.write(model.getvalue())


def _one_line(error):
    return " ".join(str(error).split())


def read_vocabulary(kind, path):
    """The vocabulary of an option, or for None a sentencepiece model.

    Raises:
        UserError: a file is missing, or its content is not as its name says.
    """
    files, symbols = [path], ()
    if kind == "gpt2_bpe":
        files = [path / name for name in gpt2.FILES]
        missing = next((file for file in files if not file.is_file()), None)
        if missing is not None:
            raise UserError(f"{missing} is missing; --gpt2-bpe takes a folder with {' and '.join(gpt2.FILES)}")
        if (path / "dict.txt").exists():
            symbols = {line.split(" ")[0] for line in read_lines(path / "dict.txt")}
    return read_subwords(KINDS.get(kind, "sentencepiece"), files, symbols, is_language_model=False)


def vocabulary_size(subwords):
    if isinstance(subwords, Sentencepiece):
        return subwords.processor.get_piece_size()
    return subwords.tokenizer.get_vocab_size(with_added_tokens=False)


# In the processes that encode.

_subwords = None


def _start(read):
    global _subwords
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the parent's, which then ends them
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _subwords = read()


def _encode_batch(batch):
    """The encoded lines as one text, their number, the number of cut lines, and the number of subwords cut off."""
    lines, is_target, limit = batch
    vocabulary = _subwords.of_targets if is_target else _subwords
    encoded, cut = [], []
    for line in lines:
        subwords = vocabulary.encode(line).split()
        if limit is not None and len(subwords) > limit:
            cut.append(len(subwords) - limit)
            del subwords[limit:]
        encoded.append(" ".join(subwords) + "\n")
    return "".join(encoded), len(lines), len(cut), sum(cut)


# In the parent.


def batches(lines, *options):
    while batch := list(itertools.islice(lines, BATCH_SIZE)):
        yield batch, *options


def encode_file(pool, path, output, limit, bar):
    """Returns how many lines were cut, and by how many subwords in all."""
    cut_lines = cut_subwords = 0
    todo = batches(read_lines(path), path.suffix == ".target", limit)
    with written_whole(output) as file:
        for text, lines, cut, subwords in pool.imap(_encode_batch, todo):
            file.write(text)
            cut_lines += cut
            cut_subwords += subwords
            bar.update(lines)
    return cut_lines, cut_subwords


def encode_corpus(sizes, output, read, limit, workers):
    """Encode the files; say of each that may be cut how much was."""
    with (
        multiprocessing.Pool(workers, _start, (read,)) as pool,
        tqdm(total=sum(sizes.values()), desc="subwords", unit=" lines", disable=None) as bar,
    ):
        for path, size in sizes.items():
            limited = limit if path.suffix == ".source" else None
            lines, subwords = encode_file(pool, path, output / path.name, limited, bar)
            if limited is not None:
                cut = f"{lines:,} of {size:,} lines cut to {limit:,} subwords, {subwords:,} subwords dropped"
                tqdm.write(f"{path.name}: {cut}")


def parse(arguments):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=read_path, help="folder of {train,valid,test}.{source,target}")
    parser.add_argument("output", type=read_path, help="folder for the encoded files, and for a model trained here")
    parser.add_argument(
        "--sentencepiece",
        type=read_path,
        metavar="MODEL",
        help="use this model instead of training one",
    )
    parser.add_argument("--gpt2-bpe", type=read_path, metavar="FOLDER", help="use its encoder.json and vocab.bpe")
    parser.add_argument("--tokenizer-json", type=read_path, metavar="FILE", help="use the one that from-hf has written")
    parser.add_argument(
        "--vocabulary-size",
        type=count,
        default=4000,
        metavar="N",
        help="of a model trained here (default: %(default)s)",
    )
    parser.add_argument(
        "--symbol", action="append", default=[], help="a word that a model trained here never divides (repeatable)"
    )
    parser.add_argument(
        "--truncate-source",
        type=count,
        metavar="N",
        help="keep so many subwords of a source; <s> and </s> do not count: 1022 fill the 1,024 positions of BART",
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--workers", type=count, default=cores, metavar="N", help="processes (default: %(default)s)")
    options = parser.parse_args(arguments)
    given = [name for name in KINDS if getattr(options, name)]
    if len(given) > 1:
        first, second = (as_option(name) for name in given[:2])
        raise UserError(f"{first} and {second} are two vocabularies: give one of them")
    options.kind = given[0] if given else None
    return options


def main(arguments=None):
    options = parse(arguments)
    sizes = corpus_files(options.corpus)
    make_folder(options.output, options.corpus)
    path = getattr(options, options.kind) if options.kind else options.output / "sentencepiece.model"
    for text in sizes:
        check_output_file(options.output / text.name, *sizes, *([path] if options.kind else ()))
    if options.kind is None:
        check_output_file(path, *sizes)
        train_sentencepiece(options.corpus, path, options.vocabulary_size, options.symbol)
    read = functools.partial(read_vocabulary, options.kind, path)
    size = vocabulary_size(read())
    encode_corpus(sizes, options.output, read, options.truncate_source, options.workers)
    print(f"pieces: a vocabulary of {size}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the processes must not outlive this one
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
