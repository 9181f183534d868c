"""Everything on which the output of a run depends. Lines of a run with another fingerprint are never used."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from fairseq.data import Dictionary

Fingerprint = dict[str, str | int | float | bool | None]

# Entries that are not options of the command line.
_WORDS = {"input": "the input was another", "model": "the model was another"}
_WORDS["dictionaries"] = "the dictionaries were others"
_WORDS["language model"] = "the language model was another"
_WORDS["prefixes"] = "the prefixes were others"
_TOKENS = _WORDS["subwords"] = "the subword vocabulary was another"


def digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_symbols(dictionaries: Iterable[Dictionary]) -> str:
    return hashlib.sha256(repr([dictionary.symbols for dictionary in dictionaries]).encode()).hexdigest()


def differences(former: Fingerprint, present: Fingerprint) -> str:
    """The differences of the former run, as text."""
    told = []
    for name in {**former, **present}:
        before, now = former.get(name), present.get(name)
        if before != now and name != "tokens":
            told.append(_WORDS.get(name) or f"{name} was {_value(before)} and not {_value(now)}")
    return ", ".join(told) or _TOKENS  # other tokens for the same text and dictionaries


def _value(value) -> str:
    return "left out" if value is None or value is False else "given" if value is True else str(value)


LARGEST = 2**16  # bytes


def read_fingerprint(content: bytes) -> Fingerprint | None:
    """The fingerprint from JSON, or None if it is not one."""
    if len(content) > LARGEST:
        return None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not all(map(_is_value, found.values())):
        return None
    return found if all(map(str.isprintable, found)) else None


def _is_value(value) -> bool:
    return value.isprintable() if isinstance(value, str) else value is None or isinstance(value, int | float)
