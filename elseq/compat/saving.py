"""Repairs of what a training writes."""

import contextlib
import errno
import os
from collections.abc import Iterator

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from elseq.compat.patching import wrap
from elseq.errors import UserError


def write_whole_checkpoints():
    """A checkpoint is copied to checkpoint_last.pt and checkpoint_best.pt by writing over them. Ctrl-C or a full disk
    leaves half a file, from which nothing continues. Where a file cannot be written, torch.save is called twice
    more, after what it wrote before, and there are five tracebacks and a file .tmp. Ctrl-C during torch.save is a
    RuntimeError about positions, and is lost if it does not come again."""
    wrap(PathManager, "copy", _copy)
    wrap(checkpoint_utils, "torch_persistent_save", _save)


def _copy(copy, source, path, overwrite=False):
    if not PathManager.supports_rename(path):
        return copy(source, path, overwrite=overwrite)
    with _replacing(path) as temporary:
        if not copy(source, temporary, overwrite=True):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
    return True


def _save(save, state, path, async_write=False):
    if async_write or not PathManager.supports_rename(path):
        save(state, path, async_write)
        return
    with _replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # it ends the archive, which fails, too, and hides what interrupted it
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
        raise UserError(
            f"{path} cannot be written ({error.strerror}), what was saved before is kept: make room for it, or make "
            "its folder writable, and repeat the command"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
