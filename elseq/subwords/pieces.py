"""sentencepiece models, alone, and as transformers has them beside vocab.json."""

import functools
import hashlib
import json
import re
from pathlib import Path

import sentencepiece

from elseq.errors import UserError
from elseq.files import read_json
from elseq.model_files import (
    FAIRSEQ_SYMBOLS,
    SENTENCEPIECE_BPE_MODEL,
    SOURCE_SPM,
    TARGET_SPM,
    TARGET_VOCAB_JSON,
    VOCAB_JSON,
)
from elseq.subwords.base import Subwords
from elseq.subwords.files import read_ids

SPACE = "\u2581"  # sentencepiece's letter for a space


class Sentencepiece(Subwords):
    """A sentencepiece model; its pieces are the words of the dictionary."""

    def __init__(self, path: Path):
        """
        Raises:
            UserError: the file is not a sentencepiece model.
        """
        if not path.is_file():
            raise UserError(f"{path} is missing; give a sentencepiece model")
        self._is_said = functools.cache(lambda word: not self.processor.is_unknown(self.processor.piece_to_id(word)))
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} is no sentencepiece model: {reason}") from error

    def pieces(self, text: str) -> list[str]:
        return self.processor.encode(text, out_type=str)

    def encode(self, text: str) -> str:
        return " ".join(self.pieces(text))

    def decode(self, words: str) -> str:
        """Decode by sentencepiece, which joins the bytes of a character. Words that are no pieces are omitted."""
        return self.processor.decode_pieces([word for word in words.split() if self._is_said(word)])

    def digest(self) -> str:
        return hashlib.sha256(self.processor.serialized_model_proto()).hexdigest()


_CODE = re.compile(r">>.*?<<", re.DOTALL)


def as_word(piece: str) -> str:
    """The word of a dictionary for a piece: white space in it, which no word has, is named by its number in Unicode."""
    return "".join(f"<U+{ord(letter):04X}>" if letter.isspace() else letter for letter in piece)


class PiecesWithIds(Sentencepiece):
    """A sentencepiece model beside vocab.json, which has the ids of its pieces, and fairseq_symbols.json.

    The special tokens that fairseq_symbols.json names are found in a text before sentencepiece reads it, as in
    transformers, and say nothing in decoding. Every other piece is a word of the dictionary (see `as_word`).

    A folder with source.spm and target.spm (Marian) has a model for each side. target_vocab.json has the ids of
    targets, if it is there. This object encodes sources and decodes targets, and `of_targets` does both for targets.
    ">>LANGUAGE<<" at the start of a text is one word.
    """

    def __init__(self, folder: Path, is_target: bool = False):
        """
        Args:
            folder: of the files.
            is_target: whether this is `of_targets` of a folder with two models.

        Raises:
            UserError: a file is missing or cannot be used.
        """
        self.is_pair = (folder / SOURCE_SPM).exists()
        model, vocab = (SOURCE_SPM if self.is_pair else SENTENCEPIECE_BPE_MODEL), VOCAB_JSON
        if is_target:
            model, vocab = TARGET_SPM, (TARGET_VOCAB_JSON if (folder / TARGET_VOCAB_JSON).exists() else VOCAB_JSON)
        self.path = folder / model
        super().__init__(self.path)
        self._of_targets = PiecesWithIds(folder, is_target=True) if self.is_pair and not is_target else self
        self.files = [self.path, folder / vocab]
        if self._of_targets is not self:
            self.files += self._of_targets.files
        pieces = read_ids(folder / vocab)
        symbols = {str(token): symbol for symbol, token in read_json(folder / FAIRSEQ_SYMBOLS).items()}
        self._symbols = symbols
        longest_first = sorted(symbols, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self.words = {token_id: symbols.get(piece) or as_word(piece) for piece, token_id in pieces.items()}
        self.ids = {word: token_id for token_id, word in self.words.items()}
        self._said = {as_word(piece): piece for piece in pieces if piece not in symbols}

    @property
    def of_targets(self) -> "PiecesWithIds":
        return self._of_targets

    def token(self, token_id: int) -> str | None:
        return self.words.get(token_id)

    def pieces(self, text: str) -> list[str]:
        pieces = []
        for part in self._split.split(text):
            if part in self._symbols:
                pieces.append(self._symbols[part])
            elif part:
                code = _CODE.match(part) if self.is_pair else None
                if code is not None:
                    pieces.append(code[0])
                    part = part[code.end() :]
                pieces += super().pieces(part)
        return [as_word(piece) for piece in pieces]

    def decode(self, words: str) -> str:
        if self._of_targets is not self:
            return self._of_targets.decode(words)
        pieces = [self._said[word] for word in words.split() if word in self._said]
        # What the model does not know, it copies with its letter for a space.
        return self.processor.decode_pieces(pieces).replace(SPACE, " ").strip()

    def digest(self) -> str:
        content = json.dumps([self.words, self._symbols])
        if self._of_targets is not self:
            content += self._of_targets.digest()
        return hashlib.sha256(self.processor.serialized_model_proto() + content.encode()).hexdigest()
