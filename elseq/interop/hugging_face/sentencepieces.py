"""Tokenizers that ship as a sentencepiece model, without tokenizer.json.

From some, transformers makes a tokenizer of the library `tokenizers`: `SentencepieceClass`. For others it splits texts
by sentencepiece itself, and vocab.json has the ids of the pieces: `PieceVocabulary`.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

from elseq.errors import UserError
from elseq.interop.hugging_face.tokenizer import (
    Affixes,
    TokenizerClass,
    added_tokens,
    extra_tokens,
    read_config,
    texts_of,
    tokens_checked,
)
from elseq.interop.hugging_face.vocabulary import Vocabulary
from elseq.model_files import SENTENCEPIECE_BPE_MODEL, TOKENIZER_CONFIG, VOCAB_JSON
from elseq.subwords.files import read_ids
from elseq.subwords.pieces import SPACE, Sentencepiece, as_word

_CONTROL, _USER_DEFINED = 3, 4  # types of pieces in sentencepiece_model.proto


@dataclass(frozen=True)
class Model:
    """The content of a sentencepiece model.

    `pieces` and their scores are in the order of their ids. `symbols` are the pieces that are found in a text
    before all others. `charsmap` is the compiled normalization.
    """

    pieces: list[tuple[str, float]]
    symbols: list[AddedToken]
    charsmap: bytes


def read_model(path: Path) -> Model:
    """
    Raises:
        UserError: the file is missing or is not a sentencepiece model.
    """
    content = Sentencepiece(path).processor.serialized_model_proto()
    pieces, symbols, charsmap = [], [], b""
    for number, value in _fields(content):  # of ModelProto
        if number == 1:
            piece = {1: b"", 2: struct.pack("<f", 0), 3: 1} | dict(_fields(value))
            text = piece[1].decode()
            pieces.append((text, struct.unpack("<f", piece[2])[0]))
            if piece[3] in (_CONTROL, _USER_DEFINED):
                symbols.append(AddedToken(text, normalized=False, special=piece[3] == _CONTROL))
        elif number == 3:  # NormalizerSpec
            charsmap = dict(_fields(value)).get(2, b"")
    return Model(pieces, symbols, charsmap)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protobuf message from sentencepiece itself."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
        else:
            size, at = _varint(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = message[at : at + size], at + size
        yield key >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


class SentencepieceClass(TokenizerClass):
    """Made of the pieces of a sentencepiece model. A tokenizer.json, however, is followed as it is."""

    model_file = SENTENCEPIECE_BPE_MODEL
    checks_file = False

    def tokenizer(self, model: Model, named: dict[str, str | None], config: dict) -> Tokenizer:
        """
        Args:
            named: the special tokens, such as eos_token.
            config: tokenizer_config.json.
        """
        raise NotImplementedError

    def make(self, folder: Path, config: dict, pieces: Mapping[str, int], merges: Sequence[str]) -> Tokenizer | None:
        if not (folder / self.model_file).exists():
            return None
        model = read_model(folder / self.model_file)
        with tokens_checked(folder):
            names = self.named(config)
            named = dict(zip(names, texts_of(names.values()), strict=True))
        lacking = next((name for name in self.tokens if named[name] is None and name != "mask_token"), None)
        if lacking is not None:
            raise UserError(f"{folder / TOKENIZER_CONFIG} has no {lacking}: copy it again")
        tokenizer = self.tokenizer(model, named, config)
        tokenizer.add_tokens(model.symbols)
        return tokenizer


def unigram(pieces: Sequence[tuple[str, float]], unknown: int) -> Tokenizer:
    """A tokenizer by the scores of the pieces. Spaces are parts of words, and one is added before a text."""
    return _spaced(Tokenizer(Unigram(list(pieces), unk_id=unknown, byte_fallback=False)))


def bpe(ids: Mapping[str, int], order: Mapping[str, int], unknown: str) -> Tokenizer:
    """By merges, as `unigram` besides.

    Args:
        ids: of the pieces.
        order: the pieces as their model has them: the earliest is made first, of any two.
        unknown: the piece for what is none.
    """
    merges = [
        (piece[:cut], piece[cut:])
        for piece in order
        for cut in range(1, len(piece))
        if piece[:cut] in order and piece[cut:] in order
    ]
    merges.sort(key=lambda pair: (order["".join(pair)], len(pair[0])))
    return _spaced(Tokenizer(BPE(vocab=dict(ids), merges=merges, unk_token=unknown, fuse_unk=True)))


def _spaced(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(SPACE, prepend_scheme="always", split=True)
    return tokenizer


def normalizer(charsmap: bytes, *others: normalizers.Normalizer) -> normalizers.Normalizer:
    """The model's own normalization, these, and one space for several."""
    own = [normalizers.Precompiled(charsmap)] if charsmap else []
    return normalizers.Sequence([*own, *others, normalizers.Replace(Regex(" {2,}"), " ")])


@dataclass(frozen=True)
class PieceVocabulary(Vocabulary):
    """A sentencepiece model as it is, with the rows of its pieces and of other tokens.

    `special` are the tokens that are found in a text before sentencepiece reads it. `affixes` are rows. `files` are the
    tokenizer's files, by their names in a converted folder.
    """

    special: tuple[str, ...] = ()
    affixes: Affixes = Affixes([], [])
    files: dict[str, str | bytes] = field(default_factory=dict)

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.special, *self.languages)))

    def dictionary_words(self, rows: int, ids: dict[str, int] | None) -> list[str]:
        return [as_word(name) for name in self.names(rows)]

    def tokenizer_files(self) -> dict[str, str | bytes]:
        return self.files


def read_pieces(
    folder: Path, named: Mapping[str, str], models: Sequence[str], languages: Sequence[str] = ()
) -> PieceVocabulary:
    """
    Args:
        folder: of vocab.json and the models.
        named: the special tokens of the tokenizer's class, for those missing in tokenizer_config.json.
        models: the names of the sentencepiece files.
        languages: tokens that have the ids after those of vocab.json.

    Returns:
        The vocabulary, without affixes yet.

    Raises:
        UserError: a file that cannot be used.
    """
    config, path = read_config(folder), folder / VOCAB_JSON
    rows = read_ids(path)
    number = len(rows)
    with tokens_checked(folder):
        added = added_tokens(folder, config)
        special = texts_of(config.get(name, token) for name, token in named.items())
        special += texts_of(extra_tokens(config)) + [token.content for token in added.values()]
    _check_plain(added.values(), folder)
    rows = rows | {token.content: row for row, token in added.items()}
    for language in languages:
        rows.setdefault(language, number)
        number += 1
    special = [token for token in dict.fromkeys(special) if token]
    for token in special:
        rows.setdefault(token, len(rows))
    if len(set(rows.values())) < len(rows):
        raise UserError(f"{folder} has two tokens of the same number: copy its tokenizer again")
    files = {model: _content(folder / model) for model in models}
    files[VOCAB_JSON] = path.read_text(encoding="utf-8")
    return PieceVocabulary(rows, [], config=config, languages=tuple(languages), special=tuple(special), files=files)


def _content(model: Path) -> bytes:
    return Sentencepiece(model).processor.serialized_model_proto()


def _check_plain(tokens: Iterable[AddedToken], folder: Path) -> None:
    """
    Raises:
        UserError: a token that takes spaces beside it away, is one only between spaces, or is said.
    """
    for token in tokens:
        if token.lstrip or token.rstrip or token.single_word or not token.special:
            raise UserError(
                f"the tokenizer in {folder} has the token {token.content!r}, which is not special, or has lstrip, "
                "rstrip or single_word, and with its sentencepiece model that is not supported: change its "
                "tokenizer_config.json"
            )
