"""The runs of a benchmark: a bar, and the results on disk after each of them."""

import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from elseq.benchmark.report import write_json
from elseq.errors import UserError
from elseq.files import written_whole


def publish_paper(
    run: Callable[[Callable], None],
    runs: int,
    path: Path,
    report,
    settings: dict,
    title: str,
    tables: Callable[[list], str],
    notes: Callable[[list], str],
    plot: Callable[[list], list[Path]] = lambda rows: [],
) -> None:
    """`run_and_publish` for a paper's benchmark, with the ratios of its rows in the JSON.

    Args:
        path: of the results, without .json and .md.
        report: a module that has `compare` (rows to ratios), too.
        settings: those on which the figures depend.
        title, tables, notes: the parts of the text.
    """
    run_and_publish(
        run,
        runs,
        path.with_suffix(".json"),
        path.with_suffix(".md"),
        report,
        lambda rows: settings | {"ratios": report.compare(rows)},
        lambda rows: f"{title}\n\n{tables(rows)}\n\n{notes(rows)}\n",
        plot,
    )


def run_and_publish(
    run: Callable[[Callable], None],
    runs: int,
    json_path: Path,
    text_path: Path,
    report,
    settings: Callable[[list], dict],
    text: Callable[[list], str],
    plot: Callable[[list], list[Path]] = lambda rows: [],
) -> None:
    """Run everything. Each result rewrites the JSON and the text; the pictures are drawn at the end.

    Args:
        run: calls its argument with the row of each run, which has `failure`, None or a sentence, and `to_dict`.
        runs: their number.
        json_path, text_path: of the results.
        report: a module with `progress` and `failure` (a row to a line).
        settings: rows to the other entries of the JSON.
        text: rows to Markdown.
        plot: rows to the pictures that it has written.

    Raises:
        UserError: there is no run, or every one failed.
        SystemExit: 130, interrupted; what was measured is written and printed.
    """
    if not runs:
        raise UserError("the options leave nothing to measure: give other modes, or other sizes")
    rows: list = []
    interrupted = False
    with tqdm(total=runs, unit="run", file=sys.stderr) as bar:

        def done(row) -> None:
            rows.append(row)
            write_json(json_path, settings(rows), rows)
            with written_whole(text_path) as file:
                file.write(text(rows))
            bar.write(report.progress(row), file=sys.stderr)
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
        raise UserError(f"nothing could be measured; {report.failure(rows[0]).removesuffix('.')}")


def _draw(plot: Callable[[list], list[Path]], rows: list) -> list[Path]:
    """The results are there without pictures, too, on a machine that is there for minutes."""
    try:
        return plot(rows)
    except ModuleNotFoundError as error:
        print(f"no picture is drawn, because {error.name} is not installed", file=sys.stderr)
        return []
