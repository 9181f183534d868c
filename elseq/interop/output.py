"""Conversions write their output completely, or not at all."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from elseq.compat.saving import save_archive
from elseq.errors import UserError
from elseq.files import check_no_input, check_overwrite, fresh_path, is_within, real_path, written_whole


def check_output_folder(output: Path, overwrite: bool, names: tuple[str, ...], *sources: Path) -> None:
    """
    Args:
        output: the output folder.
        overwrite: whether an existing folder may be replaced.
        names: patterns of the files that a conversion writes. A folder with other files is never replaced.
        sources: files and folders that are read.

    Raises:
        UserError: the folder must not be replaced, or the path is not a folder.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file: give the name of a folder")
    if not output.exists() or not any(output.iterdir()):
        return
    check_overwrite(output, overwrite)
    if any(is_within(source, output) for source in sources):
        raise UserError(f"--output {output} holds what is to be converted: give another folder")
    others = sorted(path.name for path in output.iterdir() if not _is_written(path, names))
    if others:
        raise UserError(f"--output {output} holds other files too, such as {others[0]}: give another folder")
    for path in output.iterdir():
        check_no_input(path.stat(), f"--output {output}: {path.name}", *sources)


def _is_written(path: Path, names: tuple[str, ...]) -> bool:
    return path.is_file() and not path.is_symlink() and any(path.match(name) for name in names)


def save(checkpoint: dict, output: Path) -> None:
    """Write a checkpoint.

    Raises:
        UserError: the file cannot be written.
    """
    with _errors_of_writing(output), written_whole(output, "wb") as file:
        save_archive(checkpoint, file)


def write_files(folder: Path, files: dict[str, str | bytes]) -> None:
    """Write the content of each file, by its name."""
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A new folder that replaces `output` at the end. After an error, `output` is unchanged.

    Raises:
        UserError: the folder cannot be written.
    """
    target = real_path(output)  # a link stays, and its target is replaced
    temporary, old = fresh_path(target, ".tmp"), fresh_path(target, ".old")
    made = False
    try:
        with _errors_of_writing(output):
            temporary.mkdir(parents=True)
            made = True
            yield temporary
            if target.exists():
                target.rename(old)
            temporary.rename(target)
    finally:
        if made:
            if old.exists() and not target.exists():
                old.rename(target)
            for leftover in (temporary, old):
                shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _errors_of_writing(output: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # CTranslate2 and torch raise a RuntimeError where a write fails
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{output} cannot be written ({reason}): give another --output") from error
