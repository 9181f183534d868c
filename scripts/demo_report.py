#!/usr/bin/env python3
"""Tabulate what the demo measured: speed, memory, equality and ROUGE of stock fairseq, kv and el."""

import argparse
import json
import re
from pathlib import Path

from rouge_score import rouge_scorer
from tabulate import tabulate
from tqdm import tqdm

MODES = ("stock", "kv", "el")
METRICS = ("rouge1", "rouge2", "rougeLsum")
MEBIBYTE = 2**20


def read_log(path):
    """Pieces, text and reference of each sentence, samples per second, and bytes of the decoding state or None."""
    text = path.read_text(encoding="utf-8")
    pieces, hypotheses, references = {}, {}, {}
    for kind, number, fields in re.findall(r"^([HDT])-(\d+)\t(.*)$", text, flags=re.MULTILINE):
        if kind == "T":
            references[int(number)] = fields
        else:
            (pieces if kind == "H" else hypotheses)[int(number)] = fields.partition("\t")[2]
    speed = float(re.search(r"Translated .* \(([\d.]+) sentences/s", text)[1])
    state = re.search(r"decoding state: peak (\d+) bytes", text)
    return pieces, hypotheses, references, speed, int(state[1]) if state else None


def rouge(hypotheses, references):
    """Mean F1 of each metric, in percent."""
    scorer = rouge_scorer.RougeScorer(METRICS, use_stemmer=True)
    totals = dict.fromkeys(METRICS, 0.0)
    for number, reference in references.items():
        for metric, score in scorer.score(reference, hypotheses[number]).items():
            totals[metric] += 100 * score.fmeasure / len(references)
    return [totals[metric] for metric in METRICS]


def lead(work, references):
    """The first sentence of each document: what a summarizer should beat."""
    documents = (work / "corpus" / "test.source").read_text(encoding="utf-8").splitlines()
    return {number: re.split(r"(?<=[.!?])\s", documents[number], maxsplit=1)[0] for number in references}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder of the demo")
    work = parser.parse_args(arguments).work
    runs = {mode: read_log(work / f"generate-{mode}.log") for mode in MODES}
    stock, _, references, stock_speed, _ = runs["stock"]

    rows = []
    for mode in tqdm(MODES, desc="ROUGE", leave=False):
        pieces, hypotheses, _, speed, state = runs[mode]
        peak = json.loads((work / f"{mode}.json").read_text())["peak_bytes"]
        same = sum(pieces[number] == stock[number] for number in stock)
        shown = "-" if state is None else f"{state / MEBIBYTE:.1f}"
        scores = [f"{score:.1f}" for score in rouge(hypotheses, references)]
        rows.append([mode, f"{speed:.1f}", f"{peak / MEBIBYTE:.0f}", shown, f"{same}/{len(stock)}", *scores])
    rows.append(["lead", "", "", "", "", *(f"{score:.1f}" for score in rouge(lead(work, references), references))])
    headers = ["decoded by", "samples/s", "peak MB", "state MB", "identical", "ROUGE-1", "ROUGE-2", "ROUGE-Lsum"]
    print(tabulate(rows, headers, disable_numparse=True, colalign=("left", *["right"] * 7)))
    print()
    print(conclusion(runs, stock_speed))


def conclusion(runs, stock_speed):
    """One sentence, from the figures."""
    stock = runs["stock"][0]
    equal = all(runs[mode][0] == stock for mode in MODES)
    ratio = runs["kv"][4] / runs["el"][4]
    return (
        f"{'All' if equal else 'Not all'} hypotheses of kv and el are stock fairseq's, word for word; el holds "
        f"{ratio:.1f} times less decoding state than kv; the speed is {runs['kv'][3] / stock_speed:.2f} (kv) and "
        f"{runs['el'][3] / stock_speed:.2f} (el) times that of stock."
    )


if __name__ == "__main__":
    main()
