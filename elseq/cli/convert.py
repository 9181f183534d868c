"""elseq-convert: checkpoints of other models or for other programs out of checkpoints that are there."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import elseq
from elseq.arguments import Parser, add_fields, choices, count
from elseq.errors import about, as_option, renamed
from elseq.files import check_output_file, check_overwrite
from elseq.generator import TextGenerator
from elseq.interop import ctranslate, heads
from elseq.interop.checkpoints import make_checkpoint, plain_configuration, to_stock
from elseq.interop.hugging_face import conversion, folders
from elseq.interop.hugging_face.families import FAMILIES
from elseq.interop.output import check_output_folder, new_folder, save
from elseq.loading import Checkpoint, Loading, checkpoint_path
from elseq.models.stock import as_stock, elseq_configuration, training_options
from elseq.subwords.tokens import Tokens

DEFAULT_PLACES = ("decoder", "cross")  # what decoding keeps and reads at every step
# Which of our tasks trains what a task of fairseq has trained. A pretrained BART is finetuned, with its <s>.
TASKS = {
    "translation": "elseq_translation",
    "denoising": "elseq_translation",
    "language_modeling": "elseq_language_modeling",
}


def main() -> None:
    args = _parse(sys.argv[1:])
    args.convert(args)


# --- fewer heads


def convert_heads(args) -> None:
    path = checkpoint_path(args.model)
    output = Path(args.output) if args.output else path.with_name(f"{path.stem}.{args.num_kv_heads}kv.pt")
    check_output_file(output, path, path.parent, *Loading(user_dir=args.user_dir).inputs())
    check_overwrite(output, args.overwrite)
    state = Checkpoint.read(path).state
    before = heads.upgrade_projections(state["model"])
    present = [place for place in DEFAULT_PLACES if place in heads.places_of(before)]
    places = args.places or present or DEFAULT_PLACES
    with about(path):
        configuration = elseq_configuration(state["cfg"].model)
        after, configuration = heads.pool_heads(
            before, configuration, args.num_kv_heads, places, args.method, args.seed
        )
    cfg = plain_configuration(state["cfg"]) | {"model": configuration}
    save(make_checkpoint(cfg, after, state["optimizer_history"][-1], state.get("task_state")), output)
    print(_report(args, places, before, after, configuration))
    task = getattr(state["cfg"].task, "_name", None) or "translation"
    print(f"written: {output}\nuptrain it with the options of its data, optimizer and learning rate, and:\n")
    print(_training_command(TASKS.get(task, task), configuration, output))


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


# --- other programs


def convert_from_hugging_face(args) -> None:
    folder, output = Path(args.folder), Path(args.output)
    data = [Path(args.data)] if args.data else []
    check_output_folder(output, args.overwrite, conversion.WRITTEN_FOR_FAIRSEQ, folder, *data)
    converted = conversion.from_hugging_face(folder, Path(args.data) if args.data else None)
    with new_folder(output) as new:
        for name, text in converted.files.items():
            (new / name).write_text(text, encoding="utf-8")
        save(converted.checkpoint, new / "model.pt")
    for note in converted.notes:
        print(f"note: {note}")
    print(f"written: {output} ({', '.join(['model.pt', *converted.files])})")
    print(f"to generate as its own settings have it:\n\n{_generation_command(converted, output)}")


def _generation_command(converted: conversion.ForFairseq, output: Path) -> str:
    task = converted.checkpoint["cfg"]["task"]
    arguments = ["--path", str(output / "model.pt"), "--task", TASKS[task["_name"]], *converted.task_arguments]
    arguments += ["--bpe", "hugging_face", "--tokenizer-json", str(output / "tokenizer.json")]
    for name, value in converted.generation.items():
        arguments += [as_option(name), *([] if value is True else [str(value)])]
    return f'fairseq-generate DATA --user-dir "$(elseq-user-dir)" {shlex.join(arguments)}'


def convert_to_hugging_face(args) -> None:
    path, output, state = _prepare(args, conversion.WRITTEN)
    dtype = next(tensor.dtype for name, tensor in state["model"].items() if name.endswith(".fc1.weight"))
    loaded = _load(path, args.data, dtype)
    check_output_folder(output, args.overwrite, conversion.WRITTEN, Path(loaded.task.options.data))
    dictionaries = loaded.task.source_dictionary, loaded.task.target_dictionary
    tensors = loaded.model.state_dict()
    # An embedding that is shorter in the loaded model has lost its <mask>, which the task has no word for.
    tensors |= {name: tensor for name, tensor in state["model"].items() if name.endswith("embed_tokens.weight")}
    tokens = loaded.bpe if isinstance(loaded.bpe, Tokens) else None
    forced_start = getattr(loaded.task, "force_bos", False)
    with about(path):
        converted = conversion.to_hugging_face(tensors, state["cfg"], *dictionaries, forced_start, tokens)
    with new_folder(output) as new:
        folders.write(new, converted.config, converted.settings, converted.tensors)
        for name, text in converted.files.items():
            (new / name).write_text(text, encoding="utf-8")
    for note in converted.notes:
        print(f"note: {note}")
    if not converted.files:
        files = "tokenizer.json, nor encoder.json with vocab.bpe"
        print(f"note: no tokenizer was written: the model's folder has no {files}")
    print(f"written: {output}")


def convert_to_ctranslate2(args) -> None:
    path, output, state = _prepare(args, ctranslate.WRITTEN)
    loaded = _load(path, args.data, torch.float32)
    check_output_folder(output, args.overwrite, ctranslate.WRITTEN, Path(loaded.task.options.data))
    dictionaries = loaded.task.source_dictionary, loaded.task.target_dictionary
    with new_folder(output) as new, about(path):
        ctranslate.to_ctranslate2(loaded.model, state["cfg"], *dictionaries, new, args.quantization)
    print(f"written: {output}")


def convert_to_fairseq(args) -> None:
    path, output = checkpoint_path(args.model), Path(args.output)
    check_output_file(output, path, path.parent, *Loading(user_dir=args.user_dir).inputs())
    check_overwrite(output, args.overwrite)
    state = Checkpoint.read(path).state
    with about(path):
        converted = to_stock(state)
    save(converted, output)
    print(f"written: {output}")


def _prepare(args, names: tuple[str, ...]) -> tuple[Path, Path, dict]:
    """The checkpoint's path, the folder to write, and the checkpoint; all of it checked before anything is built."""
    path, output = checkpoint_path(args.model), Path(args.output)
    data = [Path(args.data).expanduser()] if args.data else []
    check_output_folder(output, args.overwrite, names, path, *data)
    state = Checkpoint.read(path).state
    with about(path):
        as_stock(elseq_configuration(state["cfg"].model))
    return path, output, state


def _load(path: Path, data: str | None, dtype: torch.dtype | None = None) -> TextGenerator:
    with renamed(as_option):
        return elseq.load(path, device="cpu", dtype=dtype, data=data)


# --- the command line


def _parse(arguments: list[str]):
    parser = Parser(prog="elseq-convert", description=__doc__.partition(": ")[2])
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_heads(commands)
    families = " or ".join(family.title for family in FAMILIES.values())
    classes = " or a ".join(family.model_class for family in FAMILIES.values())
    command = _add(
        commands,
        "from-hf",
        convert_from_hugging_face,
        f"a {families} of Hugging Face's transformers, for fairseq",
        "Write a folder that elseq.load and fairseq take as it is (model.pt, dict.txt, tokenizer.json) and "
        "print the options with which fairseq-generate does what Hugging Face's generate does by the model's settings.",
    )
    command.add_argument("folder", metavar="FOLDER", help="with config.json, the weights and the tokenizer")
    command.add_argument("--data", metavar="FOLDER", help="of the tokenizer (default: the model's)")
    _add_output(command, "DIR", "folder to write")
    command = _add(
        commands,
        "to-hf",
        convert_to_hugging_face,
        f"a {families} for Hugging Face's transformers",
        f"Write a folder that transformers loads as a {classes}.",
    )
    _add_model(command)
    _add_output(command, "DIR", "folder to write")
    command = _add(
        commands,
        "to-ctranslate2",
        convert_to_ctranslate2,
        "a Transformer, BART or language model for CTranslate2",
        "Write a folder that CTranslate2 loads. Its package must be installed.",
    )
    _add_model(command)
    command.add_argument(
        "--quantization",
        choices=ctranslate.QUANTIZATIONS,
        metavar="TYPE",
        help=f"of the weights: {', '.join(ctranslate.QUANTIZATIONS)} (default: float32)",
    )
    _add_output(command, "DIR", "folder to write")
    command = _add(
        commands,
        "to-fairseq",
        convert_to_fairseq,
        "a checkpoint of elseq's that fairseq loads without elseq",
        "Write the same parameters under an architecture of fairseq's own. (To load it on torch 2.6 and later fairseq "
        "without elseq needs TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1, as for each of its own Transformers and BARTs.)",
    )
    command.add_argument("model", metavar="MODEL", help="a checkpoint, or the folder of one")
    _add_output(command, "FILE", "file to write")
    return parser.parse_args(arguments)


def _add(commands, name: str, convert, summary: str, description: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, description=description)
    command.set_defaults(convert=convert)
    add_fields(command, Loading, "user_dir")
    return command


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="a checkpoint of fairseq or elseq, or the folder of one")
    command.add_argument(
        "--data",
        metavar="FOLDER",
        help="of dict.txt and the subword vocabulary (default: the checkpoint's, else that of its training)",
    )


def _add_output(command: argparse.ArgumentParser, metavar: str, text: str) -> None:
    command.add_argument("--output", metavar=metavar, required=True, help=text)
    command.add_argument("--overwrite", action="store_true", help="replace one that is there")


def _add_heads(commands) -> None:
    command = _add(
        commands,
        "heads",
        convert_heads,
        "a multi-head checkpoint with fewer key/value heads",
        "Pool the key and value heads of a multi-head checkpoint, of fairseq's Transformer, BART or "
        "language model or of elseq's, into fewer: grouped-query attention, or with one head multi-query attention. "
        "What is written needs some more training (2305.13245 takes a twentieth of the original); how is printed.",
    )
    command.add_argument("model", metavar="MODEL", help="a checkpoint of fairseq or elseq, or the folder of one")
    command.add_argument(
        "--num-kv-heads", type=count, required=True, metavar="N", help="key/value heads of a layer; divides its heads"
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
        type=choices(heads.PLACES),
        metavar="PLACES",
        help=f"of {', '.join(heads.PLACES)} (default: {','.join(DEFAULT_PLACES)}, those that the model has)",
    )
    command.add_argument("--output", help="default: next to the model, NAME.Nkv.pt")
    command.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    command.add_argument("--seed", type=int, default=1, help="of random weights (default: %(default)s)")


if __name__ == "__main__":
    main()
