"""Everything on which the output of a run depends. Lines of a run with another fingerprint are never used."""

import hashlib
import json
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

import torch
from fairseq.data import Dictionary

import elseq
from elseq.errors import as_option
from elseq.generator import TextGenerator
from elseq.loading import checkpoint_path, checkpoint_paths
from elseq.options import SEARCH_OPTIONS
from elseq.precision import INT8
from elseq.text_files.job import Job
from elseq.text_files.reading import InputLines

Fingerprint = dict[str, str | int | float | bool | None]

# Entries that are not options of the command line.
_WORDS = {
    "input": "the input was another",
    "model": "the model was another",
    "dictionaries": "the dictionaries were others",
    "language model": "the language model was another",
    "prefixes": "the prefixes were others",
    "subwords": "the subword vocabulary was another",
}


def digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_symbols(dictionaries: Iterable[Dictionary]) -> str:
    return hashlib.sha256(repr([dictionary.symbols for dictionary in dictionaries]).encode()).hexdigest()


def make_fingerprint(
    job: Job, cfg, generator: TextGenerator, lines: InputLines, decoded: dict[str, str]
) -> Fingerprint:
    """The fingerprint of a run.

    Args:
        job, cfg: the options; see `search_configuration`.
        generator: the model.
        lines: the input.
        decoded: the digests of what is decoded, by name.
    """
    parameter = next(generator.model.parameters())
    fused = job.loading.lm_path
    return {
        "input": lines.digest,
        "model": " ".join(map(digest_file, checkpoint_paths(job.model))),
        "dictionaries": digest_symbols((generator.task.source_dictionary, generator.task.target_dictionary)),
        **decoded,
        **({} if fused is None else {"language model": digest_file(checkpoint_path(fused))}),
        "subwords": None if generator.bpe is None else generator.bpe.digest(),
        **job.loading.deciding(),
        "--device": parameter.device.type,
        "--dtype": INT8 if job.loading.dtype == INT8 else str(parameter.dtype).removeprefix("torch."),
        **job.batching.deciding(),
        **lines.form.deciding(),
        **job.form.deciding(),
        **{as_option(name): _plain(cfg[name]) for name in SEARCH_OPTIONS},
        "elseq": elseq.__version__,
        "torch": torch.__version__,
    }


def _plain(value):
    """An option without fairseq's enumerations."""
    return str(value) if isinstance(value, Enum) else value


def differences(former: Fingerprint, present: Fingerprint) -> str:
    """The differences of the former run, as text."""
    told = []
    for name in {**former, **present}:
        before, now = former.get(name), present.get(name)
        if before != now and name != "tokens":
            told.append(_WORDS.get(name) or f"{name} was {_value(before)} and not {_value(now)}")
    return ", ".join(told) or _WORDS["subwords"]  # other tokens for the same text and dictionaries


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
