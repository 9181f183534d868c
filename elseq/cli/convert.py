"""elseq-convert: checkpoints of other models out of checkpoints that are there."""

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from omegaconf import OmegaConf

import elseq  # noqa: F401  # repairs fairseq
from elseq.errors import UserError
from elseq.interop import heads
from elseq.interop.stock import elseq_configuration, training_options

DEFAULT_PLACES = ("decoder", "cross")  # what decoding keeps and reads at every step


def main() -> None:
    args = _parse(sys.argv[1:])
    args.convert(args)


def convert_heads(args) -> None:
    path = Path(args.model)
    output = Path(args.output) if args.output else path.with_name(f"{path.stem}.{args.num_kv_heads}kv.pt")
    _check_output(output, args.overwrite)
    state = checkpoint_utils.load_checkpoint_to_cpu(str(path))
    before = heads.upgrade_projections(state["model"])
    present = [place for place in DEFAULT_PLACES if place in heads.places_of(before)]
    places = args.places or present or DEFAULT_PLACES
    try:
        configuration = elseq_configuration(state["cfg"].model)
        after, configuration = heads.pool_heads(
            before, configuration, args.num_kv_heads, places, args.method, args.seed
        )
    except UserError as error:
        raise UserError(f"checkpoint {path}: {error}") from error
    _save(_checkpoint(state, after, configuration), output)
    print(_report(args, places, before, after, configuration))
    task = getattr(state["cfg"].task, "_name", None) or "translation"
    print(f"written: {output}\nuptrain it with the options of its data, optimizer and learning rate, and:\n")
    print(_training_command(task, configuration, output))


def _checkpoint(state: dict, model: dict, configuration: dict) -> dict:
    """As fairseq saves it, before the first update."""
    cfg = OmegaConf.to_container(state["cfg"], resolve=True, enum_to_str=True)
    return {
        "args": None,
        "cfg": {**cfg, "model": configuration},
        "model": model,
        "optimizer_history": [{**state["optimizer_history"][-1], "lr_scheduler_state": {}, "num_updates": 0}],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "task_state": state.get("task_state") or {},
    }


def _check_output(output: Path, overwrite: bool) -> None:
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: give the name of a file")
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists already: give another --output, or --overwrite")


def _save(checkpoint: dict, output: Path) -> None:
    """All of it or nothing: an interrupted run leaves what was there."""
    temporary = output.with_name(f"{output.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
        temporary.replace(output)
    except (OSError, RuntimeError) as error:  # torch has RuntimeErrors for a full disk
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{output} cannot be written ({reason}): give another --output") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _report(args, places: Sequence[str], before: dict, after: dict, configuration: dict) -> str:
    lines = []
    for place in places:
        number = configuration["encoder_attention_heads" if place == "encoder" else "decoder_attention_heads"]
        if number == args.num_kv_heads:
            lines.append(f"{heads.PLACES[place]}: it has {number} key/value heads, nothing was changed")
        else:
            lines.append(f"{heads.PLACES[place]}: {number} key/value heads -> {args.num_kv_heads} ({args.method})")
    lines.append(f"parameters: {heads.count_parameters(before):,} -> {heads.count_parameters(after):,}")
    for place, position in (("decoder", "generated token"), ("cross", "source token")):
        if place in heads.places_of(before):
            sizes = [heads.state_bytes(model, place) for model in (before, after)]
            lines.append(f"keys and values of a {position}: {sizes[0]:,} -> {sizes[1]:,} bytes")
    return "\n".join(lines)


def _training_command(task: str, configuration: dict, output: Path) -> str:
    restore = ["--restore-file", str(output), "--reset-optimizer", "--reset-lr-scheduler"]
    restore += ["--reset-meters", "--reset-dataloader"]
    options = shlex.join(["--task", task, *training_options(configuration), *restore])
    return f'fairseq-train DATA --user-dir "$(elseq-user-dir)" {options}'


def _parse(arguments: list[str]):
    parser = argparse.ArgumentParser(prog="elseq-convert", description=__doc__.partition(": ")[2])
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    command = commands.add_parser(
        "heads",
        help="a multi-head checkpoint with fewer key/value heads",
        description="Pool the key and value heads of a multi-head checkpoint, of fairseq's Transformer, BART or "
        "language model or of elseq's, into fewer: grouped-query attention, or with one head multi-query attention. "
        "What is written needs some more training (2305.13245 takes a twentieth of the original); how is printed.",
    )
    command.set_defaults(convert=convert_heads)
    command.add_argument("model", metavar="MODEL", help="a checkpoint of fairseq")
    command.add_argument(
        "--num-kv-heads", type=int, required=True, metavar="N", help="key/value heads of a layer; divides its heads"
    )
    command.add_argument(
        "--method",
        choices=heads.METHODS,
        default="mean",
        help="what becomes of a group of heads: their mean, the first of them, or new random weights (default: mean)",
    )
    command.add_argument(
        "--in",
        dest="places",
        type=_places,
        metavar="PLACES",
        help=f"of {', '.join(heads.PLACES)} (default: {','.join(DEFAULT_PLACES)}, those that the model has)",
    )
    command.add_argument("--output", help="default: next to the model, NAME.Nkv.pt")
    command.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    command.add_argument("--seed", type=int, default=1, help="of random weights (default: %(default)s)")
    return parser.parse_args(arguments)


def _places(text: str) -> list[str]:
    places = list(dict.fromkeys(text.split(",")))
    for place in places:
        if place not in heads.PLACES:
            raise argparse.ArgumentTypeError(f"{place!r} is unknown; choose of {', '.join(heads.PLACES)}")
    return places


if __name__ == "__main__":
    main()
