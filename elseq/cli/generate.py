"""elseq-generate: write the model's output for each line of a text file."""

import argparse
import contextlib
import logging
import signal
import sys
from dataclasses import fields

from tqdm.contrib.logging import logging_redirect_tqdm

import elseq
from elseq.arguments import Parser, add_fields, is_sweep, read_input, read_path
from elseq.errors import UserError, as_option, renamed
from elseq.options import CHECKPOINT, SEARCH_OPTIONS, THREADS, Batching, Loading, Search
from elseq.text_files.formats import Format, InputFormat

EPILOG = """\
Finished lines are kept in OUTPUT.partial. After an interruption, repeat the same command: it continues with the
remaining lines. The output file appears when all lines are finished.
In float32 and int8 the words depend neither on the batches nor on interruptions, unless scores differ in their last
digits only. In float16 and bfloat16 the other lines of a batch change the last digits of a line's scores, and sometimes
its words. With --attention stock the longest line of a batch limits the length of all its outputs, as in fairseq. With
--sampling the random numbers depend on the batch. The same command makes the same batches, so its output is the same in
these cases, too, unless memory runs out.

Several processes: torchrun --nproc-per-node 4 $(which elseq-generate) --model ...
"""


# These signals end the run as Ctrl-C does. torchrun and Slurm send SIGTERM, a closed terminal sends SIGHUP, and a limit
# of processor time sends SIGXCPU. Other signals end it at once; the files on disk are the same.
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU)


class _Terminated(KeyboardInterrupt):
    """One of `SIGNALS` has arrived; the argument is its number."""


def main() -> None:
    if is_sweep(sys.argv[1:]):
        elseq.set_up()
        from elseq.sweeps.generation import job
        from elseq.sweeps.launch import sweep

        return sweep("generate", job)
    args = _parse(sys.argv[1:])
    with renamed(as_option):
        _taken(Loading, args).check()
    elseq.set_up()  # only now: it takes seconds
    _generate(args)


def _generate(args) -> None:
    from elseq.text_files.processes import Processes
    from elseq.text_files.run import Run

    with contextlib.ExitStack() as stack:
        _end_like_an_interrupt(stack)
        run = None
        try:
            processes = Processes.of_environment()
            _log_to_console(stack, processes)
            if args.output is None and processes.count > 1:
                raise UserError("several processes cannot share the standard output: give --output FILE")
            run = Run(_job(args), processes)
            with processes.alive(), renamed(as_option):
                run()
        except KeyboardInterrupt as stop:
            for number in (signal.SIGINT, *SIGNALS):
                stack.callback(signal.signal, number, signal.signal(number, signal.SIG_IGN))  # it is ending
            if run is None or run.processes.is_first:
                print(f"elseq: interrupted: {_how_far(run, args)}", file=sys.stderr)
            sys.exit(128 + (stop.args[0] if isinstance(stop, _Terminated) else signal.SIGINT))


def _how_far(run, args) -> str:
    if run is None or run.progress is None:
        return "no line was done yet; what was done before is kept, give the same command again"
    if args.output is not None and run.journal.is_published():
        return f"all {run.progress.total} lines are done and in {args.output}"
    done = f"{run.progress.finished} of {run.progress.total} lines are done"
    if args.output is None:
        written = f"; {run.journal.written} of them are written, and the others" if run.journal.written else " and"
        return f"{done}{written} lost, since there is no --output to keep them by"
    return f"{done}; repeat the same command to continue"


def _end_like_an_interrupt(stack: contextlib.ExitStack) -> None:
    def terminate(number, _):
        raise _Terminated(number)

    for number in SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has SIGHUP ignored
            stack.callback(signal.signal, number, signal.signal(number, terminate))


def _log_to_console(stack: contextlib.ExitStack, processes) -> None:
    """The first process logs what elseq decides; all processes log warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("elseq: %(message)s"))
    logger = logging.getLogger("elseq")
    stack.callback(logger.setLevel, logger.level)
    logger.setLevel(logging.INFO if processes.is_first else logging.WARNING)
    stack.callback(logger.removeHandler, handler)
    logger.addHandler(handler)
    stack.enter_context(logging_redirect_tqdm([logger]))


def _taken(kind: type, args):
    """An object of a dataclass, with its options from the command line."""
    return kind(**{each.name: getattr(args, each.name) for each in fields(kind)})


def _job(args):
    from elseq.text_files.job import Job

    search = {name: getattr(args, name) for name in SEARCH_OPTIONS if getattr(args, name) is not None}
    return Job(
        model=args.model,
        output=args.output,
        input=args.input,
        loading=_taken(Loading, args),
        batching=_taken(Batching, args),
        overwrite=args.overwrite,
        search=search,
        form=_taken(Format, args),
        threads=args.threads,
        prefix_file=args.prefix_file,
        input_form=_taken(InputFormat, args),
        languages_file=args.languages_file,
    )


def _parse(arguments: list[str]):
    parser = Parser(
        prog="elseq-generate",
        description="Write the model's output for each line of a text file: its translation or summary, or for a "
        "language model its continuation. Blank lines stay blank.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    files = parser.add_argument_group("files")
    files.add_argument(
        "--input",
        type=read_input,
        metavar="FILE",
        help="UTF-8 text, one per line (default, and -: the standard input)",
    )
    add_fields(files, InputFormat)
    files.add_argument(
        "--output",
        type=read_path,
        metavar="FILE",
        help="default: the standard output, each line as soon as all before it are done; such a run cannot continue",
    )
    files.add_argument(
        "--overwrite", action="store_true", help="replace an existing output and lines finished with other options"
    )
    files.add_argument(
        "--prefix-file",
        type=read_path,
        metavar="FILE",
        help="what each output begins with, a line for each of the input",
    )
    files.add_argument(
        "--languages-file",
        type=read_path,
        metavar="FILE",
        help="the languages of source and target, such as de fr, a line for each of the input",
    )
    add_fields(files, Format)
    add_fields(files, Batching, "truncate")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", required=True, metavar="FILE", help=f"{CHECKPOINT}; several with colons between them are an ensemble"
    )
    add_fields(model, Loading)
    model.add_argument("--threads", **THREADS)
    batches = parser.add_argument_group("batches of lines of similar length").add_mutually_exclusive_group()
    add_fields(batches, Batching, "max_tokens", "memory_budget")
    search = parser.add_argument_group("search", "as in fairseq-generate; --nbest above 1 needs --format jsonl")
    add_fields(search, Search, unset=True)
    add_fields(search, Batching, "seed")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
