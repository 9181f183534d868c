"""A folder that is safe to write to, whoever else can."""

import contextlib
import errno
import os
import stat
from pathlib import Path

from elseq.errors import UserError


class PlainFolder:
    """A folder of regular files without links, which are opened only relative to the folder.

    Symbolic links, files with a second hard link, pipes and devices are never opened, even if they are created later.
    """

    def __init__(self, path: Path, remedy: str):
        """
        Args:
            path: an existing folder, not a link.
            remedy: what errors tell the user to do.

        Raises:
            UserError: an entry is not a regular file, or the folder is a link.
            OSError: the folder cannot be opened.
        """
        self.path = path
        self._remedy = remedy
        try:
            self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR) and path.is_symlink():
                raise UserError(f"{path} is a link: {remedy}") from error
            raise
        try:
            for name in os.listdir(self._directory):
                with contextlib.suppress(FileNotFoundError):  # another process has removed it
                    self._check(name, self.stat(name))
        except BaseException:
            self.close()
            raise

    def _check(self, name: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise UserError(
                f"{self.path / name} is a link, a folder or a pipe, and not a file with one name: {self._remedy}"
            )

    def names(self) -> list[str]:
        return sorted(os.listdir(self._directory))

    def stat(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self._directory, follow_symlinks=False)

    def open(self, name: str, flags: int) -> int:
        """
        Raises:
            UserError: it is not a regular file.
            OSError: it cannot be opened.
        """
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            file = os.open(name, flags, 0o666, dir_fd=self._directory)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                self._check(name, self.stat(name))
            raise
        try:
            self._check(name, os.fstat(file))
        except BaseException:
            os.close(file)
            raise
        return file

    def unlink(self, name: str) -> None:
        os.unlink(name, dir_fd=self._directory)

    def move(self, name: str, path: Path) -> None:
        """Rename a file, replacing another."""
        os.replace(name, path, src_dir_fd=self._directory)

    def is_there(self) -> bool:
        """Whether the path still names this folder."""
        try:
            return os.path.samestat(os.fstat(self._directory), os.stat(self.path, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        os.close(self._directory)
