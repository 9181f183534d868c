#!/usr/bin/env python3
"""Train a joint sentencepiece model on train.{source,target} of a corpus and encode all its files into pieces."""

import argparse
from pathlib import Path

import sentencepiece


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="folder of {train,valid,test}.{source,target}")
    parser.add_argument("output", type=Path, help="folder for sentencepiece.model and the encoded files")
    parser.add_argument("--vocabulary-size", type=int, default=4000)
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)

    sentencepiece.SentencePieceTrainer.train(
        input=[str(options.corpus / f"train.{side}") for side in ("source", "target")],
        model_prefix=str(options.output / "sentencepiece"),
        vocab_size=options.vocabulary_size,
        model_type="bpe",
        hard_vocab_limit=False,
        num_threads=2,
        minloglevel=1,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(options.output / "sentencepiece.model"))
    for path in sorted(options.corpus.glob("*.source")) + sorted(options.corpus.glob("*.target")):
        lines = path.read_text(encoding="utf-8").splitlines()
        encoded = "".join(" ".join(pieces) + "\n" for pieces in processor.encode(lines, out_type=str))
        (options.output / path.name).write_text(encoded, encoding="utf-8")
    print(f"pieces: a vocabulary of {processor.get_piece_size()}")


if __name__ == "__main__":
    main()
