#!/usr/bin/env python3
"""Encode the text of a corpus into subwords: by a sentencepiece model, trained here or given, or by the BPE of GPT-2.

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
from pathlib import Path

import sentencepiece
from tqdm import tqdm

from elseq.arguments import Parser, count
from elseq.errors import UserError
from elseq.files import check_output_file, make_folder, read_lines, written_whole

SIDES = ("source", "target")
BATCH_SIZE = 250  # lines that a process takes at a time
REMEMBERED = 2**18  # words whose subwords a process remembers


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
    """Train a joint model on the training texts of both sides."""
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
            minloglevel=1,
        )
    except RuntimeError as error:
        raise UserError(f"no vocabulary of {vocabulary_size} can be trained on {corpus}: {_one_line(error)}") from error
    with written_whole(model_path, "wb") as file:
        file.write(model.getvalue())


def _one_line(error):
    return " ".join(str(error).split())


class Sentencepiece:
    def __init__(self, path):
        """
        Raises:
            UserError: there is no model at this path.
        """
        if not path.is_file():
            raise UserError(f"{path} is missing; give a sentencepiece model")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path} is no sentencepiece model: {_one_line(error)}") from error
        self.vocabulary_size = self._processor.get_piece_size()

    def encode(self, line):
        return self._processor.encode(line, out_type=str)


class Gpt2:
    """fairseq's GPT-2 BPE, which remembers what it made of a word."""

    def __init__(self, folder):
        """
        Raises:
            UserError: a file that is missing or is not what its name says.
        """
        from fairseq.data.encoders.gpt2_bpe_utils import get_encoder  # here, when elseq has repaired fairseq

        paths = [folder / name for name in ("encoder.json", "vocab.bpe")]
        for path in paths:
            if not path.is_file():
                raise UserError(f"{path} is missing; --gpt2-bpe takes a folder with encoder.json and vocab.bpe")
        try:
            self._bpe = get_encoder(*paths)
        except ValueError as error:
            raise UserError(f"{folder} does not hold the BPE of GPT-2: {_one_line(error)}") from error
        except (AttributeError, TypeError) as error:
            raise UserError(f"{paths[0]} does not give each piece a number: copy it again") from error
        if not self._bpe.bpe_ranks:
            raise UserError(f"{paths[1]} has no pair of pieces to join: copy it again")
        pieces = [*self._bpe.byte_encoder.values(), *map("".join, self._bpe.bpe_ranks)]
        lacking = [piece for piece in pieces if type(self._bpe.encoder.get(piece)) is not int]
        if lacking:
            raise UserError(f"{paths[0]} has no number for {lacking[0]!r}, a piece of {paths[1].name}: copy both again")
        self.vocabulary_size = len(self._bpe.encoder)
        self._subwords = functools.lru_cache(REMEMBERED)(self._encode_word)

    def encode(self, line):
        return [subword for word in self._bpe.pat.findall(line) for subword in self._subwords(word)]

    def _encode_word(self, word):
        self._bpe.cache.clear()  # it would grow without end
        return tuple(map(str, self._bpe.encode(word)))


# In the processes that encode.

_encoder = None


def _start(make_encoder):
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the parent's, which then ends them
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _encoder = make_encoder()


def _encode_batch(batch):
    """The lines as text, how many there are, how many of them were cut, and by how many subwords in all."""
    lines, limit = batch
    encoded, cut = [], []
    for line in lines:
        subwords = _encoder.encode(line)
        if limit is not None and len(subwords) > limit:
            cut.append(len(subwords) - limit)
            del subwords[limit:]
        encoded.append(" ".join(subwords) + "\n")
    return "".join(encoded), len(lines), len(cut), sum(cut)


# In the parent.


def batches(lines, limit):
    while batch := list(itertools.islice(lines, BATCH_SIZE)):
        yield batch, limit


def encode_file(pool, path, output, limit, bar):
    """Returns how many lines were cut, and by how many subwords in all."""
    cut_lines = cut_subwords = 0
    with written_whole(output) as file:
        for text, lines, cut, subwords in pool.imap(_encode_batch, batches(read_lines(path), limit)):
            file.write(text)
            cut_lines += cut
            cut_subwords += subwords
            bar.update(lines)
    return cut_lines, cut_subwords


def encode_corpus(sizes, output, make_encoder, limit, workers):
    """Encode the files; say of each that may be cut how much was."""
    with (
        multiprocessing.Pool(workers, _start, (make_encoder,)) as pool,
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
    parser.add_argument("corpus", type=Path, help="folder of {train,valid,test}.{source,target}")
    parser.add_argument("output", type=Path, help="folder for the encoded files, and for a model trained here")
    parser.add_argument("--sentencepiece", type=Path, metavar="MODEL", help="use this model instead of training one")
    parser.add_argument("--gpt2-bpe", type=Path, metavar="FOLDER", help="use its encoder.json and vocab.bpe")
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
    if options.sentencepiece and options.gpt2_bpe:
        raise UserError("--sentencepiece and --gpt2-bpe are two vocabularies: give one of them")
    return options


def main(arguments=None):
    options = parse(arguments)
    sizes = corpus_files(options.corpus)
    make_folder(options.output, options.corpus)
    for path in sizes:
        check_output_file(options.output / path.name, *sizes, *filter(None, (options.sentencepiece, options.gpt2_bpe)))
    if options.gpt2_bpe:
        make_encoder = functools.partial(Gpt2, options.gpt2_bpe)
    else:
        model = options.sentencepiece or options.output / "sentencepiece.model"
        if not options.sentencepiece:
            check_output_file(model, *sizes)
            train_sentencepiece(options.corpus, model, options.vocabulary_size, options.symbol)
        make_encoder = functools.partial(Sentencepiece, model)
    vocabulary_size = make_encoder().vocabulary_size
    encode_corpus(sizes, options.output, make_encoder, options.truncate_source, options.workers)
    print(f"pieces: a vocabulary of {vocabulary_size}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the processes must not outlive this one
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
