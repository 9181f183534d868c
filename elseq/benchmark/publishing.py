"""The runs of a benchmark: a bar, and the results on disk after each of them."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tqdm import tqdm

from elseq.benchmark.report import write_json
from elseq.benchmark.rows import MeasuredRow
from elseq.errors import UserError
from elseq.files import written_whole


def publish_plan(plan, run_plan: Callable, report, path: Path, settings: dict, title: str) -> None:
    """`run_and_publish` for the runs of a plan, with the ratios of their rows in the JSON.

    Args:
        plan: of the runs; `runs()` is their number.
        run_plan: measures a plan; as `run` of `run_and_publish`.
        report: a module with `compare` (rows to ratios), `tables` and `notes` (the plan and rows to parts of the text)
            and `plot` (the plan, rows, the path and the title to the pictures that it has written).
        path: of the results, without .json and .md.
        settings: those on which the figures depend.
        title: of the text.
    """
    run_and_publish(
        partial(run_plan, plan),
        plan.runs(),
        path.with_suffix(".json"),
        path.with_suffix(".md"),
        lambda rows: settings | {"ratios": report.compare(rows)},
        lambda rows: f"{title}\n\n{report.tables(plan, rows)}\n\n{report.notes(plan, rows)}\n",
        lambda rows: report.plot(plan, rows, path, title),
    )


def run_and_publish(
    run: Callable[[Callable], None],
    runs: int,
    json_path: Path,
    text_path: Path,
    settings: Callable[[list], dict],
    text: Callable[[list], str],
    plot: Callable[[list], list[Path]],
) -> None:
    """Run everything. Each result rewrites the JSON and the text; the pictures are drawn at the end.

    Args:
        run: calls its argument with the row of each run, a `MeasuredRow`.
        runs: their number.
        json_path, text_path: of the results.
        settings: rows to the other entries of the JSON.
        text: rows to Markdown.
        plot: rows to the pictures that it has written.

    Raises:
        UserError: there is no run, or every one failed.
        SystemExit: 130, interrupted; what was measured is written and printed.
    """
    if not runs:
        raise UserError("the options leave nothing to measure: give other modes, or other sizes")
    rows: list[MeasuredRow] = []
    interrupted = False
    with tqdm(total=runs, unit="run", file=sys.stderr) as bar:

        def done(row: MeasuredRow) -> None:
            rows.append(row)
            write_json(json_path, settings(rows), rows)
            with written_whole(text_path) as file:
                file.write(text(rows))
            bar.write(row.line, file=sys.stderr)
            bar.update()

        try:
            run(done)
        except KeyboardInterrupt:
            interrupted = True
    nothing = all(row.failure is not None for row in rows)
    if interrupted:
        print("interrupted; what was measured:\n", file=sys.stderr)
    if rows:
        print(text(rows), file=sys.stderr if interrupted else sys.stdout)
        pictures = [] if nothing else _draw(plot, rows)
        print(f"written: {', '.join(map(str, (json_path, text_path, *pictures)))}", file=sys.stderr)
    if interrupted:
        sys.exit(130)
    if nothing:
        raise UserError(f"nothing could be measured; {rows[0].line.removesuffix('.')}")


def _draw(plot: Callable[[list], list[Path]], rows: list) -> list[Path]:
    """The results are there without pictures, too, on a machine that is there for minutes."""
    try:
        return plot(rows)
    except ModuleNotFoundError as error:
        print(f"no picture is drawn, because {error.name} is not installed", file=sys.stderr)
        return []
