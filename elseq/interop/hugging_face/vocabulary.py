"""Vocabularies in the files of both sides.

Hugging Face: tokenizer.json, or for byte-level BPE vocab.json (piece: id, which is the row of the embedding) and
merges.txt.
fairseq: encoder.json (piece: id of GPT-2's) and vocab.bpe, whose ids are the words of a dictionary, dict.txt;
the place of a word in the dictionary is the row, after the four special symbols.
A converted folder has both: tokenizer.json, and the words of its tokens by the rule of `elseq.subwords.tokens`.
"""

import json
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fairseq.data import Dictionary
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode
from tokenizers import AddedToken, Tokenizer

from elseq.errors import UserError
from elseq.files import read_json, to_json
from elseq.interop.hugging_face.tokenizer import (
    Affixes,
    affixes_of,
    class_of,
    class_unlike_file,
    is_byte_level,
    is_plain,
    read_config,
    read_tokenizer,
    set_affixes,
)
from elseq.model_files import (
    ADDED_TOKENS,
    ENCODER_JSON,
    FAIRSEQ_SYMBOLS,
    MERGES_TXT,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    VOCAB_BPE,
    VOCAB_JSON,
)
from elseq.subwords.files import check_ids, read_merges, read_text
from elseq.subwords.gpt2 import MASK, byte_level
from elseq.subwords.pieces import PiecesWithIds
from elseq.subwords.tokens import (
    END_OF_TEXT,
    OWN_WORDS,
    SPECIAL_SYMBOLS,
    Tokens,
    dictionary_word,
    parse_tokenizer,
    spelt,
)

_NOT_MERGED = re.compile(r"<.*>|\[.*\]|madeupword\d+")
_STRAY = 0.01  # share of the pieces that somebody may have written into a vocabulary by hand
_HEADER = "#version: 0.2"  # without it fairseq loses the first merge


@dataclass(frozen=True)
class Vocabulary:
    """Hugging Face's vocabulary: the row of each token, and the merges, best first, each "left right".

    `unmade` are the few pieces that no merge makes: no text has them. `config` is tokenizer_config.json. `languages`
    are the tokens that name a language. A tokenizer that is no byte-level BPE has no merges here. For `unlike_file` see
    `class_unlike_file`.
    """

    rows: dict[str, int]
    merges: list[str]
    unmade: list[str] = field(default_factory=list)
    tokenizer: Tokenizer | None = None
    config: dict = field(default_factory=dict)
    languages: tuple[str, ...] = ()
    unlike_file: str | None = None

    @property
    def notes(self) -> list[str]:
        """Notes for the user."""
        notes = []
        if self.unmade:
            notes.append(f"no merge makes {', '.join(map(repr, self.unmade))}, so that no text has it in its tokens")
        if self.unlike_file is not None:
            kind = self.unlike_file
            notes.append(
                f"texts are cut as {TOKENIZER_JSON} says; if transformers makes a {kind} of its own, compare the two"
            )
        return notes

    @property
    def affixes(self) -> Affixes:
        """The rows of the tokens before and after a text."""
        return affixes_of(self.tokenizer)

    @property
    def is_byte_level(self) -> bool:
        return bool(self.merges)

    def names(self, rows: int) -> list[str]:
        """The word of each row of an embedding; fairseq's filler `madeupwordNNNN` for an unknown one."""
        found = {row: name for name, row in self.rows.items()}
        fillers = (name for name in map("madeupword{:04d}".format, range(2 * rows)) if name not in self.rows)
        return [found[row] if row in found else next(fillers) for row in range(rows)]

    @property
    def symbols(self) -> tuple[str, ...]:
        """The tokens that are words of the dictionary themselves, beside fairseq's symbols."""
        return self.languages

    def dictionary_words(self, rows: int, ids: dict[str, int] | None) -> list[str]:
        """The word of each row of an embedding.

        Args:
            ids: of encoder.json, where there is one.
        """
        symbols = set(self.symbols)
        tokens = {row for name, row in self.rows.items() if name not in symbols}
        pieces = self.tokenizer.get_vocab(with_added_tokens=False)
        return [
            dictionary_word(name, row, ids, pieces) if row in tokens else name
            for row, name in enumerate(self.names(rows))
        ]

    def tokenizer_files(self) -> dict[str, str | bytes]:
        """The content of the tokenizer's own files, by name."""
        return {TOKENIZER_JSON: self.tokenizer.to_str()}


def read_vocabulary(folder: Path, kind: str, by_dictionary: bool, rows: int = 0) -> Vocabulary | None:
    """The vocabulary of a folder in any of its forms; None if there is none.

    Args:
        folder: of a model, or of fairseq's files.
        kind: transformers' class of the tokenizer, if tokenizer_config.json has none.
        by_dictionary: see `Family`.
        rows: of the model's embedding, if they are known; see `with_mask`.

    Raises:
        UserError: a file that cannot be used.
    """
    if _all_there(folder, VOCAB_JSON, MERGES_TXT):
        pieces, merges = read_json(folder / VOCAB_JSON), read_merges(folder / MERGES_TXT)
        if (folder / TOKENIZER_JSON).exists():
            _check_same(folder, pieces, read_json(folder / TOKENIZER_JSON))
        added = read_json(folder / ADDED_TOKENS) if (folder / ADDED_TOKENS).exists() else {}
        checked = _checked(folder / VOCAB_JSON, pieces, merges, {text: added[text] for text in added.keys() - pieces})
        return _with_tokenizer(folder, checked, kind, pieces)
    if (folder / TOKENIZER_JSON).exists():
        return _read_tokenizer(folder, kind)
    model = class_of(read_config(folder), kind)[1].model_file
    if model is not None and (folder / model).exists():
        return _with_tokenizer(folder, Vocabulary({}, []), kind, {})
    if _all_there(folder, ENCODER_JSON, VOCAB_BPE, *(["dict.txt"] if by_dictionary else [])):
        pieces, merges = read_json(folder / ENCODER_JSON), read_merges(folder / VOCAB_BPE)
        ids = pieces
        if by_dictionary:
            words = with_mask(Dictionary.load(str(folder / "dict.txt")).symbols, rows)
            pieces = {name: row for row, name in enumerate(piece_names(words, pieces))}
        return _with_tokenizer(folder, _checked(folder / ENCODER_JSON, pieces, merges, ids=ids), kind, pieces)
    return None


def _with_tokenizer(folder: Path, vocabulary: Vocabulary, kind: str, pieces: dict) -> Vocabulary:
    tokenizer, by_default = read_tokenizer(folder, kind, pieces, _usable(vocabulary.merges, pieces))
    rows = {name: row for name, row in tokenizer.get_vocab().items() if name not in by_default}
    if len(set(rows.values())) < len(rows):
        raise UserError(f"{folder} has two tokens of the same number: copy its tokenizer again")
    config = read_config(folder)
    kind = class_unlike_file(config) if (folder / TOKENIZER_JSON).exists() else None
    return Vocabulary(rows, vocabulary.merges, vocabulary.unmade, tokenizer, config, unlike_file=kind)


def with_mask(words: list[str], rows: int) -> list[str]:
    """The words of a dictionary, with <mask> if the model has exactly one row more: fairseq adds it for pretraining."""
    return [*words, "<mask>"] if len(words) == rows - 1 and "<mask>" not in words else list(words)


def _all_there(folder: Path, *names: str) -> bool:
    return all((folder / name).exists() for name in names)


def _read_tokenizer(folder: Path, kind: str) -> Vocabulary:
    path = folder / TOKENIZER_JSON
    content = read_json(path)
    parse_tokenizer(content, path)  # an unusable file is an error before anything else
    model = content.get("model") or {}
    pieces = model.get("vocab") or {}
    checked = Vocabulary({}, [])
    if is_byte_level(content) and isinstance(pieces, dict):
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or []]
        checked = _checked(path, pieces, merges)
    return _with_tokenizer(folder, checked, kind, pieces)


def _check_same(folder: Path, pieces: dict, tokenizer: dict) -> None:
    model = tokenizer.get("model")
    others = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(others, dict):
        for piece in pieces.keys() & others.keys():
            if pieces[piece] != others[piece]:
                raise UserError(
                    f"{folder} has two tokenizers: {piece!r} has the number {pieces[piece]} in vocab.json and "
                    f"{others[piece]} in tokenizer.json; remove the one that is another model's"
                )


def _checked(
    path: Path, pieces: dict, merges: list[str], added: dict[str, int] | None = None, ids: dict | None = None
) -> Vocabulary:
    """
    Args:
        path: of the pieces.
        pieces: the row of each.
        merges: of BPE.
        added: the rows of the tokens that are found in a text before BPE.
        ids: the pieces of BPE, if they differ from the pieces with rows.
    """
    rows = check_ids(path, pieces | (added or {}), least=1)
    if len(set(rows.values())) < len(rows):
        raise UserError(f"{path} gives two pieces the same number: copy it again")
    made = {merge.replace(" ", "") for merge in merges}
    long = [name for name in pieces if len(name) > 1 and not _NOT_MERGED.fullmatch(name)]
    unmade = [name for name in long if name not in made]
    if len(unmade) > _STRAY * len(long):
        raise UserError(
            f"{len(unmade)} of {len(long)} pieces of {path}, such as {unmade[-1]!r}, are made by no merge beside it: "
            "the merges were cut off, or are another model's; copy both again"
        )
    _check_merges(path, pieces if ids is None else ids, merges)
    return Vocabulary(rows, merges, unmade)


def _check_merges(path: Path, pieces: dict, merges: list[str]) -> None:
    for merge in merges:
        parts = merge.split(" ")
        if len(parts) != 2:
            raise UserError(f"a merge beside {path} is no pair of pieces: copy the tokenizer again")
        lacking = next((piece for piece in (*parts, "".join(parts)) if piece not in pieces), None)
        if lacking is not None:
            raise UserError(
                f"{path} lacks {lacking!r}, a piece of the merge {merge!r} beside it: they are of two models, or were "
                "cut off; copy both again"
            )


def gpt2_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """encoder.json in GPT-2's order: the bytes, the result of each merge, the end of text, then all others.

    The words of a dictionary are then those of fairseq's own models for the same pieces.
    """
    merged = ["".join(merge.split(" ")) for merge in vocabulary.merges]
    others = sorted(vocabulary.rows, key=vocabulary.rows.__getitem__)
    known = vocabulary.tokenizer.get_vocab(with_added_tokens=False)
    pieces = [*bytes_to_unicode().values(), *merged, END_OF_TEXT]
    pieces += [spelt(name, known) for name in others if name not in SPECIAL_SYMBOLS and not OWN_WORDS.fullmatch(name)]
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


def fairseq_files(
    vocabulary: Vocabulary, order: list[int | None], by_dictionary: bool, dictionaries: Iterable[str]
) -> dict[str, str | bytes]:
    """The content of each file: the dictionary under the given names, the tokenizer, and the words of its tokens.

    Args:
        order: the row of Hugging Face at each row of fairseq; see `rows.fairseq_order`.
        by_dictionary: see `Family`.

    Raises:
        UserError: a token that cannot stand in a dictionary.
    """
    rows = sum(row is not None for row in order)
    names = {row: name for name, row in vocabulary.rows.items()}
    ids = None
    if vocabulary.is_byte_level and by_dictionary:
        ids = gpt2_ids(vocabulary)
    elif vocabulary.is_byte_level:
        pieces = vocabulary.tokenizer.get_vocab(with_added_tokens=False)
        ids = {spelt(name, pieces): row for name, row in vocabulary.rows.items()}
    words = vocabulary.dictionary_words(rows, ids)
    words = [words[row] for row in order[len(SPECIAL_SYMBOLS) :]]
    bad = next((word for word in words if word.split() != [word] or word in SPECIAL_SYMBOLS), None)
    if bad is not None:
        raise UserError(f"the word {bad!r} of the tokenizer cannot stand in a dictionary of fairseq")
    symbols = {symbol: names[row] for symbol, row in zip(SPECIAL_SYMBOLS, order, strict=False) if row in names}
    symbols |= {symbol: symbol for symbol in vocabulary.symbols if symbol not in symbols.values()}
    dictionary = "".join(f"{word} 0\n" for word in words)
    files = {
        **dict.fromkeys(dictionaries, dictionary),
        **vocabulary.tokenizer_files(),
        TOKENIZER_CONFIG: to_json(vocabulary.config),
        FAIRSEQ_SYMBOLS: to_json(symbols),
    }
    if ids is not None:
        files[ENCODER_JSON] = json.dumps(dict(sorted(ids.items(), key=lambda piece: piece[1])))  # in one order
        if is_plain(vocabulary.tokenizer):
            files[VOCAB_BPE] = "\n".join([_HEADER, *vocabulary.merges, ""])
    return files


def hugging_face_files(names: list[str], merges: list[str], tokenizer: dict) -> dict[str, str]:
    """The text of each file: vocab.json, merges.txt and tokenizer_config.json."""
    rows = {name: row for row, name in enumerate(names)}
    return pieces_and_merges(rows, _usable(merges, set(names))) | {TOKENIZER_CONFIG: to_json(tokenizer)}


def followed_files(names: list[str], merges: list[str], tokenizer: dict, affixes: Affixes) -> dict[str, str]:
    """The text of each file: a tokenizer.json that is followed as it is, and tokenizer_config.json.

    Args:
        names, merges, tokenizer: as of `hugging_face_files`.
        affixes: rows.
    """
    rows = {name: row for row, name in enumerate(names)}
    made = byte_level(rows, _usable(merges, rows), Path(TOKENIZER_JSON))
    named = [token for name, token in tokenizer.items() if name.endswith("_token")]
    texts = dict.fromkeys(
        [*(token["content"] if isinstance(token, dict) else token for token in named), *SPECIAL_SYMBOLS]
    )
    made.add_special_tokens([AddedToken(text, normalized=False, lstrip=text == MASK) for text in texts if text in rows])
    set_affixes(made, Affixes(*([names[row] for row in rows] for rows in affixes)))
    return {
        TOKENIZER_JSON: made.to_str(),
        TOKENIZER_CONFIG: to_json(tokenizer | {"tokenizer_class": "PreTrainedTokenizerFast"}),
    }


def pieces_and_merges(rows: dict[str, int], merges: list[str]) -> dict[str, str]:
    """The text of vocab.json and merges.txt."""
    return {VOCAB_JSON: json.dumps(rows, ensure_ascii=False), MERGES_TXT: "\n".join([_HEADER, *merges, ""])}


def _usable(merges: list[str], pieces: Container[str]) -> list[str]:
    """A dictionary may lack pieces that its data did not have; no tokenizer is made of merges of others."""
    return [merge for merge in merges if all(piece in pieces for piece in (*merge.split(" "), merge.replace(" ", "")))]


def piece_names(words: list[str], tokens: Tokens | dict[str, int]) -> list[str]:
    """The pieces of the words of a dictionary.

    Args:
        tokens: GPT-2's byte-level BPE in fairseq's files, or its encoder.json.
    """
    ids = tokens if isinstance(tokens, dict) else tokens.tokenizer.get_vocab(with_added_tokens=False)
    pieces = {str(each): piece for piece, each in ids.items()}
    return [pieces.get(word, word) for word in words]


def merges_of(tokens: Tokens) -> list[str]:
    """Best first, each "left right"; none of a tokenizer that is no BPE."""
    merges = json.loads(tokens.tokenizer.to_str())["model"].get("merges") or []
    return [" ".join(merge) for merge in merges]


def tokenizer_files(tokens: Tokens | PiecesWithIds) -> dict[str, str | bytes]:
    """The content of each file of a tokenizer that came from Hugging Face, as it came."""
    if isinstance(tokens, PiecesWithIds):
        files = {path.name: path.read_bytes() for path in tokens.files}
    else:
        content = tokens.tokenizer.to_str()
        files = {TOKENIZER_JSON: content}
        if is_byte_level(json.loads(content)):
            pieces = tokens.tokenizer.get_vocab(with_added_tokens=False)
            files |= hugging_face_files(sorted(pieces, key=pieces.__getitem__), merges_of(tokens), {})
    return files | config_of(tokens)


def config_of(tokens: Tokens | PiecesWithIds) -> dict[str, str]:
    """The content of tokenizer_config.json, as it came."""
    config = tokens.path.with_name(TOKENIZER_CONFIG)
    return {TOKENIZER_CONFIG: read_text(config) if config.exists() else "{}\n"}
