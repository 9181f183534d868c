"""Finds the subword vocabulary beside a model, or reads the one that is named."""

import logging
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from elseq.errors import UserError
from elseq.model_files import CODES, ENCODER_JSON, FAIRSEQ_SYMBOLS, SENTENCEPIECE_MODELS, TOKENIZER_JSON, VOCAB_JSON
from elseq.subwords import gpt2, tokens
from elseq.subwords.base import Subwords
from elseq.subwords.codes import Codes, kind_of_codes
from elseq.subwords.pieces import PiecesWithIds, Sentencepiece
from elseq.subwords.tokens import Tokens

logger = logging.getLogger(__name__)


def find_subwords(folders: Iterable[Path], words: Collection[str], is_language_model: bool) -> Subwords | None:
    """The subword vocabulary in one of these folders, or None.

    Args:
        folders: folders to search; the first with files is used.
        words: words of the dictionary.
        is_language_model: whether the model has no encoder.

    Raises:
        UserError: files cannot be used, belong to another model, or are ambiguous.
    """
    for folder in folders:
        path = folder / TOKENIZER_JSON
        if path.exists():
            found = read_converted(path, words)
            logger.info("subwords: the tokenizer %s", path)
            return found
        encoder, merges = (folder / name for name in gpt2.FILES)
        if encoder.exists() != merges.exists():
            there, missing = sorted((encoder, merges), key=Path.exists, reverse=True)
            raise UserError(f"{folder} has {there.name} but no {missing.name}; the subwords need both: copy it there")
        if encoder.exists():
            logger.info("subwords: GPT-2 byte-level BPE of %s", folder)
            return gpt2.read_gpt2(encoder, merges, words, is_language_model)
        if all((folder / name).exists() for name in (VOCAB_JSON, FAIRSEQ_SYMBOLS)):
            found = PiecesWithIds(folder)
            logger.info("subwords: sentencepiece %s, numbered by %s", found.path, VOCAB_JSON)
            return found
        models = sorted(folder.glob(SENTENCEPIECE_MODELS))
        if len(models) > 1:
            raise UserError(f"{folder} holds several sentencepiece models; leave one there, or name another", "data")
        if models:
            logger.info("subwords: sentencepiece %s", models[0])
            return Sentencepiece(models[0])
    return None


def read_subwords(kind: str, files: Sequence[Path], words: Collection[str], is_language_model: bool) -> Subwords:
    """The subword vocabulary in files that a user has named.

    Args:
        kind: a value of --bpe.
        files: in the order of `elseq.options.BPE`.
        words, is_language_model: as for `find_subwords`.

    Raises:
        UserError: files cannot be used, or belong to another model.
    """
    if kind == "sentencepiece":
        return Sentencepiece(*files)
    if kind == "gpt2":
        return gpt2.read_gpt2(*files, words, is_language_model)
    if kind == "hugging_face":
        return read_converted(*files, words)
    return Codes(kind, *files)


def read_converted(path: Path, words: Collection[str] = ()) -> Subwords:
    """The subword vocabulary of a converted model.

    Args:
        path: its tokenizer.json, or where there is none its vocab.json.
        words: words of the dictionary, of which a tokenizer.json must have the ids.

    Raises:
        UserError: a file is missing or cannot be used, or belongs to another model.
    """
    if path.name == VOCAB_JSON:
        return PiecesWithIds(path.parent)
    found = tokens.read_tokens(path)
    _check_words(path, found, words)
    return found


def _check_words(path: Path, found: Tokens, words: Collection[str]) -> None:
    """A dictionary may lack tokens and have other words, but each number in it must be the id of a token."""
    for word in words:
        if word.isdecimal() and word not in found.ids:
            raise UserError(
                f"{path} is not the model's tokenizer, or {ENCODER_JSON} is missing beside it: none of its tokens is "
                f"the word {word} of the dictionary; remove it, or copy the files of the model's own there"
            )


def find_codes(folders: Iterable[Path]) -> tuple[str, Path] | None:
    """Codes of subword-nmt or fastBPE in one of these folders: the value of --bpe, and the file; or None."""
    for folder in folders:
        for path in (folder / name for name in CODES):
            if path.is_file() and (kind := kind_of_codes(path)) is not None:
                return kind, path
    return None
