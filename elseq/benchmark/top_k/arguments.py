"""Top-k attention and feed-forward layers: memory and time, forward and backward, as in the figures of 2106.06899.

Attention is causal, with 12 heads of width 64 and batch 1; feed-forward layers have width 768. Each method at each size
is a process of its own. What would not fit the memory or would take too long is skipped, and the results say so.
"""

import argparse

from elseq.arguments import count
from elseq.benchmark.arguments import add_choices, add_counts, add_run_options, benchmark_parser, parse_tiny
from elseq.errors import UserError

METHODS = {
    "attention": ("vanilla", "chunked", "top-k", "sdpa"),
    "feed-forward": ("vanilla", "top-k"),
    "chunks": ("chunked", "top-k"),
}
LENGTHS = [1024, 2048, 4096, 8192, 10240, 16384, 32768, 65536]
WIDTHS = [2048, 4096, 6144, 8192, 16384, 32768, 65536]
CHUNK_SIZES = [128, 256, 512, 1024, 2048]
TINY = {
    "lengths": [32, 64],
    "widths": [32, 64],
    "chunk_sizes": [16, 32],
    "chunks_length": 64,
    "tokens": 64,
    "attention_top_k": 8,
    "ffn_top_k": 8,
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """
    Raises:
        UserError: an option or a value that cannot be used.
    """
    parser = benchmark_parser("top-k", __doc__)
    work = parser.add_argument_group("what is measured")
    add_choices(work, "--what", METHODS)
    add_choices(work, "--methods", METHODS["attention"])
    add_counts(work, "--lengths", LENGTHS, "of attention")
    work.add_argument("--layers", type=count, default=1, help="of attention; 2 or more: with projections (default: 1)")
    work.add_argument("--attention-top-k", type=count, help="(default: 128, or 64 with several layers)")
    work.add_argument("--query-chunk-size", type=count, help="queries; the paper's is 1024 (default: elseq's rule)")
    work.add_argument("--tokens", type=count, default=16384, help="of feed-forward layers (default: %(default)s)")
    add_counts(work, "--widths", WIDTHS, "units of feed-forward layers")
    work.add_argument("--ffn-top-k", type=count, default=512, help="(default: %(default)s)")
    add_counts(work, "--chunk-sizes", CHUNK_SIZES, "queries")
    work.add_argument("--chunks-length", type=count, default=8192, help="length for chunks (default: %(default)s)")
    runs = parser.add_argument_group("runs")
    runs.add_argument(
        "--seconds-limit", type=_amount, default=120, help="for a pass, and for the repeats (default: %(default)s)"
    )
    runs.add_argument("--memory-limit", type=_amount, help="GiB for a run (default: what is available)")
    add_run_options(runs)
    args = parse_tiny(parser, arguments, TINY, "tiny layers, to see in seconds whether it runs")
    if not any(method in METHODS[what] for what in args.what for method in args.methods):
        raise UserError(f"--methods {','.join(args.methods)} has none for --what {','.join(args.what)}")
    return args


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise UserError(f"{text!r} is not a number above 0")
    return value
