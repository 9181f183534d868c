"""EL-attention: the tables of 2105.04779 measured here, beside their figures, and NVIDIA's protocol for BART.

speed: samples a second of beam search, diverse beam search and greedy search, by the Transformer of 270 million
  parameters, BART-large and GPT-2, at the largest batch that fits the memory.
batch: samples a second of BART-large by batch.
memory: what BART-large keeps of the sources by batch and length, by count and as it is there.
nvidia: documents a second of BART-large as TensorRT-LLM's documentation measures it: greedy, sources of 260 to 440
  tokens, 128 tokens out.

Models have random weights, and all outputs the same length. Stock fairseq is measured with keys and values copied for
each hypothesis, as its Transformer has them, and shared by the hypotheses of a sentence, as its BART has them.
"""

import argparse

from elseq.arguments import choices, count, count_or_zero, counts, parse_bytes
from elseq.benchmark.arguments import (
    FOREIGN_MODES,
    STOCK_MODES,
    add_choices,
    add_counts,
    add_run_options,
    benchmark_parser,
    parse_tiny,
)
from elseq.benchmark.el_attention.settings import BATCHES, MEMORY, NVIDIA, SEARCHES, SETTINGS
from elseq.errors import UserError
from elseq.options import AUTO, registered_methods

TABLES = ("speed", "batch", "memory", "nvidia")
V100_BYTES = 16 * 2**30
DEVICE = "device"  # a memory cap that is none
CAPPED = ("batch", "speed")  # tables with memory caps
# On a CPU a run with the paper's batches takes minutes.
GPU_MOST, CPU_MOST = 1024, 8
CPU_BATCHES = [2, 4, 8]
TINY = {"most": 3, "batch_sizes": [2, 3], "lengths": [8, 16], "repeats": 1}


def parse(arguments: list[str]) -> argparse.Namespace:
    """
    Raises:
        UserError: an option or a value that cannot be used.
    """
    parser = benchmark_parser("el-attention", __doc__)
    modes = (*STOCK_MODES[1:], *registered_methods(), AUTO, *FOREIGN_MODES)
    work = parser.add_argument_group("what is measured")
    add_choices(work, "--tables", TABLES)
    add_choices(work, "--models", SETTINGS, ", of the table speed")
    add_choices(work, "--searches", SEARCHES, ", of the table speed")
    add_choices(work, "--modes", modes)
    listed = {",".join(map(str, batches)) for batches in (BATCHES, *NVIDIA.values())}
    work.add_argument(
        "--batch-sizes",
        type=counts,
        help=f"of the tables batch, memory and nvidia (default: the published ones, {' and '.join(sorted(listed))}; on "
        f"a CPU {','.join(map(str, CPU_BATCHES))})",
    )
    add_counts(work, "--lengths", sorted({length for _, length in MEMORY}), "of the table memory")
    work.add_argument(
        "--most",
        type=count,
        help="sentences from which on down the largest batch is looked for, four fifths at a time (default: "
        f"{GPU_MOST}, on a CPU {CPU_MOST})",
    )
    work.add_argument(
        "--memory-cap",
        type=_caps,
        default={},
        help="bytes such as 16GB, device for all of the device's, or several with commas, of the tables "
        f"{' and '.join(CAPPED)}, or of one of them: batch=device,speed=16GB; on a GPU of torch's allocator, on a CPU "
        "of the process (default: 16GB,device, on a CPU device)",
    )
    work.add_argument(
        "--no-repeat-ngram-size",
        type=count_or_zero,
        default=0,
        help="3 in the paper's settings of BART, which stock fairseq does not block without its CUDA extension, and "
        "yet takes time for (default: 0)",
    )
    add_run_options(parser.add_argument_group("runs"))
    args = parse_tiny(parser, arguments, TINY, "tiny models, to see in minutes whether all of it runs")
    of_models = list(dict.fromkeys(search for name in args.models for search in SETTINGS[name].searches))
    if "speed" in args.tables and not set(args.searches) & set(of_models):
        searches, models = ",".join(args.searches), ",".join(args.models)
        raise UserError(f"--searches {searches} is not among those of --models {models}: {', '.join(of_models)}")
    on_cpu = args.device == "cpu"
    default = [None] if on_cpu else [V100_BYTES, None]
    args.memory_cap = {table: args.memory_cap.get(table, default) for table in CAPPED}
    if args.most is None:
        args.most = CPU_MOST if on_cpu else GPU_MOST
    if args.batch_sizes is None and on_cpu:
        args.batch_sizes = CPU_BATCHES
    return args


def _caps(text: str) -> dict[str, list[int | None]]:
    """Caps of memory by table. A cap without a table is for all tables."""
    found: dict[str, list[int | None]] = {}
    for part in text.split(","):
        table, names_one, size = part.rpartition("=")
        cap = None if size == DEVICE else parse_bytes(size)
        for each in choices(CAPPED)(table) if names_one else CAPPED:
            found[each] = list(dict.fromkeys([*found.get(each, []), cap]))
    return found
