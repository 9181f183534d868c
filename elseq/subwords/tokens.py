"""Tokenizers of Hugging Face's library `tokenizers`, and the words of a fairseq dictionary for their tokens.

The word of a token is
1. the symbol <s>, <pad>, </s> or <unk>, if fairseq_symbols.json beside tokenizer.json maps the symbol to the token,
   or the token itself, a language code, if it maps that to itself;
2. otherwise, if there is an encoder.json: its id there, or the token itself if it is not there (encoder.json has
   GPT-2's ids, and spells tokens that are not BPE pieces in the letters of their bytes);
3. otherwise its id in tokenizer.json, except that <mask> and madeupwordNNNN stay as they are.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode
from tokenizers import Tokenizer

from elseq.errors import UserError
from elseq.files import check_text, read_json
from elseq.model_files import ENCODER_JSON, FAIRSEQ_SYMBOLS
from elseq.subwords.base import Subwords
from elseq.subwords.files import read_ids

SPECIAL_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")  # the first symbols of every dictionary
END_OF_TEXT = "<|endoftext|>"
OWN_WORDS = re.compile(r"<mask>|madeupword\d+")  # fairseq's dictionaries have these as words, not as ids
_LETTERS = bytes_to_unicode()
MOST_GROWTH = 2**10  # maximum growth of a text by all steps
NO_TOKENIZER = "is no tokenizer of Hugging Face's library"
_EXPANDING = ("ByteLevel", "Precompiled", "NFC", "NFD", "NFKC", "NFKD")


class Tokens(Subwords):
    """A tokenizer, and the dictionary words of its tokens."""

    def __init__(self, tokenizer: Tokenizer, words: Mapping[int, str], path: Path | None = None):
        """
        Args:
            tokenizer: a tokenizer that adds no symbols around a text.
            words: the word for each token id.
            path: path of its tokenizer.json, or None if it was made from fairseq's files.
        """
        self.tokenizer = tokenizer
        self.path = path
        self.words = dict(words)
        self.ids = {word: token_id for token_id, word in self.words.items()}

    def encode(self, text: str) -> str:
        """The words of a text, separated by spaces. Special symbols in the text are recognized.

        Raises:
            UserError: the tokenizer cannot encode it.
        """
        with library_errors(f"the tokenizer cannot encode {text[:40]!r}", f"copy {self.path} again"):
            check_text(text, repr(text[:40]), "decode it as UTF-8")
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return " ".join(self.words[token_id] for token_id in ids)

    def decode(self, words: str) -> str:
        """The text of words, as in transformers without special symbols. Words that are no tokens are omitted."""
        ids = [self.ids[word] for word in words.split() if word in self.ids]
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def token(self, token_id: int) -> str | None:
        return self.tokenizer.id_to_token(token_id)

    def is_beginning_of_word(self, word: str) -> bool:
        return self.decode(word).startswith(" ")

    def digest(self) -> str:
        """A hash of everything on which encoding and decoding depend."""
        content = f"{self.tokenizer.to_str()}\n{json.dumps(self.words)}"
        return hashlib.sha256(content.encode()).hexdigest()


def read_tokens(path: Path) -> Tokens:
    """
    Args:
        path: path of a tokenizer.json.

    Raises:
        UserError: the file, or another file that it needs, is missing or cannot be used.
    """
    tokenizer = parse_tokenizer(read_json(path), path)
    symbols = default_symbols(tokenizer)
    if path.with_name(FAIRSEQ_SYMBOLS).exists():
        symbols = {str(token): symbol for symbol, token in read_json(path.with_name(FAIRSEQ_SYMBOLS)).items()}
        if not all(symbol in (*SPECIAL_SYMBOLS, token) for token, symbol in symbols.items()):
            raise UserError(f"{path.with_name(FAIRSEQ_SYMBOLS)} names other symbols than {', '.join(SPECIAL_SYMBOLS)}")
    ids = None
    if path.with_name(ENCODER_JSON).exists():
        ids = read_ids(path.with_name(ENCODER_JSON))
    return Tokens(tokenizer, dictionary_words(tokenizer, ids, symbols), path)


def parse_tokenizer(content: dict, path: Path) -> Tokenizer:
    """
    Args:
        content: content of a tokenizer.json.
        path: its name in errors.

    Raises:
        UserError: the library cannot read it.
    """
    # These settings do not change the tokens of a text: they are for batches and training.
    content = content | {"truncation": None, "padding": None}
    if _growth([content.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]) > MOST_GROWTH:
        raise UserError(f"{path} makes texts many times longer, which no tokenizer needs: copy it again")
    if isinstance(content.get("model"), dict) and content["model"].get("dropout"):
        content["model"] = content["model"] | {"dropout": None}
    with library_errors(f"{path} {NO_TOKENIZER}"):
        return Tokenizer.from_str(json.dumps(content))


def _growth(steps) -> float:
    """The maximum factor by which all steps of a tokenizer together can lengthen a text."""
    growth, waiting = 1.0, [steps]
    while waiting:
        step = waiting.pop()
        if isinstance(step, list):
            waiting += step
        elif isinstance(step, dict):
            waiting += [inner for inner in step.values() if isinstance(inner, list | dict)]
            if step.get("type") == "Replace":
                pattern = step.get("pattern")
                text = pattern.get("String") if isinstance(pattern, dict) else None
                shortest = len(text) if isinstance(text, str) and text else 1  # unknown for a regular expression
                growth *= max(1, len(str(step.get("content"))) / shortest)
            elif step.get("type") in _EXPANDING:
                growth *= 2
    return growth


@contextlib.contextmanager
def library_errors(failure: str, remedy: str = "copy it again"):
    """
    Raises:
        UserError: for any error of the library `tokenizers`, including panics, which are not Exceptions.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, UserError):
        raise
    except BaseException as error:
        raise UserError(f"{failure} ({' '.join(str(error).split())}): {remedy}") from error


def default_symbols(tokenizer: Tokenizer) -> dict[str, str]:
    """The symbols of tokens without fairseq_symbols.json: those of the same name, and GPT-2's end of text."""
    known = tokenizer.get_vocab()
    symbols = {symbol: symbol for symbol in SPECIAL_SYMBOLS}
    return symbols | ({END_OF_TEXT: "</s>"} if "</s>" not in known and END_OF_TEXT in known else {})


def spelt(token: str, pieces: Mapping[str, int]) -> str:
    """The spelling of a token in encoder.json: tokens that are not BPE pieces are spelled by their bytes."""
    return token if token in pieces else "".join(_LETTERS[byte] for byte in token.encode())


def dictionary_words(tokenizer: Tokenizer, ids: Mapping[str, int] | None, symbols: Mapping[str, str]):
    """The word for each token id; see the docstring of the module.

    Args:
        ids: content of encoder.json, or None.
        symbols: maps tokens to symbols of fairseq.
    """
    pieces = tokenizer.get_vocab(with_added_tokens=False)
    return {
        token_id: symbols.get(token) or dictionary_word(token, token_id, ids, pieces)
        for token, token_id in tokenizer.get_vocab().items()
    }


def dictionary_word(token: str, token_id: int, ids: Mapping[str, int] | None, pieces: Mapping[str, int]) -> str:
    if ids is None:
        return token if OWN_WORDS.fullmatch(token) else str(token_id)
    name = spelt(token, pieces)
    return str(ids[name]) if name in ids else name
