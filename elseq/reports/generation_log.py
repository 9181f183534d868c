"""What a log of fairseq-generate says."""

import re
from pathlib import Path
from typing import NamedTuple


class GenerationLog(NamedTuple):
    pieces: dict[int, str]  # best hypothesis of each sentence, as the model's pieces
    scores: dict[int, float]  # its score, base 2
    hypotheses: dict[int, str]  # the same as text
    references: dict[int, str]
    samples_per_second: float
    state_bytes: int | None  # None where fairseq decoded
    quality: str  # the last line: BLEU


def read_log(path: Path) -> GenerationLog:
    text = path.read_text(encoding="utf-8")
    found = {"H": {}, "D": {}, "T": {}}
    for kind, number, fields in re.findall(r"^([HDT])-(\d+)\t(.*)$", text, flags=re.MULTILINE):
        found[kind].setdefault(int(number), fields)
    hypotheses = {number: fields.split("\t") for number, fields in found["H"].items()}
    state = re.search(r"decoding state: peak (\d+) bytes", text)
    quality = re.search(r"^Generate .*?: (.*)$", text, flags=re.MULTILINE)
    return GenerationLog(
        pieces={number: fields[1] for number, fields in hypotheses.items()},
        scores={number: float(fields[0]) for number, fields in hypotheses.items()},
        hypotheses={number: fields.partition("\t")[2] for number, fields in found["D"].items()},
        references=found["T"],
        samples_per_second=float(re.search(r"Translated .* \(([\d.]+) sentences/s", text)[1]),
        state_bytes=int(state[1]) if state else None,
        quality=quality[1] if quality else "",
    )
