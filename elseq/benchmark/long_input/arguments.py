"""Sources of any length: time and memory of encoding them in windows, and of attending to all of their states.

A model with random weights (BART-large unless --arch names another) decodes one source of each length under kv and el,
with attention to all states (exact) and to the k of the largest scores (top-k). All rows of a length take turns.
"""

import argparse

from elseq.arguments import Parser, choices, count, count_or_zero, counts
from elseq.benchmark.arguments import add_run_options
from elseq.options import registered_methods

LENGTHS = [1024, 4096, 16384, 65536, 262144]
SCORES = ("exact", "top-k")
TINY = {"lengths": [16, 64], "source_window": 16, "output_length": 5}


def parse(arguments: list[str]) -> argparse.Namespace:
    """
    Raises:
        UserError: an option or a value that cannot be used.
    """
    parser = Parser(
        prog="elseq-benchmark long-input", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    work = parser.add_argument_group("what is measured")
    work.add_argument("--arch", default="bart_large", help="an encoder-decoder (default: %(default)s)")
    listed = ",".join(map(str, LENGTHS))
    work.add_argument("--lengths", type=counts, default=LENGTHS, help=f"tokens of a source (default: {listed})")
    names = registered_methods()
    work.add_argument("--modes", type=choices(names), default=list(names), help=f"of {','.join(names)} (default: all)")
    work.add_argument(
        "--scores", type=choices(SCORES), default=list(SCORES), help=f"of {','.join(SCORES)} (default: all)"
    )
    work.add_argument("--source-window", type=count, default=1024, help="tokens (default: %(default)s)")
    work.add_argument("--source-window-overlap", type=count_or_zero, help="tokens (default: half of a window)")
    work.add_argument("--apply-top-k", type=count, help="k (default: the tokens of a window)")
    work.add_argument("--batch", type=count, default=1, help="sources (default: %(default)s)")
    work.add_argument("--beam", type=count, default=4, help="(default: %(default)s)")
    work.add_argument("--output-length", type=count, default=60, help="tokens (default: %(default)s)")
    add_run_options(parser)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to see in seconds whether it runs")
    if "--tiny" in arguments:
        parser.set_defaults(**TINY)
    return parser.parse_args(arguments)
