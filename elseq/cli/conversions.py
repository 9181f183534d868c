"""The conversions of elseq-convert, by the names of its commands. Each takes the options of its command."""

import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.tasks import TASK_REGISTRY

from elseq.cli.calibration import read_calibration
from elseq.cli.convert import CALIBRATION_SENTENCES, DEFAULT_PLACES
from elseq.compat.settings import values
from elseq.compat.training import FEWER_HEADS, recorded_conversions
from elseq.errors import UserError, about, as_option, renamed
from elseq.files import check_output_file, check_overwrite
from elseq.generator import TextGenerator, load, load_by
from elseq.interop import averaging, ctranslate, heads
from elseq.interop.checkpoints import make_checkpoint, plain_configuration, to_stock
from elseq.interop.hugging_face import conversion, folders
from elseq.interop.output import check_output_folder, new_folder, save, write_files
from elseq.loading import Checkpoint, checkpoint_path
from elseq.model_files import TOKENIZER_JSON, VOCAB_JSON
from elseq.models.stock import as_stock, elseq_configuration, recorded_options, training_options
from elseq.numerics import check_finite
from elseq.options import WINDOWS, Loading
from elseq.subwords.pieces import PiecesWithIds
from elseq.subwords.tokens import Tokens

# The elseq task that continues the training of a fairseq task. A pretrained BART is finetuned with <s> at the start.
TASKS = {
    "translation": "elseq_translation",
    "denoising": "elseq_translation",
    "language_modeling": "elseq_language_modeling",
}


# --- fewer heads


def convert_heads(args) -> None:
    path = checkpoint_path(args.model)
    size = f"budget-{args.state_budget:g}" if args.num_kv_heads is None else f"{args.num_kv_heads}kv"
    output = args.output or path.with_name(f"{path.stem}.{size}.pt")
    loading = Loading("kv", "cpu", data=args.data, user_dir=args.user_dir)
    texts = [text for text in (args.calibration, args.calibration_target) if text is not None]
    check_output_file(output, path, path.parent, *loading.inputs(), *texts)
    check_overwrite(output, args.overwrite)
    checkpoint = Checkpoint.read(path, stays_in_file=False)
    state = checkpoint.state
    before = heads.upgrade_projections(state["model"])
    check_finite(before, str(path))
    present = [place for place in DEFAULT_PLACES if place in heads.places_of(before)]
    places = args.places or present or DEFAULT_PLACES
    notes, record = [], {"places": list(places), "method": args.method, "grouping": args.grouping}
    with about(path):
        configuration = elseq_configuration(state["cfg"].model)
        heads.check_heads(before, configuration, args.num_kv_heads or 1, places)
        if args.calibration is None:
            after, configuration = heads.pool_heads(
                before, configuration, args.num_kv_heads, places, args.method, args.seed
            )
    if args.calibration is not None:
        after, configuration, record["calibration"], notes = _by_calibration(
            args, checkpoint, loading, before, configuration, places
        )
    cfg = plain_configuration(state["cfg"]) | {"model": configuration}
    converted = make_checkpoint(cfg, after, state["optimizer_history"][-1], state.get("task_state"))
    converted["extra_state"][FEWER_HEADS] = [*recorded_conversions(state), record]
    save(converted, output)
    print("\n".join([_report(args.method, places, before, after, configuration), *notes]))
    print(f"written: {output}\nuptrain it with the options of its data, optimizer and learning rate, and:\n")
    print(_training_command(cfg, output))


def _by_calibration(
    args, checkpoint: Checkpoint, loading: Loading, before: dict, configuration: dict, places: Sequence[str]
) -> tuple[dict, dict, dict, list[str]]:
    """The tensors, the configuration, the record of the calibration text for the checkpoint, and lines to print."""
    if checkpoint.multilingual_task:
        raise UserError("calibration text is not for a multilingual task: give --method mean, and leave it out")
    with renamed(as_option):
        generator = load_by(checkpoint.path, loading)
    model = generator.model
    needed = max(layer.self_attn.q_proj.out_features for layer in model.decoder.layers)
    texts = (args.calibration, args.calibration_target)
    calibration = read_calibration(generator, *texts, args.calibration_sentences or CALIBRATION_SENTENCES, needed)
    how = (places, args.method, args.grouping, model, calibration.texts)
    loss = calibration.loss(model)
    numbers = args.num_kv_heads
    if numbers is None:
        numbers = heads.kv_heads_within(args.state_budget, *how, lambda: calibration.loss(model))
    after, configuration = heads.fit_heads(before, configuration, numbers, *how)
    text = f"{len(calibration.samples)} sentences of {calibration.name}, {calibration.tokens:,} tokens"
    notes = [f"loss on {text}: {loss:.3f} -> {calibration.loss(model):.3f} bits per token"]
    return after, configuration, calibration.record(), notes


def _report(method: str, places: Sequence[str], before: dict, after: dict, configuration: dict) -> str:
    lines = []
    for place in places:
        number = configuration["encoder_attention_heads" if place == "encoder" else "decoder_attention_heads"]
        left = ",".join(map(str, heads.kv_heads_of(after, configuration, place)))
        if left == str(number):
            lines.append(f"{heads.PLACES[place]}: it has {number} key/value heads, nothing was changed")
        else:
            lines.append(f"{heads.PLACES[place]}: {number} key/value heads -> {left} ({method})")
    lines.append(f"parameters: {heads.count_parameters(before):,} -> {heads.count_parameters(after):,}")
    for place, position in (("decoder", "generated token"), ("cross", "source token")):
        if place in heads.places_of(before):
            sizes = [heads.state_bytes(model, place) for model in (before, after)]
            lines.append(f"keys and values of a {position}: {sizes[0]:,} -> {sizes[1]:,} bytes")
    return "\n".join(lines)


def _training_command(cfg: dict, output: Path) -> str:
    """
    Args:
        cfg: the whole configuration of the converted checkpoint.
        output: its file.
    """
    task, criterion = (
        values(cfg[part]) if isinstance(cfg.get(part), dict | Namespace) else {} for part in ("task", "criterion")
    )
    name = task.get("_name") or "translation"
    name = TASKS.get(name, name)
    besides = ("data", *cfg["model"])
    options = ["--task", name, *recorded_options(TASK_REGISTRY.get(name), task, besides)]
    options += training_options(cfg["model"])
    name = criterion.get("_name")
    if isinstance(name, str) and name in CRITERION_REGISTRY:
        options += ["--criterion", name, *recorded_options(CRITERION_REGISTRY[name], criterion)]
    # Other than with --restore-file, a repeated command continues; so its folder must be a new one.
    options += ["--finetune-from-model", str(output), "--save-dir", str(output.with_name(f"{output.stem}.training"))]
    return f'fairseq-train DATA --user-dir "$(elseq-user-dir)" {shlex.join(options)}'


# --- the mean of several


def convert_average(args) -> None:
    output, paths = args.output, args.checkpoints
    if args.last is None and args.by_updates:
        raise UserError("--by-updates needs --last N: the number of checkpoints")
    if args.last is not None:
        if len(paths) == 1 and not paths[0].exists():
            raise UserError(f"{paths[0]} does not exist: check the path")
        if len(paths) > 1 or not paths[0].is_dir():
            raise UserError(f"--last {args.last} needs the folder of one training: give it, or leave --last out")
        paths = averaging.last_checkpoints(paths[0], args.last, args.by_updates)
    paths = [checkpoint_path(path) for path in paths]
    check_output_file(output, *paths)
    check_overwrite(output, args.overwrite)
    state, records, settings = {}, [], []  # of the last one that was read, without its parameters; of all; of all

    def models():
        for path in paths:
            state.clear()
            state.update(checkpoint_utils.load_checkpoint_to_cpu(str(path)))
            state.pop("last_optimizer_state", None)
            records.append(recorded_conversions(state))
            settings.append(averaging.settings_of(state["cfg"].model))
            averaging.check_same(paths[0], settings[0], path, settings[-1])
            yield path, state.pop("model")

    mean = averaging.mean(models())
    if isinstance(state.get("extra_state"), dict):
        state["extra_state"].pop(FEWER_HEADS, None)
        if conversions := averaging.common(records):
            state["extra_state"][FEWER_HEADS] = conversions
    save({**state, "cfg": plain_configuration(state["cfg"]), "model": mean}, output)
    print(f"written: {output}, the mean of {', '.join(path.name for path in paths)}")


# --- other programs


def convert_from_hugging_face(args) -> None:
    folder, output = args.folder, args.output
    data = [args.data] if args.data else []
    check_output_folder(output, args.overwrite, conversion.WRITTEN_FOR_FAIRSEQ, folder, *data)
    converted = conversion.from_hugging_face(folder, args.data)
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
    tokenizer = TOKENIZER_JSON if TOKENIZER_JSON in converted.files else VOCAB_JSON
    arguments += ["--bpe", "hugging_face", "--tokenizer-json", str(output / tokenizer)]
    for name, value in converted.generation.items():
        arguments += [as_option(name), *([] if value is True else [str(value)])]
    return f'fairseq-generate DATA --user-dir "$(elseq-user-dir)" {shlex.join(arguments)}'


def convert_to_hugging_face(args) -> None:
    checkpoint, output = _prepare(args, conversion.WRITTEN, conversion.FEATURES, conversion.PROGRAM)
    settings = Checkpoint.read(checkpoint_path(args.settings)).cfg if args.settings else None
    parameters = checkpoint.state["model"]
    dtype = next(tensor.dtype for name, tensor in parameters.items() if name.endswith(".fc1.weight"))
    loaded = _load(checkpoint.path, args.data, dtype)
    check_output_folder(output, args.overwrite, conversion.WRITTEN, Path(loaded.task.options.data))
    tensors = loaded.model.state_dict()
    # The task has no word for <mask>, so the loaded model has lost that row of the embedding.
    embeddings = [name for name in parameters if name.endswith("embed_tokens.weight")]
    tensors |= {name: checkpoint.stored.read(parameters[name]) for name in embeddings}
    tokens = loaded.bpe if isinstance(loaded.bpe, Tokens | PiecesWithIds) else None
    with about(checkpoint.path):
        converted = conversion.to_hugging_face(tensors, checkpoint.cfg, loaded.task, tokens, args.family, settings)
    with new_folder(output) as new:
        folders.write(new, converted.config, converted.settings, converted.tensors)
        write_files(new, converted.files)
    for note in converted.notes:
        print(f"note: {note}")
    print(f"written: {output}")


def convert_to_ctranslate2(args) -> None:
    checkpoint, output = _prepare(args, ctranslate.WRITTEN, ctranslate.FEATURES, ctranslate.PROGRAM)
    loaded = _load(checkpoint.path, args.data, torch.float32)
    check_output_folder(output, args.overwrite, ctranslate.WRITTEN, Path(loaded.task.options.data))
    dictionaries = loaded.task.source_dictionary, loaded.task.target_dictionary
    with new_folder(output) as new, about(checkpoint.path):
        ctranslate.to_ctranslate2(loaded.model, checkpoint.cfg, *dictionaries, new, args.quantization)
    print(f"written: {output}")


def convert_to_fairseq(args) -> None:
    path, output = checkpoint_path(args.model), args.output
    check_output_file(output, path, path.parent, *Loading(user_dir=args.user_dir).inputs())
    check_overwrite(output, args.overwrite)
    state = Checkpoint.read(path, stays_in_file=False).state
    with about(path):
        converted = to_stock(state)
    _note_windows(state["cfg"])
    save(converted, output)
    print(f"written: {output}")


def _prepare(args, names: tuple[str, ...], features: Sequence[str], program: str) -> tuple[Checkpoint, Path]:
    """The checkpoint, whose tensors stay in its file, and the output folder, both checked before a model is built.

    Args:
        names: of the files that are written; see `check_output_folder`.
        features, program: what the program has and fairseq does not, and its name; see `as_stock`.
    """
    path, output = checkpoint_path(args.model), args.output
    data = [args.data] if args.data else []
    check_output_folder(output, args.overwrite, names, path, *data)
    checkpoint = Checkpoint.read(path, allow_multilingual=False)
    with about(path):
        as_stock(elseq_configuration(checkpoint.cfg.model), features, program)
    _note_windows(checkpoint.cfg)
    return checkpoint, output


def _note_windows(cfg) -> None:
    """Print a note if the model was trained with windows, which other programs do not have."""
    if any(getattr(cfg.task, name, None) for name in WINDOWS):
        print("note: the model was trained on sources in windows; what is written reads sources of one window")


def _load(path: Path, data: str | None, dtype: torch.dtype | None = None) -> TextGenerator:
    with renamed(as_option):
        return load(path, device="cpu", dtype=dtype, data=data)


COMMANDS = {
    "heads": convert_heads,
    "average": convert_average,
    "from-hf": convert_from_hugging_face,
    "to-hf": convert_to_hugging_face,
    "to-ctranslate2": convert_to_ctranslate2,
    "to-fairseq": convert_to_fairseq,
}
