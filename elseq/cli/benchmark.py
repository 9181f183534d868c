"""elseq-benchmark: compare stock fairseq, elseq's decoding methods and other programs on the same weights and sources.

elseq-benchmark PAPER, such as multi-query, repeats the measurements of a paper: see `elseq.benchmark.PAPERS`.
"""

import sys
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import elseq
from elseq.benchmark import PAPERS
from elseq.benchmark.arguments import Settings, make_output_folder, parse
from elseq.files import check_output_file
from elseq.sweeps.launch import is_sweep, sweep


def main() -> None:
    if is_sweep(sys.argv[1:]):
        elseq.set_up()
        from elseq.sweeps.benchmark import job

        return sweep("benchmark", job)
    if sys.argv[1:2] and sys.argv[1] in PAPERS:
        paper = PAPERS[sys.argv[1]]
        args = import_module(f"{paper}.arguments").parse(sys.argv[2:])
        elseq.set_up()
        return import_module(f"{paper}.command").main(args)
    settings, folder = parse(sys.argv[1:])
    elseq.set_up()
    _measure(settings, folder)


def _measure(settings: Settings, folder: str) -> None:
    from elseq.benchmark import report
    from elseq.benchmark.command import make_grid, title
    from elseq.benchmark.publishing import run_and_publish
    from elseq.benchmark.runs import run_grid

    with ExitStack() as stack:
        grid = make_grid(settings, stack)
        others = [mode for mode in grid.modes if mode != "stock"]
        grid = replace(grid, modes=["stock", *others] if settings.stock else others)
        common = title(settings, grid)
        output = make_output_folder(folder)
        files = [output / name for name in ("results.json", "table.md", "plot.png")]
        for file in files:
            check_output_file(
                file,
                *map(Path, filter(None, (settings.checkpoint, settings.data, settings.source, settings.reference))),
            )

        def heading(rows: list) -> str:
            return report.heading([*common, report.turns(settings.repeats, rows)])

        def plot(rows: list) -> list[Path]:
            report.plot(files[2], heading(rows), rows)
            return [files[2]]

        print(heading([]), file=sys.stderr, flush=True)
        run_and_publish(
            lambda done: run_grid(grid, lambda row, _: done(row)),
            len(grid.cells()),
            *files[:2],
            lambda rows: {"title": heading(rows), "options": asdict(replace(settings, threads=grid.threads))},
            lambda rows: report.text(heading(rows), rows),
            plot,
        )


if __name__ == "__main__":
    main()
