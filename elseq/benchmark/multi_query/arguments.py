"""Multi-head and multi-query attention: the speed table of 1911.02150 (table 3), measured here, beside its figures.

The models are the paper's (transformer_shazeer and mq_transformer_shazeer, 211 million parameters) with random weights,
with and without local attention in the decoder, and the first under stock fairseq as well.
"""

import argparse

from elseq.arguments import choices, count
from elseq.benchmark.arguments import FLOATS, add_choices, add_run_options, benchmark_parser, check_int8, parse_tiny
from elseq.benchmark.multi_query.variants import BEAMS, VARIANTS
from elseq.errors import UserError
from elseq.options import INT8

# Sentences. On a GPU as in the paper (training: 32,768 target tokens), if they fit; on a CPU a run takes minutes.
GPU_BATCHES = {"training": 256, "greedy": 1024, "beam": 1024}
CPU_BATCHES = {"training": 4, "greedy": 16, "beam": 16}


def parse(arguments: list[str]) -> argparse.Namespace:
    """
    Raises:
        UserError: an option or a value that cannot be used.
    """
    epilog = "A batch that is not given is halved until it fits; ratios are of rows with the same batch."
    parser = benchmark_parser("multi-query", __doc__, epilog)
    add_choices(parser, "--variants", VARIANTS)
    parser.add_argument(
        "--columns", type=choices(BEAMS), help=f"of {','.join(BEAMS)} (default: all; in int8 all but training)"
    )
    parser.add_argument("--batch", type=count, help="sentences in a batch, in every column")
    for name, column in (("train", "training"), ("greedy", "greedy"), ("beam", "beam")):
        parser.add_argument(
            f"--batch-{name}",
            dest=f"batch_{column}",
            type=count,
            help=f"the same in one column (default: {CPU_BATCHES[column]} on a CPU, {GPU_BATCHES[column]} on a GPU)",
        )
    add_run_options(parser, dtypes=(*FLOATS, INT8))
    args = parse_tiny(parser, arguments, {}, "tiny models, to see in seconds whether it runs")
    check_int8([args.dtype], args.device)
    if args.columns is None:
        args.columns = [column for column in BEAMS if (args.dtype, column) != (INT8, "training")]
    elif args.dtype == INT8 and "training" in args.columns:
        raise UserError("--columns training has no int8, in which models only decode: leave it out")
    return args
