"""Sources of any length: time and memory of encoding them in windows, and of attending to all of their states.

A model with random weights (BART-large unless --arch names another) decodes one source of each length under kv and el,
with attention to all states (exact) and to the k of the largest scores (top-k). All rows of a length take turns.
"""

import argparse
from dataclasses import asdict
from functools import partial

import torch

import elseq
from elseq.arguments import Parser, choices, count, count_or_zero, counts
from elseq.benchmark.arguments import add_run_options, make_output_folder
from elseq.benchmark.long_input import report
from elseq.benchmark.long_input.plan import SCORES, TINY, Plan, run_plan
from elseq.benchmark.publishing import publish_paper
from elseq.benchmark.report import device_name, heading, machine, versions
from elseq.options import registered_methods

LENGTHS = [1024, 4096, 16384, 65536, 262144]


def main(arguments: list[str]) -> None:
    args = _parse(arguments)
    plan = Plan(
        arch=args.arch,
        lengths=sorted(set(args.lengths)),
        methods=args.modes,
        scores=args.scores,
        window=args.source_window,
        overlap=args.source_window // 2 if args.source_window_overlap is None else args.source_window_overlap,
        top_k=args.apply_top_k or args.source_window,
        batch=args.batch,
        beam=args.beam,
        output_length=args.output_length,
        model_options=tuple(TINY) if args.tiny else (),
        vocabulary_size=64 if args.tiny else 50264,
        dtype=args.dtype,
        device=args.device,
        threads=args.threads or torch.get_num_threads(),
        repeats=args.repeats,
    )
    output = make_output_folder(args.output)
    settings = {
        "benchmark": "sources of any length in windows",
        **asdict(plan),
        "device": device_name(plan.device),
        "torch": torch.__version__,
        "elseq": elseq.__version__,
    }
    model = [plan.arch, "random weights", f"windows of {plan.window}, overlap {plan.overlap}, k {plan.top_k}"]
    work = [f"batch {plan.batch}", f"beam {plan.beam}", f"output {plan.output_length}"]
    title = heading([model, work, machine(plan.device, plan.threads, plan.dtype), versions()])
    texts = report.tables, partial(report.notes, plan)
    plot = partial(report.plot, output / "long_input.png", title)
    runs = len(plan.cells())
    publish_paper(partial(run_plan, plan), runs, output / "long_input", report, settings, title, *texts, plot)


def _parse(arguments: list[str]):
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
        parser.set_defaults(lengths=[16, 64], source_window=16, output_length=5)
    return parser.parse_args(arguments)
