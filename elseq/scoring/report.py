"""The scores of systems as JSON and as a table."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

import numpy as np

import elseq
from elseq.scoring.published import PUBLISHED
from elseq.scoring.statistics import INTERVAL, Score, interval, share_above
from elseq.tables import markdown

HEADINGS = {
    "bleu4": "BLEU-4",
    "sacrebleu": "sacreBLEU",
    "meteor": "METEOR (nltk)",
    "rougeL_coco": "ROUGE-L (COCO)",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L (rouge-score)",
    "rougeLsum": "ROUGE-Lsum",
}
PARTS = ("precision", "recall")  # of an F1 score, as NAME_precision and NAME_recall
LIBRARIES = ("rouge-score", "nltk", "sacrebleu", "numpy")


class System(NamedTuple):
    """
    Attributes:
        name: of the file of its hypotheses.
        empty: how many of them are blank.
        scores: by name.
    """

    name: str
    empty: int
    scores: dict[str, Score]


def report(
    systems: Sequence[System],
    resampled: Sequence[dict[str, np.ndarray]] | None,
    settings: dict,
    notes: Sequence[str],
    setting: str | None,
) -> dict:
    """The report that is written as JSON.

    Args:
        systems: the others are compared with the first.
        resampled: of each system, of each score its values on resamples.
        settings: of this run; "lines" is how many the files have, "examples" how many are scored.
        notes: sentences that a reader of the scores needs.
        setting: name of published scores to show.
    """
    entries = []
    for number, system in enumerate(systems):
        scores = {name: {"value": score.total} for name, score in system.scores.items()}
        if resampled is not None:
            for name, entry in scores.items():
                entry["low"], entry["high"] = interval(resampled[number][name])
                if number:
                    entry["better_than_first"] = share_above(resampled[number][name], resampled[0][name])
        entries.append({"hypotheses": system.name, "empty": system.empty, "scores": scores})
    published = {"setting": setting, **PUBLISHED[setting]._asdict()} if setting else None
    return {
        "settings": settings,
        "systems": entries,
        "published": published,
        "notes": [*notes, *_notes(systems, resampled, settings, published)],
        "versions": {"elseq": elseq.__version__, **{library: version(library) for library in LIBRARIES}},
    }


def _notes(systems, resampled, settings, published) -> list[str]:
    notes = [f"{settings['examples']:,} examples."]
    for system in systems:
        if system.empty:
            notes.append(f"Empty hypotheses of {system.name}: {system.empty:,}; they score 0.")
    if settings["empty_references"]:
        notes.append(f"Empty references: {settings['empty_references']:,}.")
    if resampled is not None:
        notes.append(
            f"{INTERVAL:.0%} intervals by bootstrap: {settings['bootstrap']:,} resamples of the examples, seed "
            f"{settings['seed']}."
        )
        if len(systems) > 1:
            notes.append(
                f"better than the first: share of the resamples in which a score is above {systems[0].name}'s."
            )
    if published:
        note = f"published: {published['source']}, {published['examples']:,} references"
        others = published["examples"] != settings["lines"]
        notes.append(f"{note}, not these {settings['lines']:,}: do not compare." if others else f"{note}.")
        if "meteor" in published["scores"] and "meteor" in systems[0].scores:
            notes.append(
                "The published METEOR is that of its authors' own program, which gives other figures than nltk."
            )
    return notes


def table(content: dict) -> str:
    """A row for each score of each system; columns that would be empty are left out."""
    published = (content["published"] or {}).get("scores", {})
    rows = []
    for system in content["systems"]:
        for name in filter(system["scores"].get, HEADINGS):
            score = system["scores"][name]
            parts = [system["scores"].get(f"{name}_{part}") for part in PARTS]
            better = score.get("better_than_first")
            rows.append(
                {
                    "hypotheses": system["hypotheses"],
                    "score": HEADINGS[name],
                    "F1" if parts[0] else "value": f"{score['value']:.2f}",
                    f"{INTERVAL:.0%} interval": f"{score['low']:.2f} to {score['high']:.2f}" if "low" in score else "",
                    **{part: f"{value['value']:.2f}" for part, value in zip(PARTS, parts, strict=True) if value},
                    "better than the first": "" if better is None else f"{better:.1%}",
                    "published": f"{published[name]:.2f}" if name in published else "",
                }
            )
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    if len(content["systems"]) == 1:
        columns.remove("hypotheses")
    return markdown(columns, [[row[name] for name in columns] for row in rows], left=["hypotheses", "score"])
