"""What is finished, on disk as soon as it is finished, until all of it is there and becomes the output.

The folder OUTPUT.partial holds one journal for each process that ever had a part in the run. A journal is a sequence of
records, each `@ BYTES CRC32` on a line and then so many bytes. The first record is the run's fingerprint, every other
one has finished lines, as `INDEX<tab>TEXT`. A record is written at once and forced to the disk. A process that is
killed in the midst of it leaves a record that is too short or has another checksum: whoever reads the journal stops
there, and whoever continues it cuts it off there.
"""

import contextlib
import errno
import fcntl
import json
import logging
import mmap
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from elseq.errors import UserError
from elseq.files import check_output_file
from elseq.text_files.fingerprint import Fingerprint, differences

logger = logging.getLogger(__name__)

Content = bytes | mmap.mmap
_HEAD = re.compile(rb"@ (\d{1,18}) ([0-9a-f]{8})\n")
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def make_record(payload: bytes) -> bytes:
    return b"@ %d %08x\n" % (len(payload), zlib.crc32(payload)) + payload


def read_records(content: Content) -> tuple[list[slice], int]:
    """Where the payloads of a journal's whole records are, and where the last of them ends."""
    payloads: list[slice] = []
    end = 0
    while head := _HEAD.match(content, end):
        payload = slice(head.end(), head.end() + int(head[1]))
        if payload.stop > len(content) or zlib.crc32(content[payload]) != int(head[2], 16):
            break
        payloads.append(payload)
        end = payload.stop
    return payloads, end


class Journal:
    """The journal of this process, and what those of the others hold."""

    def __init__(self, output: Path, rank: int = 0):
        """
        Args:
            output: the file that is to be made.
            rank: of this process: a number that no other process of the run has, 0 for the one that publishes.
        """
        self.output = output
        self.folder = output.with_name(f"{output.name}.partial")
        self.path = self.folder / f"{rank}.journal"
        self._file: int | None = None
        self._size = 0
        self._whole: os.stat_result | None = None

    def lock(self) -> None:
        """Make the journal this process's own until `close`. If the process is killed, the kernel unlocks it.

        Raises:
            UserError: another process has it, or it cannot be written.
        """
        check_output_file(self.output)
        try:
            self.folder.mkdir(exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            self._flock()
        except FileExistsError as error:
            raise UserError(
                f"{self.folder}, where finished lines are kept, is a file: move it, or give another --output"
            ) from error
        except BlockingIOError as error:
            self._unlock()
            raise self._is_locked() from error
        except OSError as error:
            self._unlock()
            raise self._cannot_be_written(error) from error
        # A run that ends removes its journals, and this one may have been opened just before.
        if not self.path.exists() or not os.path.samestat(os.fstat(self._file), os.stat(self.path)):
            self._unlock()
            raise self._is_locked()

    def _is_locked(self) -> UserError:
        return UserError(
            f"{self.output} is being made by another elseq-generate: wait for it, or give another --output"
        )

    def _flock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning("%s is on a file system without locks: let only one run at a time make it", self.output)

    def _unlock(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def close(self) -> None:
        """Unlock the journal; if it is empty, leave no trace of it."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            if os.fstat(self._file).st_size == 0:
                self.path.unlink()
                self.folder.rmdir()
        self._unlock()

    def is_new(self) -> bool:
        """Whether no process has begun the output, or its last journal is gone."""
        return not any(path.stat().st_size for path in self._paths())

    def begin(self, fingerprint: Fingerprint, lines: int, overwrite: bool = False) -> np.ndarray:
        """Take up what was finished before.

        Args:
            fingerprint: of this run.
            lines: how many the input has.
            overwrite: drop what was finished under another fingerprint.

        Returns:
            bool [lines]: which are finished.

        Raises:
            UserError: what is there has another fingerprint, or cannot be read or written.
        """
        self._lines = lines
        foreign = next((former for former in self._fingerprints() if former != fingerprint), None)
        if foreign is not None and not overwrite:
            raise UserError(
                f"{self.folder} holds finished lines of another run, in which {differences(foreign, fingerprint)}: "
                "give the options of that run to go on, or --overwrite to begin anew"
            )
        try:
            if foreign is not None:
                for path in self._paths():
                    os.truncate(path, 0)
            with _mapped(self.path) as content:
                _, self._size = read_records(content)
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
        except OSError as error:
            raise self._cannot_be_written(error) from error
        if not self._size:
            self._write(json.dumps(fingerprint).encode())
        finished = np.zeros(lines, dtype=bool)
        for path in self._paths():
            with _mapped(path) as content:
                for index, _ in _finished_lines(content):
                    finished[index] = True
        return finished

    def append(self, indices: Sequence[int], texts: Sequence[str]) -> None:
        """Finish lines.

        Args:
            indices: of the lines in the input.
            texts: of the output; they have no line feed.

        Raises:
            UserError: the disk is full, say.
        """
        pairs = zip(indices, texts, strict=True)
        self._write(b"".join(b"%d\t%s\n" % (index, text.encode("utf-8", "replace")) for index, text in pairs))

    def publish(self, blank: np.ndarray) -> None:
        """Make the output of the finished lines, all at once, and remove the journals.

        Args:
            blank: bool [lines]: those that are blank in the output as well.

        Raises:
            UserError: a line is not finished, or the output cannot be written.
        """
        with contextlib.ExitStack() as stack:
            contents = [stack.enter_context(_mapped(path)) for path in self._paths()]
            # Where the text of each line is.
            journals, starts = np.full(self._lines, -1, dtype=np.int16), np.zeros(self._lines, dtype=np.int64)
            for number, content in enumerate(contents):
                for index, start in _finished_lines(content):
                    journals[index], starts[index] = number, start
            missing = np.flatnonzero((journals < 0) & ~blank)
            if len(missing):
                raise UserError(
                    f"line {missing[0] + 1} and {len(missing) - 1} more are in no journal of {self.folder}: give the "
                    "same command again, and see that all processes write into the same folder"
                )
            temporary = self.folder / "output"
            try:
                with temporary.open("wb") as file:
                    for number, start in zip(journals.tolist(), starts.tolist(), strict=True):
                        content = contents[number]
                        file.write(b"\n" if number < 0 else content[start : content.find(b"\n", start) + 1])
                    file.flush()
                    os.fsync(file.fileno())
                    self._whole = os.fstat(file.fileno())
                temporary.replace(self.output)
                _force_folder(self.output.parent)
            except OSError as error:
                temporary.unlink(missing_ok=True)
                raise self._cannot_be_written(error) from error
        self._tidy()

    def is_published(self) -> bool:
        """Whether the output is the one that this process has made; however suddenly it was interrupted meanwhile."""
        return self._whole is not None and self.output.exists() and os.path.samestat(self._whole, self.output.stat())

    def _tidy(self) -> None:
        with contextlib.suppress(OSError):
            for path in self._paths():
                path.unlink()
            self.folder.rmdir()  # unless somebody has put something there

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.journal"))

    def _fingerprints(self) -> Iterator[Fingerprint]:
        for path in self._paths():
            with _mapped(path) as content:
                payloads, _ = read_records(content)
                if payloads:
                    yield json.loads(content[payloads[0]])

    def _write(self, payload: bytes) -> None:
        record = make_record(payload)
        try:
            rest = memoryview(record)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):  # make way for what may be written later
                os.ftruncate(self._file, self._size)
                os.lseek(self._file, self._size, os.SEEK_SET)
            raise self._cannot_be_written(error) from error
        self._size += len(record)

    def _cannot_be_written(self, error: OSError) -> UserError:
        remedy = "give another"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "make room, and the same command goes on with what is finished"
        return UserError(f"--output {self.output} cannot be written ({error.strerror}): {remedy}")


def _finished_lines(content: Content) -> Iterator[tuple[int, int]]:
    """The index of each finished line, and where its text begins."""
    for payload in read_records(content)[0][1:]:
        start = payload.start
        while start < payload.stop:
            tab = content.find(b"\t", start, payload.stop)
            yield int(content[start:tab]), tab + 1
            start = content.find(b"\n", tab, payload.stop) + 1


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[Content]:
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:  # there is no map of nothing
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


def _force_folder(folder: Path) -> None:
    """Force to the disk what a folder lists."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
