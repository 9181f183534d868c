"""The runs of a benchmark that stands beside a paper's figures: a bar, and the results on disk after each of them."""

import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from elseq.benchmark.report import write_json
from elseq.errors import UserError


def run_and_publish(
    run: Callable[[Callable[[dict], None]], None],
    runs: int,
    base: Path,
    settings: dict,
    report,
    text: Callable[[list[dict]], str],
    plot: Callable[[list[dict]], list[Path]] = lambda rows: [],
) -> None:
    """Run everything; write `base`.json and `base`.md anew with each result, and the pictures in the end.

    Args:
        run: calls its argument with the row of each run.
        runs: how many there are.
        base: path of the results without the ending.
        settings: what the figures depend on, for the JSON.
        report: a module with `compare` (rows to ratios), `progress` and `failure` (a row to a line).
        text: rows to Markdown.
        plot: rows to the pictures that it has written.

    Raises:
        UserError: every run failed.
        SystemExit: 130, interrupted; what was measured is written and printed.
    """
    rows: list[dict] = []
    json_path, text_path = base.with_name(f"{base.name}.json"), base.with_name(f"{base.name}.md")
    interrupted = False
    with tqdm(total=runs, unit="run", file=sys.stderr) as bar:

        def done(row: dict) -> None:
            rows.append(row)
            write_json(json_path, settings | {"ratios": report.compare(rows)}, rows)
            text_path.write_text(text(rows))
            bar.write(report.progress(row), file=sys.stderr)
            bar.update()

        try:
            run(done)
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        print("interrupted; what was measured:\n", file=sys.stderr)
    if rows:
        print(text(rows), file=sys.stderr if interrupted else sys.stdout)
        print(f"written: {', '.join(map(str, (json_path, text_path, *plot(rows))))}", file=sys.stderr)
    if interrupted:
        sys.exit(130)
    if all("failure" in row for row in rows):
        raise UserError(f"nothing could be measured; {report.failure(rows[0]).removesuffix('.')}")
