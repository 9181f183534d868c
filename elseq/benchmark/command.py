"""elseq-benchmark without the name of another benchmark, and what its sweeps share with it."""

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import torch

from elseq.benchmark import report
from elseq.benchmark.arguments import Settings, check_int8
from elseq.benchmark.models import ModelFile, checkpoint_model, random_model
from elseq.benchmark.publishing import run_and_publish
from elseq.benchmark.runs import Grid, run_grid
from elseq.benchmark.scorer import Scorer
from elseq.benchmark.sources import check_positions, count_positions, random_sources, read_sources
from elseq.errors import UserError, as_option, renamed
from elseq.files import check_output_file, make_folder

_OF_GRID = ("modes", "batch_sizes", "beams", "device", "repeats")
_OF_SEARCH = ("lenpen", "no_repeat_ngram_size")


def main(args: tuple[Settings, Path]) -> None:
    """Run the benchmark with the options of `arguments.parse`."""
    settings, folder = args
    with ExitStack() as stack:
        grid = make_grid(settings, stack)
        others = [mode for mode in grid.modes if mode != "stock"]
        grid = replace(grid, modes=["stock", *others] if settings.stock else others)
        common = title(settings, grid)
        make_folder(folder)
        files = [folder / name for name in ("results.json", "table.md", "plot.png")]
        inputs = settings.checkpoint, settings.data, settings.source, settings.reference
        for file in files:
            check_output_file(file, *map(Path, filter(None, inputs)))

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


def make_grid(settings: Settings, stack: ExitStack, name: Callable[[str], str] = as_option) -> Grid:
    """The grid of the modes. Its files on disk exist until the stack closes.

    Args:
        settings: the options.
        stack: removes the files.
        name: how errors call a field of the settings.

    Raises:
        UserError: settings that do not go together, or a model or sources that cannot be used.
    """
    check_int8(settings.dtype, settings.device, name)
    shortest, longest = settings.min_len, settings.max_len_b
    if settings.output_length is not None:
        shortest = longest = settings.output_length
    if shortest > longest:
        raise UserError(f"{shortest} is more than {name('max_len_b')} {longest}; lower it", name("min_len"))
    with renamed(name):
        model_file = _model_file(settings, stack)
        if settings.source is not None:
            sources = read_sources(model_file, Path(settings.source))
        else:
            sources = random_sources(model_file, settings.source_length, max(settings.batch_sizes))
        scorer = None
        if settings.reference is not None:
            scorer = Scorer.read(model_file, settings.source, settings.reference, settings.metric)
    positions = count_positions(model_file, sources)
    check_positions(model_file, positions, shortest)
    search = {"min_len": shortest, "max_len_b": longest} | {each: getattr(settings, each) for each in _OF_SEARCH}
    return Grid(
        model_file=model_file,
        sources=sources,
        positions=positions,
        one_batch=settings.source is None,
        search=search,
        scorer=scorer,
        dtypes=settings.dtype,
        interleave=settings.device == "cpu" if settings.interleave is None else settings.interleave,
        threads=settings.threads or torch.get_num_threads(),
        **{each: getattr(settings, each) for each in _OF_GRID},
    )


def _model_file(settings: Settings, stack: ExitStack) -> ModelFile:
    if (settings.checkpoint is None) == (settings.arch is None):
        raise UserError("give either a checkpoint or --arch with --random-weights")
    if settings.checkpoint is not None:
        if settings.random_weights or settings.model_options:
            raise UserError("--random-weights and model options are for --arch; leave them out with a checkpoint")
        data = None if settings.data is None else Path(settings.data)
        languages = settings.source_lang, settings.target_lang
        return checkpoint_model(Path(settings.checkpoint), data, settings.user_dir, *languages)
    for option in ("source_lang", "target_lang"):
        if (language := getattr(settings, option)) is not None:
            raise UserError(f"{language} is of a checkpoint, and random weights have no language: leave it out", option)
    if not settings.random_weights:
        raise UserError("--arch alone has no weights; add --random-weights or give a checkpoint")
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="elseq-benchmark-model-"))
    made = random_model(settings.arch, settings.vocabulary_size, settings.model_options, Path(folder))
    return replace(made, user_dir=settings.user_dir)


def title(settings: Settings, grid: Grid) -> list[list[str]]:
    """The common properties of all runs: the model, the sources, the machine and the versions."""
    source = (
        f"source {settings.source_length}"
        if settings.source is None
        else f"{len(grid.sources)} lines of {settings.source}"
    )
    output = [f"output {settings.output_length}"]
    if settings.output_length is None:
        output = [f"output {settings.min_len} to {settings.max_len_b}", f"length penalty {settings.lenpen:g}"]
    if settings.no_repeat_ngram_size:
        output.append(f"no repeated {settings.no_repeat_ngram_size}-grams")
    if grid.scorer is not None:
        output += [f"reference {settings.reference}", *grid.scorer.how()]
    return [
        [grid.model_file.name, *["random weights"] * settings.random_weights],
        [source, *output],
        report.machine(settings.device, grid.threads, ", ".join(settings.dtype)),
        report.versions(),
    ]
