"""What the commands that measure are told, and what reads it."""

import argparse
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch

from elseq.arguments import add_fields, choices, count, count_or_zero, counts
from elseq.benchmark.runs import STOCK_MODES, modes
from elseq.benchmark.scores import NAMES
from elseq.errors import UserError
from elseq.loading import Loading
from elseq.precision import INT8

FLOATS = ("float32", "bfloat16", "float16")


def device(text: str) -> str:
    """
    Raises:
        UserError: a device that is not here.
    """
    try:
        found = torch.device(text)
    except RuntimeError as error:
        raise UserError(f"{text} is unknown; choose cpu or cuda") from error
    if found.type == "cuda":
        if (found.index or 0) >= torch.cuda.device_count():
            raise UserError(f"{text} is not there; this machine has {torch.cuda.device_count()} CUDA devices")
    elif found.type != "cpu":
        raise UserError(f"{text} is not supported; choose cpu or cuda")
    return text


def _option(default=None, **metadata):
    return field(**{"default_factory" if callable(default) else "default": default}, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """What elseq-benchmark measures: the options of its command line, the settings of its sweeps."""

    checkpoint: str | None = None
    data: str | None = _option(help="folder of its dictionaries (default: the checkpoint's)")
    user_dir: str | None = _option(**{each.name: each.metadata for each in fields(Loading)}["user_dir"])
    arch: str | None = _option(help="an architecture of fairseq or elseq, instead of a checkpoint")
    random_weights: bool = _option(False, help="with --arch: the same random weights in all modes")
    vocabulary_size: int = _option(50264, type=count, help="with --arch")
    source: str | None = _option(help="text in pieces of the model's dictionary, one source a line; decoded whole")
    reference: str | None = _option(
        help="with --source: score the hypotheses against this, one line for each source; text if the model has a "
        "subword vocabulary beside its dictionary, otherwise pieces of the dictionary"
    )
    metric: str = _option(NAMES[0], choices=NAMES, help="of the reference: sacreBLEU or ROUGE")
    source_length: int = _option(512, type=count, help="positions of random sources, one batch")
    output_length: int | None = _option(type=count, help="tokens of every output, whatever the model would say")
    min_len: int = _option(1, type=count, help="tokens at least")
    max_len_b: int = _option(200, type=count, help="tokens at most")
    lenpen: float = _option(1.0, type=float, help="length penalty")
    no_repeat_ngram_size: int = _option(0, type=count_or_zero, help="0 is none")
    modes: list[str] = _option(
        lambda: [mode for mode in modes() if mode not in STOCK_MODES[1:]],
        type=lambda text: choices(modes())(text),  # those of plugins, too
        help=f"of {', '.join(modes())} (default: all but stock-*)",
    )
    stock: bool = _option(
        True,
        action=argparse.BooleanOptionalAction,
        help="measure stock too, first: the others are compared with it. Its beam search with long prompts of a "
        "language model takes minutes (default: yes)",
    )
    batch_sizes: list[int] = _option(lambda: [8], type=counts, help="such as 8,32 (default: 8)")
    beams: list[int] = _option(lambda: [4], type=counts, help="such as 1,4 (default: 4)")
    repeats: int = _option(3, type=count, help="by the clock; the median counts")
    interleave: bool | None = _option(
        action=argparse.BooleanOptionalAction,
        help="load the runs of a batch size and beam together, as far as they fit the memory, and let them take turns "
        "(default: on a CPU)",
    )
    dtype: list[str] = _option(
        lambda: ["float32"],
        type=choices((*FLOATS, INT8)),
        help=f"of {', '.join((*FLOATS, INT8))}; int8 is for a CPU, stock is float32 beside it (default: float32)",
    )
    device: str = _option("cpu", type=device, help="cpu, cuda or cuda:1")
    threads: int = _option(torch.get_num_threads, type=count)
    model_options: list[str] = field(default_factory=list)  # of fairseq-train, for arch


def add_run_options(parser: argparse._ActionsContainer, several_dtypes: bool = False) -> None:
    """How and where each run is made, and where the results go."""
    add_fields(parser, Settings, "repeats", *(("interleave", "dtype") if several_dtypes else ()), "device", "threads")
    if not several_dtypes:
        parser.add_argument("--dtype", choices=FLOATS, default="float32", help="(default: %(default)s)")
    parser.add_argument("--output", default="benchmark_output", help="folder for the results (default: %(default)s)")


def make_output_folder(name: str) -> Path:
    """
    Raises:
        UserError: a folder that cannot be made.
    """
    output = Path(name)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be made ({error.strerror}): name another folder") from error
    return output
