"""Repairs of what a training writes."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq_cli import train

from elseq.compat.patching import before_training, wrap, wrap_in_command
from elseq.errors import UserError
from elseq.files import lock


def write_whole_checkpoints():
    """A checkpoint is copied to checkpoint_last.pt and checkpoint_best.pt by writing over them. Ctrl-C or a full disk
    leaves half a file, from which nothing continues. Where a file cannot be written, torch.save is called twice
    more, after what it wrote before, and there are five tracebacks and a file .tmp. Ctrl-C during torch.save is a
    RuntimeError about positions, and is lost if it does not come again."""
    wrap(PathManager, "copy", _copy)
    wrap(checkpoint_utils, "torch_persistent_save", _save)


def _copy(copy, src_path, dst_path, overwrite=False):
    if not PathManager.supports_rename(dst_path):
        return copy(src_path, dst_path, overwrite)
    with _replacing(dst_path) as temporary:
        if not copy(src_path, temporary, overwrite=True):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
    return True


def _save(save, obj, filename, async_write=False):
    if async_write or not PathManager.supports_rename(filename):
        save(obj, filename, async_write)
        return
    with _replacing(filename) as temporary, open(temporary, "wb") as file:
        save_archive(obj, file)


def save_archive(obj, file: IO[bytes]) -> None:
    """Call torch.save, whose RuntimeError about positions in the archive hides what interrupted it.

    Raises:
        OSError: the file cannot be written.
        KeyboardInterrupt: Ctrl-C.
    """
    try:
        torch.save(obj, file)
    except RuntimeError as error:  # of ending the archive
        cause = error.__context__
        raise cause if isinstance(cause, OSError | KeyboardInterrupt) else error from None


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[str]:
    """The name of a file to write, which replaces `path` when it is complete and is removed if it is not."""
    temporary = f"{path}.tmp"  # always the same, so that what a killed process leaves does not stay
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename not in (None, temporary):  # what is copied cannot be read
            raise
        raise UserError(
            f"{path} cannot be written ({error.strerror}), what was saved before is kept: make room for it, or make "
            "its folder writable, and repeat the command"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def refuse_asynchronous_checkpoints():
    """--write-checkpoints-asynchronously writes over what was saved before, and only to the first of the names that are
    due, which is seldom checkpoint_last.pt: after an interruption the training begins anew. Ctrl-C does not end it, and
    without iopath it trains nothing and ends with exit code 0."""

    def add_defaults(add, cfg):
        if cfg.checkpoint.write_checkpoints_asynchronously:
            raise UserError(
                "leaves out checkpoint_last.pt, from which a training continues, and an interruption destroys what was "
                "saved before: leave it out",
                "--write-checkpoints-asynchronously",
            )
        add(cfg)

    wrap_in_command(train, "add_defaults", add_defaults)


def refuse_folders_for_checkpoints():
    """If checkpoint_last.pt or the like is a folder, the first checkpoint cannot be saved after the first epoch."""
    before_training(_check_names)


_NAME = re.compile(r"checkpoint(_last|_best|_crash|\d+|_\d+_\d+).*\.pt")


def _check_names(cfg, *_):
    if cfg.checkpoint.no_save:
        return
    for path in sorted(Path(cfg.checkpoint.save_dir).glob("checkpoint*.pt")):
        if path.is_dir() and _NAME.fullmatch(path.name):
            raise UserError(f"{path} is a folder, and checkpoints have such names: move it, or give another --save-dir")


_locked: list[int] = []  # the descriptor of the folder that this process trains to, if there is one


def let_one_training_write_a_folder():
    """Two trainings with the same --save-dir write their checkpoints to the same names. One of them continues from
    those of the other later, and what it had learned is lost without a warning."""
    before_training(_lock)
    wrap(distributed_utils, "call_main", _call_main)
    os.register_at_fork(after_in_child=_unlock)  # a worker that outlives a killed training does not hold it


def _lock(cfg, *_):
    _unlock()  # of a training before, in the same process
    folder = cfg.checkpoint.save_dir
    if cfg.checkpoint.no_save or cfg.checkpoint.checkpoint_suffix or not os.path.isdir(folder):
        return  # with a suffix the names are others
    if not distributed_utils.is_master(cfg.distributed_training):
        return
    try:
        _locked.append(os.open(folder, os.O_RDONLY))
    except OSError:  # it can be written and not read
        return
    try:
        lock(_locked[0])
    except BlockingIOError as error:
        raise UserError(
            f"--save-dir {folder} is being written by another training: wait for it, or give another --save-dir"
        ) from error


def _unlock():
    while _locked:
        os.close(_locked.pop())


def _call_main(call, *args, **kwargs):
    try:
        return call(*args, **kwargs)
    finally:
        _unlock()
