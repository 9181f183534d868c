"""sentencepiece models."""

import functools
import hashlib
from pathlib import Path

import sentencepiece

from elseq.errors import UserError
from elseq.subwords.base import Subwords


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
