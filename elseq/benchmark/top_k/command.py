"""Top-k attention and feed-forward layers: memory and time, forward and backward, as in the figures of 2106.06899.

Attention is causal, with 12 heads of width 64 and batch 1; feed-forward layers have width 768. Each method at each size
is a process of its own. What would not fit the memory or would take too long is skipped, and the results say so.
"""

import argparse
from dataclasses import asdict
from functools import partial

import torch

import elseq
from elseq.arguments import Parser, choices, count, counts
from elseq.benchmark.arguments import add_run_options, make_output_folder
from elseq.benchmark.publishing import publish_paper
from elseq.benchmark.report import device_name, heading, machine
from elseq.benchmark.top_k import report
from elseq.benchmark.top_k.plan import METHODS, Plan, run_plan
from elseq.errors import UserError

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


def main(arguments: list[str]) -> None:
    args = _parse(arguments)
    plan = _plan(args)
    if not plan.cells():
        raise UserError(f"--methods {','.join(args.methods)} has none for --what {','.join(args.what)}")
    output = make_output_folder(args.output)
    settings = _settings(plan)
    versions = [f"{package} {settings[package]}" for package in ("torch", "elseq")]
    title = heading([[settings["benchmark"]], machine(plan.device, plan.threads, plan.dtype), versions])
    texts = partial(report.tables, plan), partial(report.notes, plan)
    plot = partial(report.plot, output, plan)
    publish_paper(partial(run_plan, plan), len(plan.cells()), output / "top_k", report, settings, title, *texts, plot)


def _plan(args) -> Plan:
    sizes = {"attention": args.lengths, "feed-forward": args.widths, "chunks": args.chunk_sizes}
    return Plan(
        sizes={what: sorted(set(sizes[what])) for what in args.what},
        methods=args.methods,
        chunks_length=args.chunks_length,
        tokens=args.tokens,
        heads=2 if args.tiny else 12,
        head_width=8 if args.tiny else 64,
        layers=args.layers,
        attention_top_k=args.attention_top_k or (128 if args.layers == 1 else 64),
        ffn_top_k=args.ffn_top_k,
        query_chunk_size=args.query_chunk_size,
        seconds_limit=args.seconds_limit,
        memory_limit=args.memory_limit,
        dtype=args.dtype,
        device=args.device,
        threads=args.threads or torch.get_num_threads(),
        repeats=args.repeats,
    )


def _settings(plan: Plan) -> dict:
    """What the figures depend on, for the JSON."""
    return {
        "benchmark": "top-k attention and feed-forward layers, 2106.06899",
        **asdict(plan),
        "device": device_name(plan.device),
        "published": {what: report.published(plan, what) for what in plan.sizes},
        "torch": torch.__version__,
        "elseq": elseq.__version__,
    }


def _parse(arguments: list[str]):
    parser = Parser(
        prog="elseq-benchmark top-k", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    methods = METHODS["attention"]
    work = parser.add_argument_group("what is measured")
    work.add_argument(
        "--what", type=choices(METHODS), default=list(METHODS), help=f"of {','.join(METHODS)} (default: all)"
    )
    work.add_argument(
        "--methods", type=choices(methods), default=list(methods), help=f"of {','.join(methods)} (default: all)"
    )
    work.add_argument("--lengths", type=counts, default=LENGTHS, help=f"of attention (default: {_listed(LENGTHS)})")
    work.add_argument("--layers", type=count, default=1, help="of attention; 2 or more: with projections (default: 1)")
    work.add_argument("--attention-top-k", type=count, help="(default: 128, or 64 with several layers)")
    work.add_argument("--query-chunk-size", type=count, help="queries; the paper's is 1024 (default: elseq's rule)")
    work.add_argument("--tokens", type=count, default=16384, help="of feed-forward layers (default: %(default)s)")
    work.add_argument(
        "--widths", type=counts, default=WIDTHS, help=f"units of feed-forward layers (default: {_listed(WIDTHS)})"
    )
    work.add_argument("--ffn-top-k", type=count, default=512, help="(default: %(default)s)")
    work.add_argument(
        "--chunk-sizes", type=counts, default=CHUNK_SIZES, help=f"queries (default: {_listed(CHUNK_SIZES)})"
    )
    work.add_argument("--chunks-length", type=count, default=8192, help="length for chunks (default: %(default)s)")
    runs = parser.add_argument_group("runs")
    runs.add_argument(
        "--seconds-limit", type=_amount, default=120, help="for a pass, and for the repeats (default: %(default)s)"
    )
    runs.add_argument("--memory-limit", type=_amount, help="GiB for a run (default: what is available)")
    add_run_options(runs)
    runs.add_argument("--tiny", action="store_true", help="tiny layers, to see in seconds whether it runs")
    if "--tiny" in arguments:
        parser.set_defaults(**TINY)
    return parser.parse_args(arguments)


def _listed(sizes: list[int]) -> str:
    return ",".join(map(str, sizes))


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise UserError(f"{text!r} is not a number above 0")
    return value
