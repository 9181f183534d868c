"""Repairs of checkpoints: load only what fairseq saves, and explain in one sentence why a file cannot be used."""

import contextlib
import errno
import inspect
import logging
import os
import pickle
import re
import sys
import textwrap
import zipfile
from argparse import Namespace
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import torch
from fairseq import checkpoint_utils, criterions, models, tasks
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.logging import meters
from fairseq.trainer import Trainer
from fairseq_cli import train

from elseq.compat import contents, stored_tensors
from elseq.compat.literals import NotLiteral
from elseq.compat.parameters import Adoption
from elseq.compat.patching import Overlay, setting, wrap
from elseq.compat.settings import model_class, model_name, values
from elseq.errors import UserError, as_option, described, is_out_of_memory, user_sentence
from elseq.files import check_ordinary

logger = logging.getLogger(__name__)

_AS_TRAINING_LEFT_IT = "use the file that the training saved"


def allow_what_checkpoints_hold():
    """torch >= 2.6 unpickles only tensors and plain containers, and refuses every checkpoint that fairseq writes.

    These also hold a `Namespace` (`args`, or `cfg.model`), numbers and arrays of numbers from numpy (the
    meters after --eval-bleu), and up to fairseq 0.9 the meters themselves. Structured arrays and arrays of objects
    stay refused, because no checkpoint needs them.
    """
    number_types = {type(np.dtype(code)) for code in "?" + np.typecodes["AllInteger"] + np.typecodes["AllFloat"]}
    allowed = [Namespace, np.ndarray, np.dtype, *number_types]
    multiarray = sys.modules[np.asarray(0).__reduce__()[0].__module__]
    for name, function in (("_reconstruct", _empty_array), ("scalar", multiarray.scalar)):
        for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # numpy 1, numpy 2
            allowed.append((function, f"{module}.{name}"))
    for meter in (meters.AverageMeter, meters.StopwatchMeter, meters.TimeMeter):
        allowed.append((meter, f"fairseq.meters.{meter.__name__}"))
    torch.serialization.add_safe_globals(allowed)


def _empty_array(kind, shape, code):
    """A replacement of numpy's `_reconstruct`, which could make an array of any size. This one is empty."""
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError("an array that is not empty to begin with")
    return np.empty(0, np.int8)


def explain_unreadable_files():
    """A file that cannot be loaded gives a long text about unpickling, an EOFError, a KeyError or a RuntimeError."""
    checkpoint_utils.torch = Overlay(torch, load=_load_file)
    wrap(checkpoint_utils, "load_checkpoint_to_cpu", _load_checkpoint_to_cpu)


def _load_file(file, *args, **kwargs):
    """`torch.load` of an open checkpoint. A `UserError` explains why it cannot be used."""
    size = os.fstat(file.fileno()).st_size
    try:
        contents.check_file(file, size)
        state = stored_tensors.load(file, *args, **kwargs)
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"checkpoint {file.name} does not fit the memory: use a machine with more") from error
    except Exception as error:
        raise UserError(_why_unreadable(file, error)) from error
    for keys in (("model",), ("args", "cfg"), ("optimizer_history", "best_loss"), ("extra_state", "epoch")):
        if not isinstance(state, dict) or all(state.get(key) is None for key in keys):
            missing = " or ".join(repr(key) for key in keys)
            raise UserError(
                f"{file.name} is not a checkpoint of fairseq: it has no {missing}; give a file that fairseq-train saved"
            )
    contents.check_size(state, size)
    contents.check_parts(state)
    return state


def _why_unreadable(file, error):
    foreign = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error))
    if isinstance(error, pickle.UnpicklingError) and foreign:
        return (
            f"checkpoint {file.name} holds an object of {foreign[1]}, which is not on elseq's list of safe classes: "
            "save it again without that object, or, if you trust the file, set TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1"
        )
    file.seek(0)
    start = file.read(4)
    if not start:
        return f"checkpoint {file.name} is empty: copy or train it again"
    # torch's format is a zip archive; its former format is a pickle of protocol 2
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        return f"checkpoint {file.name} is damaged or was cut off: copy or train it again"
    return f"{file.name} is not a checkpoint: give a file that fairseq-train saved"


def _load_checkpoint_to_cpu(load, path, *args, **kwargs):
    try:
        with _sentences_about(path, damage=_AS_TRAINING_LEFT_IT):
            check_ordinary(path)
            state = load(path, *args, **kwargs)
            model, task = state["cfg"]["model"], state["cfg"]["task"]
            contents.check_values(model_class(model), model, "model")
            contents.check_values(_task_class(task), task, "task")
            return state
    except OSError as error:
        raise _cannot_be_read(path, error.strerror or error) from error


def _task_class(settings):
    """The class that fairseq builds for a task's settings, or None if it is unknown."""
    return tasks.TASK_REGISTRY.get(getattr(settings, "_name", None) or getattr(settings, "task", None))


def _cannot_be_read(path, reason):
    return UserError(f"checkpoint {path} cannot be read ({reason}): check the path")


def explain_misfits():
    """A checkpoint of another architecture or dictionary gives a list of all its parameters, or an AssertionError with
    whole configurations. One of an unknown architecture gives a KeyError."""
    wrap(models, "build_model", _build_model)
    wrap(tasks, "setup_task", _setup_task)
    wrap(criterions, "build_criterion", _build_criterion)
    wrap(checkpoint_utils, "_upgrade_state_dict", _upgrade_state_dict)
    wrap(checkpoint_utils, "load_model_ensemble_and_task", _load_model_ensemble_and_task)
    wrap(Trainer, "load_checkpoint", _trainer_load_checkpoint)


def _require_known(kind, name, *registries):
    if isinstance(name, str) and not any(name in registry for registry in registries):
        raise UserError(unknown(kind, name))


def unknown(kind: str, name: str) -> str:
    """The error sentence for an unknown architecture or task."""
    return (
        f"the {kind} {name!r} is unknown: name the folder of the plugin that has it as well, to fairseq's commands by "
        '--user-dir "$(elseq-user-dir FOLDER)", to those of elseq by --user-dir FOLDER, in Python by user_dir'
    )


def _build_model(build, cfg, *args, **kwargs):
    name = model_name(cfg)
    _require_known("architecture", name, models.ARCH_MODEL_REGISTRY, models.MODEL_DATACLASS_REGISTRY)
    try:
        return build(cfg, *args, **kwargs)
    except NotLiteral as error:
        options = [as_option(name) for name, value in values(cfg).items() if value == error.text]
        if not options:
            raise
        raise UserError(f"{options[0]}: {error}") from error


def _setup_task(setup, cfg, *args, **kwargs):
    name = getattr(cfg, "task", None)
    _require_known("task", name if isinstance(name, str) else getattr(cfg, "_name", None), tasks.TASK_REGISTRY)
    return setup(cfg, *args, **kwargs)


def _build_criterion(build, cfg, *args, **kwargs):
    name = cfg if isinstance(cfg, str) else getattr(cfg, "_name", None) or getattr(cfg, "criterion", None)
    _require_known("criterion", name, criterions.CRITERION_REGISTRY)
    return build(cfg, *args, **kwargs)


def accept_missing_history():
    """A checkpoint without the history of its optimizer gives an IndexError, because fairseq reads the last entry."""

    def upgrade_state_dict(upgrade, state):
        if state.get("optimizer_history") == []:
            state["optimizer_history"] = [{"lr_scheduler_state": {}, "num_updates": 0}]
        return upgrade(state)

    wrap(checkpoint_utils, "_upgrade_state_dict", upgrade_state_dict)


def _upgrade_state_dict(upgrade, state):
    # old checkpoints: fairseq looks up both while it converts the namespace to a configuration
    args = state.get("args")
    _require_known("architecture", getattr(args, "arch", None), models.ARCH_MODEL_REGISTRY)
    _require_known("task", getattr(args, "task", None), tasks.TASK_REGISTRY)
    return upgrade(state)


def _load_model_ensemble_and_task(
    load, filenames, arg_overrides=None, task=None, strict=True, suffix="", num_shards=1, state=None
):
    # one file at a time, so that errors can name it
    ensemble, cfg = [], None
    for filename in filenames:
        reading = _read_once() if state is None else contextlib.nullcontext()
        with _sentences_about(filename, damage=_AS_TRAINING_LEFT_IT), reading, _budget(filename):
            loaded, cfg, task = load([filename], arg_overrides, task, strict, suffix, num_shards, state)
        ensemble += loaded
    return ensemble, cfg, task


@contextlib.contextmanager
def _read_once():
    """fairseq reads a file whole, the state of the optimizer too, and copies the model. A model that is loaded here
    takes the tensors that it has, and the others are not read."""
    stored = stored_tensors.StoredTensors()
    adoption = Adoption(stored)
    with stored.loading(), adoption.active():
        yield
    adoption.read_all()


def _budget(filename):
    """The memory limit for building the model of this file, including temporary tensors."""
    if not os.path.exists(filename):
        return contextlib.nullcontext()  # the checkpoint is in parts, or missing
    return contents.MemoryBudget(8 * os.path.getsize(filename) + 2**28, filename)


def _trainer_load_checkpoint(load, trainer, filename, *args, **kwargs):
    remedy, damage = "give the options it was trained with", _AS_TRAINING_LEFT_IT
    if not trainer.cfg.checkpoint.finetune_from_model:  # which does not go with the options below
        remedy += ", or another --save-dir to start afresh"
        reset = ", ".join(f"--reset-{name}" for name in ("optimizer", "lr-scheduler", "meters", "dataloader"))
        damage = f"continue from its model alone by {reset}"
    with _sentences_about(filename, remedy, damage):
        try:
            extra_state = load(trainer, filename, *args, **kwargs)
        except UserError as error:
            # --restore-file does not go with these options.
            settings, other = trainer.cfg.checkpoint, None
            if not (settings.finetune_from_model or trainer.checkpoint_suffix or _looks_whole(Path(filename))):
                other = _newest_beside(Path(filename))
            if other is None:
                raise
            raise UserError(f"{error}, or give --restore-file {other}") from error
        if extra_state is not None:
            _check_progress(extra_state)
        return extra_state


def _looks_whole(path: Path) -> bool:
    """Whether a file ends as torch.save ends one."""
    return path.is_file() and zipfile.is_zipfile(path)


def _newest_beside(path: Path) -> Path | None:
    others = [other for other in path.parent.glob("checkpoint*.pt") if other != path and _looks_whole(other)]
    return max(others, key=lambda other: other.stat().st_mtime, default=None)


def _check_progress(extra_state):
    """Whether training can continue from this progress. Otherwise fairseq fails much later, without naming the file."""
    place = extra_state["train_iterator"]
    for key, low in (("epoch", 1), ("iterations_in_epoch", 0)):
        if not low <= int(place.get(key, low)) < 2**31:  # part of a seed
            raise ValueError(f"{key} {place[key]}")
    for key in ("previous_training_time", "best"):
        float(extra_state.get(key) or 0)


@contextlib.contextmanager
def _sentences_about(filename, remedy="take the file and the settings as training left them", damage=None):
    """Turn fairseq's error about a checkpoint that does not fit into a `UserError` that names the file.

    `remedy` is for a model with other tensors than the checkpoint. Errors about dictionaries have their own remedy. If
    the result depends only on the file, other errors come from its content, too; `damage` is their remedy.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        message = str(error)
        sentence = user_sentence(error)
        if sentence is not None:
            if isinstance(error, UserError) and (error.argument or str(filename) in sentence):
                raise
            raise UserError(f"checkpoint {filename}: {sentence}") from error
        if message.startswith("Model file not found"):
            missing = message.partition(": ")[2]  # one part of a checkpoint in parts
            raise _cannot_be_read(missing, os.strerror(errno.ENOENT)) from error
        if message.startswith("Cannot load model parameters"):  # the trainer's error, which hides its cause
            message = str(error.__context__)
        elif not message.startswith("Error(s) in loading state_dict"):
            if damage is None or str(getattr(error, "filename", None)) == str(filename):
                raise
            raise UserError(
                f"checkpoint {filename} cannot be used, its content leads to an error ({described(error)}): {damage}"
            ) from error
        raise UserError(_misfit(filename, message, remedy)) from error


def _misfit(filename, message, remedy):
    surplus = re.search(r'^[^\n]*:\s+Unexpected key\(s\) in state_dict: ("[^"]+"(?:, "[^"]+")*)\. *$', message)
    if surplus:
        first, *others = surplus[1].split(", ")
        names = f"{first} and {len(others)} more" if others else first
        return (
            f"checkpoint {filename} has parameters that its architecture does not have ({names}), and without them the "
            "model may say something else: give the architecture or the plugin that has them, or take them out of it"
        )
    mismatch = re.search(r"size mismatch for (\S+): .*?\[([\d, ]*)\].*?\[([\d, ]*)\]", message)
    if mismatch:
        name, saved, built = mismatch.groups()
        saved, built = saved.split(", "), built.split(", ")
        if name.endswith(".embed_tokens.weight") and saved[0] != built[0]:
            side = name.removesuffix(".embed_tokens.weight")  # encoder or decoder
            return (
                f"the {side} of checkpoint {filename} was trained with a dictionary of {saved[0]} entries, the data "
                f"has one of {built[0]}: use the checkpoint's, and prepare data with it "
                "(fairseq-preprocess --srcdict, --tgtdict)"
            )
        misfit = f"{name} has the shape {' x '.join(saved)} in it and {' x '.join(built)} in the model"
    else:
        misfit, *others = [line.strip() for line in message.splitlines()[1:]] or [message]
        misfit = textwrap.shorten(misfit, 200, placeholder=" ...") + (f" and {len(others)} more" if others else "")
    return f"checkpoint {filename} does not fit the model ({misfit}): {remedy}"


def forget_best_score():
    """The best score and the patience counter are attributes of functions. The second training of a process (a job of a
    Hydra multirun) is compared with the first, and may never write checkpoint_best.pt."""

    def load_checkpoint(load, cfg, trainer, *args, **kwargs):
        vars(checkpoint_utils.save_checkpoint).pop("best", None)
        vars(train.should_stop_early).clear()
        return load(cfg, trainer, *args, **kwargs)

    wrap(checkpoint_utils, "load_checkpoint", load_checkpoint)


_continued: ContextVar = ContextVar("the settings of the checkpoints of the training that continues", default=None)


def forget_best_of_another_metric():
    """Training continues with the best score of the checkpoint, also where --best-checkpoint-metric or
    --maximize-best-checkpoint-metric is another one. Then a loss is compared with BLEU, checkpoint_best.pt may never be
    written again, and reduce_lr_on_plateau may lower the learning rate without need."""

    def load_checkpoint(load, *args, **kwargs):
        given = inspect.signature(load).bind(*args, **kwargs)
        given.apply_defaults()
        options = given.arguments
        is_new = options["reset_optimizer"] or options["reset_meters"]
        with setting(_continued, None if is_new else options["self"].cfg.checkpoint):
            return load(*args, **kwargs)

    wrap(Trainer, "load_checkpoint", load_checkpoint)
    wrap(checkpoint_utils, "load_checkpoint_to_cpu", _forget_best)


def _forget_best(load, *args, **kwargs):
    state, now = load(*args, **kwargs), _continued.get()
    if now is None or state["extra_state"].get("best") is None:
        return state
    before = {**now, **state["cfg"].get("checkpoint", {})}
    found, wanted = (
        f"the {'largest' if each['maximize_best_checkpoint_metric'] else 'smallest'} {each['best_checkpoint_metric']}"
        for each in (before, now)
    )
    if found != wanted:
        del state["extra_state"]["best"]
        state["optimizer_history"][-1]["lr_scheduler_state"]["best"] = None
        logger.warning(
            "checkpoint_best.pt is that of %s, and from now on that of %s: the next validation writes over it",
            *(found, wanted),
        )
    return state


def explain_missing_start():
    """A missing --restore-file is ignored silently, and training starts from random weights; so is a folder, also as
    --finetune-from-model. Where that is missing there is a traceback."""

    def load_checkpoint(load, cfg, trainer, *args, **kwargs):
        start = cfg.restore_file.replace(".pt", f"{trainer.checkpoint_suffix}.pt")
        for option, path in (("restore-file", start), ("finetune-from-model", cfg.finetune_from_model)):
            if path is not None and os.path.isdir(path):
                raise UserError(f"--{option} {path} is a folder: give the file of a checkpoint, as one in it")
        if cfg.restore_file != "checkpoint_last.pt" and not PathManager.isfile(start):
            raise UserError(f"--restore-file {start} does not exist: check the path, or leave the option out")
        try:
            return load(cfg, trainer, *args, **kwargs)
        except ValueError as error:
            if not str(error).startswith("--finetune-from-model"):
                raise
            raise UserError(str(error).partition(": {")[0]) from error  # the rest is the whole configuration

    wrap(checkpoint_utils, "load_checkpoint", load_checkpoint)


def explain_unusable_save_dir():
    """A --save-dir that is a file, or cannot be written, gives a traceback."""

    def verify_checkpoint_directory(verify, save_dir):
        try:
            verify(save_dir)
        except OSError as error:
            raise UserError(f"--save-dir {save_dir} cannot be written ({error.strerror}): name another") from error

    wrap(checkpoint_utils, "verify_checkpoint_directory", verify_checkpoint_directory)


def share_between_processes():
    """With several devices the first process reads a checkpoint and sends it to the others, where torch >= 2.6 refuses
    it again. The first process has already checked it against the list of safe classes."""

    def broadcast_object(broadcast, obj, src_rank, group, dist_device):
        if not isinstance(group, torch.distributed.ProcessGroup):  # XLA
            return broadcast(obj, src_rank, group, dist_device)
        holder = [obj]
        torch.distributed.broadcast_object_list(holder, src=src_rank, group=group, device=dist_device)
        return holder[0]

    wrap(distributed_utils, "_broadcast_object_slow", broadcast_object)
