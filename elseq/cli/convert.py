"""elseq-convert: convert checkpoints: from and to other programs, and to fewer key/value heads."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import elseq
from elseq.arguments import Parser, add_fields, choices, count
from elseq.errors import about, as_option, renamed
from elseq.files import TOKENIZER, check_output_file, check_overwrite
from elseq.generator import TextGenerator
from elseq.interop import ctranslate, heads
from elseq.interop.checkpoints import make_checkpoint, plain_configuration, to_stock
from elseq.interop.hugging_face import conversion, folders
from elseq.interop.hugging_face.families import FAMILIES
from elseq.interop.output import check_output_folder, new_folder, save, write_files
from elseq.loading import Checkpoint, Loading, checkpoint_path
from elseq.models.stock import as_stock, elseq_configuration, training_options
from elseq.subwords.pieces import NUMBERS, NumberedPieces
from elseq.subwords.tokens import Tokens

DEFAULT_PLACES = ("decoder", "cross")  # attentions whose keys and values decoding reads at every step
# The elseq task that continues the training of a fairseq task. A pretrained BART is finetuned with <s> at the start.
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
        write_files(new, converted.files)
        save(converted.checkpoint, new / "model.pt")
    for note in converted.notes:
        print(f"note: {note}")
    print(f"written: {output} ({', '.join(['model.pt', *converted.files])})")
    print(f"to generate with the model's own settings:\n\n{_generation_command(converted, output)}")


def _generation_command(converted: conversion.ForFairseq, output: Path) -> str:
    task = converted.checkpoint["cfg"]["task"]
    arguments = ["--path", str(output / "model.pt"), "--task", TASKS[task["_name"]], *converted.task_arguments]
    tokenizer = TOKENIZER if TOKENIZER in converted.files else NUMBERS
    arguments += ["--bpe", "hugging_face", "--tokenizer-json", str(output / tokenizer)]
    for name, value in converted.generation.items():
        arguments += [as_option(name), *([] if value is True else [str(value)])]
    return f'fairseq-generate DATA --user-dir "$(elseq-user-dir)" {shlex.join(arguments)}'


def convert_to_hugging_face(args) -> None:
    path, output, state = _prepare(args, conversion.WRITTEN, conversion.check_features)
    dtype = next(tensor.dtype for name, tensor in state["model"].items() if name.endswith(".fc1.weight"))
    loaded = _load(path, args.data, dtype)
    check_output_folder(output, args.overwrite, conversion.WRITTEN, Path(loaded.task.options.data))
    dictionaries = loaded.task.source_dictionary, loaded.task.target_dictionary
    tensors = loaded.model.state_dict()
    # The task has no word for <mask>, so the loaded model has lost that row of the embedding.
    tensors |= {name: tensor for name, tensor in state["model"].items() if name.endswith("embed_tokens.weight")}
    tokens = loaded.bpe if isinstance(loaded.bpe, Tokens | NumberedPieces) else None
    forced_start = getattr(loaded.task, "force_bos", False)
    with about(path):
        converted = conversion.to_hugging_face(tensors, state["cfg"], *dictionaries, forced_start, tokens)
    with new_folder(output) as new:
        folders.write(new, converted.config, converted.settings, converted.tensors)
        write_files(new, converted.files)
    for note in converted.notes:
        print(f"note: {note}")
    if not converted.files:
        files = "tokenizer.json, nor encoder.json with vocab.bpe"
        print(f"note: no tokenizer was written: the model's folder has no {files}")
    print(f"written: {output}")


def convert_to_ctranslate2(args) -> None:
    path, output, state = _prepare(args, ctranslate.WRITTEN, as_stock)
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


def _prepare(args, names: tuple[str, ...], check: Callable[[dict], object]) -> tuple[Path, Path, dict]:
    """Path of the checkpoint, output folder, and checkpoint, all checked before a model is built.

    Args:
        names: of the files that are written; see `check_output_folder`.
        check: refuses the configurations of elseq models that cannot be written.
    """
    path, output = checkpoint_path(args.model), Path(args.output)
    data = [Path(args.data).expanduser()] if args.data else []
    check_output_folder(output, args.overwrite, names, path, *data)
    state = Checkpoint.read(path).state
    with about(path):
        check(elseq_configuration(state["cfg"].model))
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
        f"to fairseq: a {families} of Hugging Face's transformers",
        "Write a folder that elseq.load and fairseq read (model.pt, dict.txt, tokenizer.json), and print the options "
        "with which fairseq-generate follows the model's generation settings. Nothing is downloaded.",
    )
    command.add_argument("folder", metavar="FOLDER", help="a folder with config.json, the weights and the tokenizer")
    command.add_argument("--data", metavar="FOLDER", help="folder of the tokenizer (default: that of the model)")
    _add_output(command, "DIR", "folder to write")
    command = _add(
        commands,
        "to-hf",
        convert_to_hugging_face,
        f"to Hugging Face's transformers: a {families}",
        f"Write a folder that transformers loads as a {classes}.",
    )
    _add_model(command)
    _add_output(command, "DIR", "folder to write")
    command = _add(
        commands,
        "to-ctranslate2",
        convert_to_ctranslate2,
        "to CTranslate2: Transformer, BART, language model",
        "Write a folder that CTranslate2 loads. The package ctranslate2 must be installed.",
    )
    _add_model(command)
    command.add_argument(
        "--quantization",
        choices=ctranslate.QUANTIZATIONS,
        metavar="TYPE",
        help=f"type of the weights: {', '.join(ctranslate.QUANTIZATIONS)} (default: float32)",
    )
    _add_output(command, "DIR", "folder to write")
    command = _add(
        commands,
        "to-fairseq",
        convert_to_fairseq,
        "to a checkpoint that fairseq loads without elseq",
        "Write the same parameters with an architecture of fairseq. On torch 2.6 and later, fairseq without elseq "
        "loads Transformer and BART checkpoints only with TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1.",
    )
    command.add_argument("model", metavar="MODEL", help="a checkpoint, or its folder")
    _add_output(command, "FILE", "file to write")
    return parser.parse_args(arguments)


def _add(commands, name: str, convert, summary: str, description: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, description=description)
    command.set_defaults(convert=convert)
    add_fields(command, Loading, "user_dir")
    return command


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="a checkpoint of fairseq or elseq, or its folder")
    command.add_argument(
        "--data",
        metavar="FOLDER",
        help="folder of dict.txt and the subword vocabulary (default: the checkpoint's or its training data's)",
    )


def _add_output(command: argparse.ArgumentParser, metavar: str, text: str) -> None:
    command.add_argument("--output", metavar=metavar, required=True, help=text)
    command.add_argument("--overwrite", action="store_true", help="replace an existing output")


def _add_heads(commands) -> None:
    command = _add(
        commands,
        "heads",
        convert_heads,
        "from multi-head attention to fewer key/value heads",
        "Pool the key and value heads of a multi-head checkpoint of fairseq or elseq (Transformer, BART or language "
        "model): grouped-query attention, or with one head multi-query attention. The result needs further training, "
        "for which the command prints the options. 2305.13245 trains for a twentieth of the original updates.",
    )
    command.add_argument("model", metavar="MODEL", help="a checkpoint of fairseq or elseq, or its folder")
    command.add_argument(
        "--num-kv-heads", type=count, required=True, metavar="N", help="key/value heads; divides the number of heads"
    )
    command.add_argument(
        "--method",
        choices=heads.METHODS,
        default="mean",
        help="replace each group of heads by its mean, its first head, or random weights (default: mean)",
    )
    command.add_argument(
        "--in",
        dest="places",
        type=choices(heads.PLACES),
        metavar="PLACES",
        help=f"of {', '.join(heads.PLACES)} (default: {','.join(DEFAULT_PLACES)}, those that the model has)",
    )
    command.add_argument("--output", help="default: NAME.Nkv.pt in the folder of the model")
    command.add_argument("--overwrite", action="store_true", help="replace an existing file")
    command.add_argument("--seed", type=int, default=1, help="seed of random weights (default: %(default)s)")


if __name__ == "__main__":
    main()
