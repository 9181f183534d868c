"""The speed table of 1911.02150 (table 3), measured: elseq-benchmark multi-query."""

from elseq.benchmark.conditions import read_conditions
from elseq.benchmark.multi_query import report
from elseq.benchmark.multi_query.arguments import CPU_BATCHES, GPU_BATCHES
from elseq.benchmark.multi_query.plan import TINY, Plan, Sizing, run_plan
from elseq.benchmark.multi_query.variants import BEAMS
from elseq.benchmark.publishing import publish_plan
from elseq.files import make_folder


def main(args) -> None:
    """Run the benchmark with the options of `arguments.parse`."""
    plan = _plan(args)
    make_folder(args.output)
    settings = _settings(plan, args.tiny)
    model = [f"sizes: {settings['sizes']}", "random weights"]
    title = plan.title([settings["benchmark"]], model)
    publish_plan(plan, run_plan, report, args.output / "multi_query", settings, title)


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
        **read_conditions(args),
    )


def _settings(plan: Plan, is_tiny: bool) -> dict:
    """The settings on which the figures depend, for the JSON."""
    return {
        "benchmark": "multi-query attention, 1911.02150, table 3",
        "sizes": "tiny, for a test" if is_tiny else "the paper's",
        "batches": plan.batches,
        "vocabulary_size": plan.sizing.vocabulary_size,
        "source_length": plan.sizing.length,
        "target_length": plan.sizing.length,
        "local_attention_radius": plan.sizing.radius,
        **plan.environment(),
    }
