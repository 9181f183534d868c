"""Sources of any length: time and memory of encoding them in windows, and of attending to all of their states.

A model with random weights (BART-large unless --arch names another) decodes one source of each length under kv and el,
with attention to all states (exact) and to the k of the largest scores (top-k). All rows of a length take turns.
"""

import argparse

from elseq.arguments import count, count_or_zero
from elseq.benchmark.arguments import add_choices, add_counts, add_run_options, benchmark_parser, parse_tiny
from elseq.options import registered_methods

LENGTHS = [1024, 4096, 16384, 65536, 262144]
SCORES = ("exact", "top-k")
TINY = {"lengths": [16, 64], "source_window": 16, "output_length": 5}


def parse(arguments: list[str]) -> argparse.Namespace:
    """
    Raises:
        UserError: an option or a value that cannot be used.
    """
    parser = benchmark_parser("long-input", __doc__)
    work = parser.add_argument_group("what is measured")
    work.add_argument("--arch", default="bart_large", help="an encoder-decoder (default: %(default)s)")
    add_counts(work, "--lengths", LENGTHS, "tokens of a source")
    add_choices(work, "--modes", registered_methods())
    add_choices(work, "--scores", SCORES)
    work.add_argument("--source-window", type=count, default=1024, help="tokens (default: %(default)s)")
    work.add_argument("--source-window-overlap", type=count_or_zero, help="tokens (default: half of a window)")
    work.add_argument("--apply-top-k", type=count, help="k (default: the tokens of a window)")
    work.add_argument("--batch", type=count, default=1, help="sources (default: %(default)s)")
    work.add_argument("--beam", type=count, default=4, help="(default: %(default)s)")
    work.add_argument("--output-length", type=count, default=60, help="tokens (default: %(default)s)")
    add_run_options(parser)
    return parse_tiny(parser, arguments, TINY, "a tiny model, to see in seconds whether it runs")
