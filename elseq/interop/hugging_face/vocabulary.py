"""Byte-level BPE in the files of both sides.

Hugging Face: vocab.json (piece: number, which is the row of the embedding) and merges.txt, or both in tokenizer.json.
fairseq: encoder.json (piece: number of GPT-2's) and vocab.bpe, whose numbers are the words of a dictionary, dict.txt;
the place of a word in the dictionary is the row, after the four special symbols.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from fairseq.data import Dictionary
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode

from elseq.errors import UserError
from elseq.interop.hugging_face.folders import check_file, read_json

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # the first of every dictionary
END_OF_TEXT = "<|endoftext|>"
_OWN_WORDS = re.compile(r"<mask>|madeupword\d+")  # fairseq has these in the dictionary as they are, not as numbers
_NOT_MERGED = re.compile(r"<.*>|\[.*\]|madeupword\d+")
_STRAY = 0.01  # share of the pieces that somebody may have written into a vocabulary by hand
_HEADER = "#version: 0.2"  # without it fairseq loses the first merge


@dataclass(frozen=True)
class Vocabulary:
    """Of Hugging Face: the row of each piece, and the merges, best first, each "left right".

    `unmade` are the few pieces that no merge makes, so that they are found in no text.
    """

    rows: dict[str, int]
    merges: list[str]
    unmade: list[str] = field(default_factory=list)

    def names(self, rows: int) -> list[str]:
        """What each row of an embedding stands for; fairseq's word for nothing where that is not known."""
        found = {row: name for name, row in self.rows.items()}
        fillers = (name for name in map("madeupword{:04d}".format, range(2 * rows)) if name not in self.rows)
        return [found[row] if row in found else next(fillers) for row in range(rows)]


def read_vocabulary(folder: Path, by_dictionary: bool, rows: int = 0) -> Vocabulary | None:
    """A folder's, in any of its forms; None if there is none.

    Args:
        folder: of a model, or of fairseq's files.
        by_dictionary: the rows of a model are, in fairseq's files, the places in dict.txt (BART); otherwise they are
            the numbers in encoder.json (GPT-2).
        rows: of the model's embedding, if they are known; see `with_mask`.

    Raises:
        UserError: a file that cannot be used.
    """
    if _all_there(folder, "vocab.json", "merges.txt"):
        pieces, merges = read_json(folder / "vocab.json"), _read_merges(folder / "merges.txt")
        if (folder / "tokenizer.json").exists():
            _check_same(folder, pieces, read_json(folder / "tokenizer.json"))
        added = {}
        if (folder / "added_tokens.json").exists():
            added = _as_bytes(read_json(folder / "added_tokens.json"))
        return _checked(folder / "vocab.json", pieces, merges, added)
    if (folder / "tokenizer.json").exists():
        return _read_tokenizer(folder / "tokenizer.json")
    if _all_there(folder, "encoder.json", "vocab.bpe", *(["dict.txt"] if by_dictionary else [])):
        pieces, merges = read_json(folder / "encoder.json"), _read_merges(folder / "vocab.bpe")
        numbers = pieces
        if by_dictionary:
            words = with_mask(Dictionary.load(str(folder / "dict.txt")).symbols, rows)
            pieces = {name: row for row, name in enumerate(piece_names(words, pieces))}
        return _checked(folder / "encoder.json", pieces, merges, numbers=numbers)
    return None


def with_mask(words: list[str], rows: int) -> list[str]:
    """The words of a dictionary, with <mask> where a model has just this row more: fairseq adds it for pretraining."""
    return [*words, "<mask>"] if len(words) == rows - 1 and "<mask>" not in words else list(words)


def _all_there(folder: Path, *names: str) -> bool:
    return all((folder / name).exists() for name in names)


def _read_merges(path: Path) -> list[str]:
    check_file(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): copy it again") from error
    return [line for number, line in enumerate(lines) if line and (number or not line.startswith("#version"))]


def _as_bytes(added: dict[str, int]) -> dict[str, int]:
    """Tokens that were added as text, spelt in the letters of the bytes, as BPE's own pieces are."""
    letters = bytes_to_unicode()
    return {"".join(letters[byte] for byte in text.encode()): row for text, row in added.items()}


def _read_tokenizer(path: Path) -> Vocabulary:
    content = read_json(path)
    model = content.get("model") or {}
    if model.get("type", "BPE") != "BPE" or "ByteLevel" not in json.dumps(content.get("pre_tokenizer")):
        raise UserError(f"{path} is no byte-level BPE, the only tokenizer of BART and GPT-2 that fairseq has")
    added = {entry["content"]: entry["id"] for entry in content.get("added_tokens") or []}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or []]
    rows = model.get("vocab") or {}
    new = {text: row for text, row in added.items() if text not in rows}
    return _checked(path, rows, merges, _as_bytes(new))


def _check_same(folder: Path, pieces: dict, tokenizer: dict) -> None:
    others = (tokenizer.get("model") or {}).get("vocab")
    if isinstance(others, dict):
        for piece in pieces.keys() & others.keys():
            if pieces[piece] != others[piece]:
                raise UserError(
                    f"{folder} has two tokenizers: {piece!r} has the number {pieces[piece]} in vocab.json and "
                    f"{others[piece]} in tokenizer.json; remove the one that is another model's"
                )


def _checked(
    path: Path, pieces: dict, merges: list[str], added: dict[str, int] | None = None, numbers: dict | None = None
) -> Vocabulary:
    """
    Args:
        path: of the pieces.
        pieces: the row of each.
        merges: of BPE.
        added: the rows of what is found in a text before BPE sees it.
        numbers: the pieces that BPE itself knows, if those that have rows are others.
    """
    rows = pieces | (added or {})
    if not rows or not all(isinstance(number, int) and number >= 0 for number in rows.values()):
        raise UserError(f"{path} does not give each piece a number: copy it again")
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
    _check_merges(path, pieces if numbers is None else numbers, merges)
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


def check_symbols(vocabulary: Vocabulary, config: dict, folder: Path) -> None:
    """
    Args:
        vocabulary: of the folder.
        config: a BART's config.json.

    Raises:
        UserError: the special symbols are not where the configuration has them: it is of another model.
    """
    for name, option in zip(SPECIAL, ("bos_token_id", "pad_token_id", "eos_token_id"), strict=False):
        if vocabulary.rows.get(name) != config[option]:
            place = f"number {vocabulary.rows[name]}" if name in vocabulary.rows else "missing"
            raise UserError(
                f"the tokenizer in {folder} is of another model, since its {name} is {place}, and config.json has "
                f"{option}: {config[option]}: name the folder of the model's own by --data"
            )


def check_end(vocabulary: Vocabulary, config: dict, folder: Path) -> None:
    """
    Args:
        vocabulary: of the folder.
        config: a GPT-2's config.json.

    Raises:
        UserError: what ends a text is a word of the vocabulary: it is of another model.
    """
    end = config["eos_token_id"]
    [name, *_] = [name for name, row in vocabulary.rows.items() if row == end] or [""]
    is_word = any(letter.isalpha() for letter in name.removeprefix("Ġ"))  # "\n", "###" may end a text on purpose
    if is_word and name in {merge.replace(" ", "") for merge in vocabulary.merges}:
        raise UserError(
            f"the tokenizer in {folder} is of another model, since number {end}, with which by config.json a text ends "
            f"(eos_token_id), is {name!r}: name the folder of the model's own by --data"
        )


def gpt2_numbers(vocabulary: Vocabulary) -> dict[str, int]:
    """encoder.json as GPT-2 counts: the bytes, what each merge makes, the end of text; then whatever else there is.

    So the words of a dictionary are those that fairseq's own models have for the same pieces.
    """
    merged = ["".join(merge.split(" ")) for merge in vocabulary.merges]
    others = sorted(vocabulary.rows, key=vocabulary.rows.__getitem__)
    pieces = [*bytes_to_unicode().values(), *merged, END_OF_TEXT]
    pieces += [name for name in others if name not in SPECIAL and not _OWN_WORDS.fullmatch(name)]
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


def dictionary_words(names: list[str], numbers: dict[str, int]) -> list[str]:
    """The words of a dictionary for the pieces, which are in the order of its rows."""
    return [str(numbers[name]) if name in numbers else name for name in names]


def fairseq_files(words: list[str], numbers: dict[str, int], merges: list[str], *dictionaries: str) -> dict[str, str]:
    """The text of each file: the dictionary under the names given, encoder.json and vocab.bpe."""
    dictionary = "".join(f"{word} 0\n" for word in words)
    return {
        **dict.fromkeys(dictionaries, dictionary),
        "encoder.json": json.dumps(numbers),
        "vocab.bpe": "\n".join([_HEADER, *merges, ""]),
    }


def hugging_face_files(names: list[str], merges: list[str], tokenizer: dict) -> dict[str, str]:
    """The text of each file: vocab.json, merges.txt and tokenizer_config.json."""
    known = set(names)
    # A dictionary may lack pieces that its data did not have; transformers does not load merges of others.
    usable = [merge for merge in merges if known.issuperset([*merge.split(" "), merge.replace(" ", "")])]
    return {
        "vocab.json": json.dumps({name: row for row, name in enumerate(names)}, ensure_ascii=False),
        "merges.txt": "\n".join([_HEADER, *usable, ""]),
        "tokenizer_config.json": json.dumps(tokenizer, indent=2) + "\n",
    }


def piece_names(words: list[str], numbers: dict[str, int]) -> list[str]:
    """The pieces that the words of a dictionary stand for."""
    pieces = {str(number): piece for piece, number in numbers.items()}
    return [pieces.get(word, word) for word in words]
