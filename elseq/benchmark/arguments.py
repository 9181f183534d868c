"""What the commands that measure read from the command line."""

import argparse
from collections.abc import Callable, Collection
from pathlib import Path

import torch

from elseq.errors import UserError

DTYPES = ("float32", "bfloat16", "float16")


def count(text: str) -> int:
    """
    Raises:
        UserError: no whole number above 0.
    """
    if not text.strip().isdecimal() or int(text) < 1:
        raise UserError(f"{text!r} is not a whole number above 0")
    return int(text)


def counts(text: str) -> list[int]:
    """Numbers with commas between them."""
    return [count(part) for part in text.split(",")]


def choices(known: Collection[str]) -> Callable[[str], list[str]]:
    """A reader of names with commas between them, each once; it raises a `UserError` for others than those known."""

    def read(text: str) -> list[str]:
        names = list(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in known:
                raise UserError(f"{name!r} is unknown; choose of {', '.join(known)}")
        return names

    return read


def add_run_options(parser: argparse._ActionsContainer) -> None:
    """Of the benchmarks that stand beside a paper's figures; `check_device_and_dtype` is for what they read."""
    parser.add_argument("--repeats", type=count, default=3, help="by the clock; the median counts (default: 3)")
    parser.add_argument("--dtype", default="float32", help=f"{', '.join(DTYPES)} (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 (default: %(default)s)")
    parser.add_argument("--threads", type=count, default=torch.get_num_threads(), help="(default: %(default)s)")


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


def check_device_and_dtype(device: str, dtype: str) -> None:
    """
    Raises:
        UserError: a device that is not here, or a type that is none of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype} is unknown; choose one of {', '.join(DTYPES)}")
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"--device {device} is unknown; choose cpu or cuda") from error
    if kind.type == "cuda":
        if (kind.index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"--device {device} is not there; this machine has {torch.cuda.device_count()} CUDA devices"
            )
    elif kind.type != "cpu":
        raise UserError(f"--device {device} is not supported; choose cpu or cuda")
