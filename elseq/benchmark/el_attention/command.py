"""The tables of 2105.04779, measured: elseq-benchmark el-attention."""

from dataclasses import asdict, replace

from elseq.benchmark.conditions import read_conditions
from elseq.benchmark.el_attention import report
from elseq.benchmark.el_attention.plan import Plan, find_limits, run_plan
from elseq.benchmark.publishing import publish_plan
from elseq.files import make_folder


def main(args) -> None:
    """Run the benchmark with the options of `arguments.parse`."""
    plan = Plan(
        tables=args.tables,
        models=args.models,
        searches=args.searches,
        modes=args.modes,
        batch_sizes=args.batch_sizes,
        lengths=args.lengths,
        most=args.most,
        memory_caps=args.memory_cap,
        no_repeat_ngram_size=args.no_repeat_ngram_size,
        is_tiny=args.tiny,
        **read_conditions(args),
    )
    make_folder(args.output)
    plan = replace(plan, limits=find_limits(plan))
    settings = {"benchmark": "EL-attention, 2105.04779", **asdict(plan), **plan.environment()}
    model = ["sizes: tiny, for a test" if plan.is_tiny else "sizes: the paper's", "random weights"]
    title = plan.title([settings["benchmark"]], model)
    publish_plan(plan, run_plan, report, args.output / "el_attention", settings, title)
