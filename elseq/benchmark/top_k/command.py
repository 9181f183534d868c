"""Memory and time of top-k attention and feed-forward layers (2106.06899), measured: elseq-benchmark top-k."""

from dataclasses import asdict

from elseq.benchmark.conditions import read_conditions
from elseq.benchmark.publishing import publish_plan
from elseq.benchmark.top_k import report
from elseq.benchmark.top_k.plan import Plan, run_plan
from elseq.files import make_folder


def main(args) -> None:
    """Run the benchmark with the options of `arguments.parse`."""
    plan = _plan(args)
    make_folder(args.output)
    settings = _settings(plan)
    versions = [f"{package} {settings[package]}" for package in ("torch", "elseq")]
    title = plan.title([settings["benchmark"]], versions=versions)
    publish_plan(plan, run_plan, report, args.output / "top_k", settings, title)


def _plan(args) -> Plan:
    sizes = {"attention": args.lengths, "feed-forward": args.widths, "chunks": args.chunk_sizes}
    return Plan(
        sizes={what: sorted(sizes[what]) for what in args.what},
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
        **read_conditions(args),
    )


def _settings(plan: Plan) -> dict:
    """The settings on which the figures depend, for the JSON."""
    return {
        "benchmark": "top-k attention and feed-forward layers, 2106.06899",
        **asdict(plan),
        **plan.environment(),
        "published": {what: report.published(plan, what) for what in plan.sizes},
    }
