"""What the commands that measure read from the command line."""

import argparse
from pathlib import Path

import torch

from elseq.arguments import count
from elseq.errors import UserError

DTYPES = ("float32", "bfloat16", "float16")


def add_run_options(parser: argparse._ActionsContainer) -> None:
    """How and where each run is made, and where the results go."""
    parser.add_argument("--repeats", type=count, default=3, help="by the clock; the median counts (default: 3)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(default: %(default)s)")
    parser.add_argument("--device", type=device, default="cpu", help="cpu, cuda or cuda:1 (default: %(default)s)")
    parser.add_argument("--threads", type=count, default=torch.get_num_threads(), help="(default: %(default)s)")
    parser.add_argument("--output", default="benchmark_output", help="folder for the results (default: %(default)s)")


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
