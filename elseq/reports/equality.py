"""Compare the hypotheses of elseq with those of stock fairseq, from logs of fairseq-generate.

Usage: equality FOLDER SETTING [SETTING ...], where FOLDER holds SETTING-{stock,kv,el}.log
"""

import argparse
import math

from elseq.arguments import Parser, read_path
from elseq.reports.logs import read_finished
from elseq.tables import markdown


def main(arguments=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=read_path)
    parser.add_argument("settings", nargs="+", metavar="SETTING")
    options = parser.parse_args(arguments)

    rows, different = [], []
    for setting in options.settings:
        stock = read_finished(options.folder / f"{setting}-stock.log")
        row = [setting, stock.quality.partition(",")[0]]
        for mode in ("kv", "el"):
            other = read_finished(options.folder / f"{setting}-{mode}.log")
            same = [number for number in stock.pieces if other.pieces[number] == stock.pieces[number]]
            largest = max((abs(other.scores[number] - stock.scores[number]) for number in same), default=math.nan)
            row += [f"{len(same)}/{len(stock.pieces)}", f"{largest:.1e}"]
            for number in sorted(stock.pieces.keys() - same):
                gap = other.scores[number] - stock.scores[number]
                different.append(f"- {setting}, {mode}, sentence {number}, score {gap:+.1e}")
                different += [f"  - stock: {stock.pieces[number]}", f"  - {mode}: {other.pieces[number]}"]
        rows.append(row)
    headers = ["setting", "stock", "kv identical", "largest difference in score", "el identical", "largest difference"]
    print(markdown(headers, rows))
    print("\n" + ("\n".join(["Different hypotheses:", *different]) if different else "No hypothesis differs."))


if __name__ == "__main__":
    main()
