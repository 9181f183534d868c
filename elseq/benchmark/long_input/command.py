"""Time and memory of sources of any length, measured: elseq-benchmark long-input."""

from dataclasses import asdict

from elseq.benchmark.arguments import tiny_options
from elseq.benchmark.conditions import read_conditions
from elseq.benchmark.long_input import report
from elseq.benchmark.long_input.plan import Plan, run_plan
from elseq.benchmark.publishing import publish_plan
from elseq.errors import as_option, renamed
from elseq.files import make_folder
from elseq.models.windows import UNLIMITED, chosen_windows


def main(args) -> None:
    """Run the benchmark with the options of `arguments.parse`."""
    with renamed(as_option):
        windows = chosen_windows(
            UNLIMITED, source_window=args.source_window, source_window_overlap=args.source_window_overlap
        )
    plan = Plan(
        arch=args.arch,
        lengths=sorted(args.lengths),
        methods=args.modes,
        scores=args.scores,
        window=windows.length,
        overlap=windows.overlap,
        top_k=args.apply_top_k or windows.length,
        batch=args.batch,
        beam=args.beam,
        output_length=args.output_length,
        model_options=tiny_options("encoder", "decoder") if args.tiny else (),
        vocabulary_size=64 if args.tiny else 50264,
        **read_conditions(args),
    )
    make_folder(args.output)
    sizes = "tiny, for a test" if args.tiny else "the architecture's"
    benchmark = "sources of any length in windows"
    settings = {"benchmark": benchmark, "sizes": sizes, **asdict(plan), **plan.environment()}
    windows = f"windows of {plan.window}, overlap {plan.overlap}, k {plan.top_k}"
    model = [plan.arch, f"sizes: {sizes}", "random weights", windows]
    work = [f"batch {plan.batch}", f"beam {plan.beam}", f"output {plan.output_length}"]
    title = plan.title(model, work)
    publish_plan(plan, run_plan, report, args.output / "long_input", settings, title)
