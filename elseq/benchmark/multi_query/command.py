"""Multi-head and multi-query attention: the speed table of 1911.02150 (table 3), measured here, beside its figures.

The models are the paper's (transformer_shazeer and mq_transformer_shazeer, 211 million parameters) with random weights,
with and without local attention in the decoder, and the first under stock fairseq as well.
"""

import argparse
from functools import partial

import torch

import elseq
from elseq.arguments import Parser, choices, count
from elseq.benchmark.arguments import add_run_options, make_output_folder
from elseq.benchmark.multi_query import report
from elseq.benchmark.multi_query.plan import BEAMS, TINY, VARIANTS, Plan, Sizing, run_plan
from elseq.benchmark.publishing import publish_paper
from elseq.benchmark.report import device_name, fairseq_version, heading, machine, versions

# Sentences. On a GPU as in the paper (training: 32,768 target tokens), if they fit; on a CPU a run takes minutes.
GPU_BATCHES = {"training": 256, "greedy": 1024, "beam": 1024}
CPU_BATCHES = {"training": 4, "greedy": 16, "beam": 16}


def main(arguments: list[str]) -> None:
    args = _parse(arguments)
    plan = _plan(args)
    output = make_output_folder(args.output)
    settings = _settings(plan, args.tiny)
    model = [f"sizes: {settings['sizes']}", "random weights"]
    title = heading([[settings["benchmark"]], model, machine(plan.device, plan.threads, plan.dtype), versions()])
    runs = len(plan.variants) * len(plan.columns)
    texts = report.tables, partial(report.notes, plan)
    publish_paper(partial(run_plan, plan), runs, output / "multi_query", report, settings, title, *texts)


def _plan(args) -> Plan:
    on_cpu = args.device == "cpu"
    given = {column: getattr(args, f"batch_{column}") or args.batch for column in BEAMS}
    defaults = CPU_BATCHES if on_cpu else GPU_BATCHES
    if args.tiny:
        defaults = dict.fromkeys(BEAMS, 2)
    return Plan(
        variants=args.variants,
        columns=args.columns,
        batches={column: given[column] or defaults[column] for column in args.columns},
        halving={column for column in args.columns if given[column] is None},
        sizing=TINY if args.tiny else Sizing(),
        dtype=args.dtype,
        device=args.device,
        threads=args.threads or torch.get_num_threads(),
        repeats=args.repeats,
    )


def _settings(plan: Plan, is_tiny: bool) -> dict:
    """What the figures depend on, for the JSON."""
    return {
        "benchmark": "multi-query attention, 1911.02150, table 3",
        "sizes": "tiny, for a test" if is_tiny else "the paper's",
        "device": device_name(plan.device),
        "threads": plan.threads,
        "dtype": plan.dtype,
        "repeats": plan.repeats,
        "batches": plan.batches,
        "vocabulary_size": plan.sizing.vocabulary_size,
        "source_length": plan.sizing.length,
        "target_length": plan.sizing.length,
        "local_attention_radius": plan.sizing.radius,
        "torch": torch.__version__,
        "fairseq": fairseq_version(),
        "elseq": elseq.__version__,
    }


def _parse(arguments: list[str]):
    parser = Parser(
        prog="elseq-benchmark multi-query",
        description=__doc__,
        epilog="A batch that is not given is halved until it fits; ratios are of rows with the same batch.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--variants", type=choices(VARIANTS), default=list(VARIANTS), help=f"of {','.join(VARIANTS)} (default: all)"
    )
    parser.add_argument(
        "--columns", type=choices(BEAMS), default=list(BEAMS), help=f"of {','.join(BEAMS)} (default: all)"
    )
    parser.add_argument("--batch", type=count, help="sentences in a batch, in every column")
    for name, column in (("train", "training"), ("greedy", "greedy"), ("beam", "beam")):
        parser.add_argument(
            f"--batch-{name}",
            dest=f"batch_{column}",
            type=count,
            help=f"the same in one column (default: {CPU_BATCHES[column]} on a CPU, {GPU_BATCHES[column]} on a GPU)",
        )
    add_run_options(parser)
    parser.add_argument("--tiny", action="store_true", help="tiny models, to see in seconds whether it runs")
    return parser.parse_args(arguments)
