"""What the demo made: three examples, and the speed, memory, equality and scores of stock fairseq, kv and el.

Two baselines stand beside the model: the source as it is, and a dictionary, in which the expansion of an abbreviation
is the word that most often has this abbreviation in the training text.
"""

import json
import re
import shutil
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from sacrebleu.metrics import BLEU, CHRF
from tabulate import tabulate

from elseq.arguments import Parser, read_path
from elseq.files import read_lines
from elseq.reports.logs import GenerationLog, read_finished
from elseq.tables import MEBIBYTE

MODES = ("stock", "kv", "el")
EXAMPLES = 3
WORD = re.compile(r"[A-Za-z]+")


class Dictionary:
    """Maps each abbreviation to its most frequent word, the first of equals. Other words stay as they are."""

    def __init__(self, sources: Iterable[str], targets: Iterable[str]):
        """
        Args:
            sources, targets: the training text; a line has as many words in one as in the other.
        """
        words = defaultdict(Counter)
        for source, target in zip(sources, targets, strict=True):
            for abbreviation, word in zip(WORD.findall(source), WORD.findall(target), strict=True):
                words[abbreviation][word] += 1
        self._words = {abbreviation: counter.most_common(1)[0][0] for abbreviation, counter in words.items()}

    def expand(self, source: str) -> str:
        return WORD.sub(lambda word: self._words.get(word[0], word[0]), source)


def scores(hypotheses: Sequence[str], references: Sequence[str]) -> list[str]:
    """BLEU and chrF of sacreBLEU, and how many are the reference, in percent."""
    exact = sum(map(str.__eq__, hypotheses, references)) / len(references)
    metrics = [metric.corpus_score(hypotheses, [references]).score for metric in (BLEU(), CHRF())]
    return [f"{value:.1f}" for value in (*metrics, 100 * exact)]


def examples(sources: Sequence[str], references: Sequence[str], hypotheses: Sequence[str], width: int) -> str:
    """Three of them, evenly from the test set, each line cut to the width."""
    numbers = [(2 * number + 1) * len(sources) // (2 * EXAMPLES) for number in range(EXAMPLES)]
    return "\n\n".join(
        "\n".join(
            f"{kind:<11}{textwrap.shorten(lines[number], width - 11, placeholder=' ...')}"
            for kind, lines in (("source", sources), ("reference", references), ("output", hypotheses))
        )
        for number in numbers
    )


def table(work: Path, runs: dict[str, GenerationLog], sources: Sequence[str], references: Sequence[str]) -> str:
    stock = runs["stock"]
    rows = []
    for mode, run in runs.items():
        peak = json.loads((work / f"{mode}.json").read_text())["peak_bytes"]
        same = sum(run.pieces[number] == pieces for number, pieces in stock.pieces.items())
        state = "-" if run.state_bytes is None else f"{run.state_bytes / MEBIBYTE:.1f}"
        measured = [f"{run.samples_per_second:.1f}", f"{peak / MEBIBYTE:.0f}", state, f"{same}/{len(stock.pieces)}"]
        rows.append([mode, *measured, *scores(run.in_order, references)])
    dictionary = Dictionary(*(read_lines(work / "corpus" / f"train.{side}") for side in ("source", "target")))
    baselines = {"(dictionary)": [dictionary.expand(source) for source in sources], "(source)": sources}
    rows += [[name, *[""] * 4, *scores(lines, references)] for name, lines in baselines.items()]
    headers = ["decoded by", "samples/s", "peak MiB", "state MiB", "identical", "BLEU", "chrF", "exact %"]
    return tabulate(rows, headers, disable_numparse=True, colalign=("left", *["right"] * 7))


def conclusion(runs: dict[str, GenerationLog]) -> str:
    stock, kv, el = (runs[mode] for mode in MODES)
    equal = stock.pieces == kv.pieces == el.pieces
    return (
        f"{'All' if equal else 'Not all'} outputs of kv and el are identical to stock fairseq's. el holds "
        f"{kv.state_bytes / el.state_bytes:.1f} times less decoding state than kv. kv decodes "
        f"{kv.samples_per_second / stock.samples_per_second:.2f} times and el "
        f"{el.samples_per_second / stock.samples_per_second:.2f} times as many samples per second as stock."
    )


def main(arguments=None):
    parser = Parser(prog="python -m elseq.reports.demo", description=__doc__)
    parser.add_argument("work", type=read_path, help="folder of the demo")
    work = parser.parse_args(arguments).work
    runs = {mode: read_finished(work / f"generate-{mode}.log") for mode in MODES}
    sources, references = (list(read_lines(work / "corpus" / f"test.{side}")) for side in ("source", "target"))
    width = min(shutil.get_terminal_size().columns, 120)
    print(examples(sources, references, runs["el"].in_order, width))
    print(f"\n{table(work, runs, sources, references)}\n")
    print("(dictionary): each abbreviation becomes its commonest word in the training text. (source): nothing is done.")
    print("peak: of the whole process; state: what the search remembers. exact: outputs equal to the reference.")
    print(textwrap.fill(conclusion(runs), width))


if __name__ == "__main__":
    main()
