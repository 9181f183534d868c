#!/usr/bin/env python3
"""Tabulate what the demo measured: speed, memory, equality and ROUGE of stock fairseq, kv and el."""

import argparse
import json
import re
from pathlib import Path

from generation_log import read_log
from rouge_score import rouge_scorer
from tabulate import tabulate
from tqdm import tqdm

MODES = ("stock", "kv", "el")
METRICS = ("rouge1", "rouge2", "rougeLsum")
MEBIBYTE = 2**20


def rouge(hypotheses, references):
    """Mean F1 of each metric, in percent."""
    scorer = rouge_scorer.RougeScorer(METRICS, use_stemmer=True)
    totals = dict.fromkeys(METRICS, 0.0)
    for number, reference in references.items():
        for metric, score in scorer.score(reference, hypotheses[number]).items():
            totals[metric] += 100 * score.fmeasure / len(references)
    return [f"{totals[metric]:.1f}" for metric in METRICS]


def lead(work, references):
    """The first sentence of each document: what a summarizer should beat."""
    documents = (work / "corpus" / "test.source").read_text(encoding="utf-8").splitlines()
    return {number: re.split(r"(?<=[.!?])\s", documents[number], maxsplit=1)[0] for number in references}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder of the demo")
    work = parser.parse_args(arguments).work
    runs = {mode: read_log(work / f"generate-{mode}.log") for mode in MODES}
    stock = runs["stock"]

    rows = []
    for mode in tqdm(MODES, desc="ROUGE", leave=False):
        run = runs[mode]
        peak = json.loads((work / f"{mode}.json").read_text())["peak_bytes"]
        same = sum(run.pieces[number] == pieces for number, pieces in stock.pieces.items())
        state = "-" if run.state_bytes is None else f"{run.state_bytes / MEBIBYTE:.1f}"
        measured = [f"{run.samples_per_second:.1f}", f"{peak / MEBIBYTE:.0f}", state, f"{same}/{len(stock.pieces)}"]
        rows.append([mode, *measured, *rouge(run.hypotheses, stock.references)])
    rows.append(["lead", *[""] * 4, *rouge(lead(work, stock.references), stock.references)])
    headers = ["decoded by", "samples/s", "peak MB", "state MB", "identical", "ROUGE-1", "ROUGE-2", "ROUGE-Lsum"]
    print(tabulate(rows, headers, disable_numparse=True, colalign=("left", *["right"] * 7)))
    print("\nlead: the first sentence of the document, for orientation.")
    print(conclusion(runs))


def conclusion(runs):
    """One sentence, from the figures."""
    stock, kv, el = (runs[mode] for mode in MODES)
    equal = stock.pieces == kv.pieces == el.pieces
    return (
        f"{'All' if equal else 'Not all'} hypotheses of kv and el are stock fairseq's, word for word; el holds "
        f"{kv.state_bytes / el.state_bytes:.1f} times less decoding state than kv; the speed is "
        f"{kv.samples_per_second / stock.samples_per_second:.2f} (kv) and "
        f"{el.samples_per_second / stock.samples_per_second:.2f} (el) times that of stock."
    )


if __name__ == "__main__":
    main()
