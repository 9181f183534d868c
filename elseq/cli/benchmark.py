"""elseq-benchmark: stock fairseq, elseq's ways of decoding and other programs, on the same weights and sources."""

import sys
from contextlib import ExitStack
from pathlib import Path

from elseq.benchmark import report
from elseq.benchmark.arguments import make_output_folder
from elseq.benchmark.command import make_grid, parse, title
from elseq.benchmark.runs import run_grid
from elseq.errors import UserError
from elseq.sweeps.benchmark import job
from elseq.sweeps.launch import is_sweep, sweep


def main() -> None:
    if is_sweep(sys.argv[1:]):
        return sweep("benchmark", job)
    args = parse(sys.argv[1:])
    with ExitStack() as stack:
        grid = make_grid(args, stack)
        heading = report.heading(title(args, grid))
        output = make_output_folder(args.output)
        settings = {"title": heading, "options": {key: value for key, value in vars(args).items() if key != "output"}}
        rows: list[dict] = []
        runs = len(grid.cells())

        def done(row: dict, _) -> None:
            rows.append(row)
            report.write_json(output / "results.json", settings, rows)
            print(f"[{len(rows)}/{runs}] {report.progress(row)}", file=sys.stderr, flush=True)

        print(heading, file=sys.stderr, flush=True)
        try:
            run_grid(grid, done)
        except KeyboardInterrupt:
            print("interrupted; these rows are there:", file=sys.stderr)
            _publish(heading, rows, output)
            sys.exit(130)
        _publish(heading, rows, output)
    if all("failure" in row for row in rows):
        raise UserError(f"no mode could be measured; {report.failure(rows[0]).removesuffix('.')}")


def _publish(heading: str, rows: list[dict], output: Path) -> None:
    if all("failure" in row for row in rows):
        return
    text = report.text(heading, rows)
    print(text)
    (output / "table.md").write_text(text)
    report.plot(output / "plot.png", heading, rows)
    print(f"written: {output / 'results.json'}, {output / 'table.md'}, {output / 'plot.png'}", file=sys.stderr)


if __name__ == "__main__":
    main()
