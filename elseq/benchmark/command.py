"""What elseq-benchmark reads from the command line, and the runs that it asks for."""

import argparse
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from elseq.arguments import Parser, add_fields, choices, count, count_or_zero, counts
from elseq.benchmark import report
from elseq.benchmark.arguments import add_run_options
from elseq.benchmark.models import ModelFile, checkpoint_model, random_model
from elseq.benchmark.runs import STOCK_MODES, Grid, modes
from elseq.benchmark.sources import check_positions, count_positions, random_sources, read_sources
from elseq.errors import UserError, as_option, renamed
from elseq.loading import Loading

EPILOG = """\
Every run is a process of its own: it loads the model, decodes once to warm up, then --repeats times; the median counts.
Modes: stock is fairseq as it installs; stock-copied and stock-shared are the same, told whether the hypotheses of a
sentence share the keys and values of the source; kv, el and auto are elseq's; ctranslate2 and huggingface need those
packages. What stands after -- are model options of fairseq-train for --arch, such as -- --encoder-layers 2.

With -m or with NAME=VALUE the command is a sweep with Hydra, of hydra_conf/benchmark.yaml: elseq-benchmark -m
model=el_bart_base decode=stock,el batch=8,32. docs/sweeps.md says more.

elseq-benchmark multi-query and elseq-benchmark top-k measure what those two papers have measured; see their --help.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """
    Raises:
        UserError: a value that cannot be used.
    """
    model_options: list[str] = []
    if "--" in arguments:
        place = arguments.index("--")
        arguments, model_options = arguments[:place], arguments[place + 1 :]
    parser = Parser(
        prog="elseq-benchmark",
        description="Stock fairseq, elseq's ways of decoding and other programs, on the same weights and sources.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_argument_group("model")
    model.add_argument("checkpoint", nargs="?", help="a checkpoint of fairseq")
    model.add_argument("--data", help="folder of its dictionaries (default: the checkpoint's)")
    add_fields(model, Loading, "user_dir")
    model.add_argument("--arch", help="an architecture of fairseq or elseq, instead of a checkpoint")
    model.add_argument(
        "--random-weights", action="store_true", help="with --arch: the same random weights in all modes"
    )
    model.add_argument("--vocabulary-size", type=count, default=50264, help="with --arch (default: %(default)s)")
    work = parser.add_argument_group("what is decoded")
    source = work.add_mutually_exclusive_group()
    source.add_argument("--source", help="text in pieces of the model's dictionary, one source a line; decoded whole")
    source.add_argument(
        "--source-length",
        type=count,
        default=512,
        help="positions of random sources, one batch (default: %(default)s)",
    )
    work.add_argument("--output-length", type=count, help="tokens of every output, whatever the model would say")
    work.add_argument("--min-len", type=count, default=1, help="tokens at least (default: %(default)s)")
    work.add_argument("--max-len-b", type=count, default=200, help="tokens at most (default: %(default)s)")
    work.add_argument("--lenpen", type=float, default=1.0, help="length penalty (default: %(default)s)")
    work.add_argument("--no-repeat-ngram-size", type=count_or_zero, default=0, help="0 is none (default: %(default)s)")
    runs = parser.add_argument_group("runs")
    runs.add_argument(
        "--modes",
        type=lambda text: choices(modes())(text),  # those of plugins, too
        default=[mode for mode in modes() if mode not in STOCK_MODES[1:]],
        help=f"of {', '.join(modes())}; stock is always measured (default: all but stock-*)",
    )
    runs.add_argument("--batch-sizes", type=counts, default=[8], help="such as 8,32 (default: 8)")
    runs.add_argument("--beams", type=counts, default=[4], help="such as 1,4 (default: 4)")
    add_run_options(runs)
    args = parser.parse_args(arguments)
    args.model_options = model_options
    if args.output_length is None and args.min_len > args.max_len_b:
        raise UserError(f"--min-len {args.min_len} is more than --max-len-b {args.max_len_b}; lower it")
    return args


def make_grid(args: argparse.Namespace, stack: ExitStack) -> Grid:
    """The grid that the arguments ask for; what it needs on disk is there until the stack closes.

    Raises:
        UserError: a model or sources that cannot be used.
    """
    model_file = _model_file(args, stack)
    if args.source is not None:
        sources = read_sources(model_file, Path(args.source))
    else:
        sources = random_sources(model_file, args.source_length, max(args.batch_sizes))
    positions = count_positions(model_file, sources)
    fixed = args.output_length
    check_positions(model_file, positions, args.min_len if fixed is None else fixed)
    return Grid(
        model_file=model_file,
        sources=sources,
        positions=positions,
        one_batch=args.source is None,
        modes=["stock", *(mode for mode in args.modes if mode != "stock")],
        batch_sizes=args.batch_sizes,
        beams=args.beams,
        search={
            "min_len": args.min_len if fixed is None else fixed,
            "max_len_b": args.max_len_b if fixed is None else fixed,
            "lenpen": args.lenpen,
            "no_repeat_ngram_size": args.no_repeat_ngram_size,
        },
        dtype=args.dtype,
        device=args.device,
        threads=args.threads,
        repeats=args.repeats,
    )


def _model_file(args, stack: ExitStack) -> ModelFile:
    if (args.checkpoint is None) == (args.arch is None):
        raise UserError("give either a checkpoint or --arch with --random-weights")
    if args.checkpoint is not None:
        if args.random_weights or args.model_options:
            raise UserError("--random-weights and model options are for --arch; leave them out with a checkpoint")
        with renamed(as_option):
            return checkpoint_model(
                Path(args.checkpoint), None if args.data is None else Path(args.data), args.user_dir
            )
    if not args.random_weights:
        raise UserError("--arch alone has no weights; add --random-weights or give a checkpoint")
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="elseq-benchmark-model-"))
    made = random_model(args.arch, args.vocabulary_size, args.model_options, Path(folder))
    return replace(made, user_dir=args.user_dir)


def title(args: argparse.Namespace, grid: Grid) -> list[list[str]]:
    """What all runs have in common: the model, what is decoded, where, and by which versions."""
    device = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else "cpu"
    source = f"source {args.source_length}" if args.source is None else f"{len(grid.sources)} lines of {args.source}"
    output = [f"output {args.output_length}"]
    if args.output_length is None:
        output = [f"output {args.min_len} to {args.max_len_b}", f"length penalty {args.lenpen:g}"]
    if args.no_repeat_ngram_size:
        output.append(f"no repeated {args.no_repeat_ngram_size}-grams")
    return [
        [grid.model_file.name, *["random weights"] * args.random_weights],
        [source, *output],
        [device, f"{args.threads} thread{'s' if args.threads > 1 else ''}", args.dtype],
        report.versions(),
    ]
