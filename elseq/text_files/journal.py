"""Journals: store finished lines on the disk at once, until all are finished and become the output.

The folder OUTPUT.partial holds one journal for each process that took part in the run. A journal is a sequence of
records. Each is a line `@ BYTES CRC32`, followed by that number of bytes. The first record is the fingerprint of the
run. The others hold finished lines, as `INDEX<tab>TEXT`. Each record is written at once and forced to the disk. A
process that is killed while writing leaves a record that is too short or has a wrong checksum. Reading stops there, and
the next writer truncates the journal there. A complete record that cannot be from this run is refused, and never
published. No link, pipe or file with a second hard link is opened in that folder.

The standard output has no journal: `StandardOutput` writes the lines in their order.
"""

import contextlib
import errno
import json
import logging
import mmap
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from elseq.errors import UserError
from elseq.files import check_output_file, lock
from elseq.text_files.fingerprint import Fingerprint, differences, read_fingerprint
from elseq.text_files.plain_folder import PlainFolder

logger = logging.getLogger(__name__)

Content = bytes | mmap.mmap
# For each line: the number of its journal (-1: none), and the offset of its text there.
Places = tuple[np.ndarray, np.ndarray]
_HEAD = re.compile(rb"@ (\d{1,18}) ([0-9a-f]{8})\n")
_LINE = re.compile(rb"(\d{1,18})\t([^\r\n]*)\n")
_JOURNAL = re.compile(r"\d+\.journal")
LARGEST_RECORD = 2**30  # bytes; a record holds the lines of a part of a batch
_PART = 2**20
_WHOLE = "output"  # the output while it is written


def make_record(payload: bytes) -> bytes:
    return b"@ %d %08x\n" % (len(payload), zlib.crc32(payload)) + payload


def read_records(content: Content) -> tuple[list[slice], int]:
    """The positions of the payloads of a journal's complete records, and the end of the last one."""
    payloads: list[slice] = []
    end = 0
    while head := _HEAD.match(content, end):
        payload = slice(head.end(), head.end() + int(head[1]))
        length = payload.stop - payload.start
        if length > LARGEST_RECORD or payload.stop > len(content) or _checksum(content, payload) != int(head[2], 16):
            break
        payloads.append(payload)
        end = payload.stop
    return payloads, end


def _checksum(content: Content, payload: slice) -> int:
    """The checksum in pieces, without a copy: a sparse file may be larger than the memory."""
    checksum = 0
    for start in range(payload.start, payload.stop, _PART):
        checksum = zlib.crc32(content[start : min(start + _PART, payload.stop)], checksum)
    return checksum


class _Unusable(UserError):
    """The content of a journal cannot be used; `--overwrite` drops it."""


class Journal:
    """The journal of this process, and the content of the other journals."""

    def __init__(self, output: Path, rank: int = 0):
        """
        Args:
            output: the output file.
            rank: rank of this process, unique in the run; the process 0 publishes the output.
        """
        self.output = output
        self.folder = output.with_name(f"{output.name}.partial")
        self._name = f"{rank}.journal"
        self.path = self.folder / self._name
        self._directory: PlainFolder | None = None
        self._file: int | None = None
        self._size = 0
        self._whole: os.stat_result | None = None

    def lock(self) -> None:
        """Lock the journal until `close`. If the process is killed, the kernel unlocks it.

        Raises:
            UserError: another process has locked it, or it cannot be written.
        """
        check_output_file(self.output)
        try:
            self.folder.mkdir(exist_ok=True)
            self._open_folder()
            self._file = self._directory.open(self._name, os.O_RDWR | os.O_CREAT)
            if not lock(self._file):
                logger.warning("%s is on a file system without locks: let only one run at a time make it", self.output)
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
        # A run that ends removes its journals, perhaps after this process has opened this one.
        if not self._is_there():
            self._unlock()
            raise self._is_locked()

    def _open_folder(self) -> None:
        if self._directory is None:
            self._directory = PlainFolder(self.folder, "remove it, or give another --output")

    def _is_there(self) -> bool:
        try:
            return self._directory.is_there() and os.path.samestat(
                os.fstat(self._file), self._directory.stat(self._name)
            )
        except FileNotFoundError:
            return False

    def _is_locked(self) -> UserError:
        return UserError(
            f"{self.output} is being written by another elseq-generate: wait for it, or give another --output"
        )

    def _unlock(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def close(self) -> None:
        """Unlock the journal, and remove it if it is empty."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                if os.fstat(self._file).st_size == 0:
                    self._directory.unlink(self._name)
                    self.folder.rmdir()
            self._unlock()
        if self._directory is not None:
            self._directory.close()
            self._directory = None

    def is_new(self) -> bool:
        """Whether no process has started the output, or its last journal is removed."""
        try:
            self._open_folder()
            return not any(self._directory.stat(name).st_size for name in self._names())
        except FileNotFoundError:
            return True
        except OSError as error:
            raise self._cannot_be_written(error) from error

    def begin(self, fingerprint: Fingerprint, lines: int, overwrite: bool = False) -> np.ndarray:
        """Read the lines that are already finished.

        Args:
            fingerprint: fingerprint of this run.
            lines: number of lines of the input.
            overwrite: drop lines with another fingerprint, and damaged journals.

        Returns:
            bool [lines], True for finished lines.

        Raises:
            UserError: a journal has another fingerprint, is damaged, or cannot be read or written.
        """
        self._lines = lines
        finished = np.zeros(lines, dtype=bool)
        try:
            try:
                self._check_fingerprints(fingerprint)
                with self._contents() as contents:
                    finished = self._places(contents, blank=finished)[0] >= 0
            except _Unusable:
                if not overwrite:
                    raise
                for name in self._names():
                    with self._opened(name, os.O_WRONLY) as file:
                        os.ftruncate(file, 0)
            with _mapped(self._file) as content:
                _, self._size = read_records(content)
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
        except OSError as error:
            raise self._cannot_be_written(error) from error
        if not self._size:
            self._write(json.dumps(fingerprint).encode())
        return finished

    def append(self, indices: Sequence[int], texts: Sequence[str]) -> None:
        """Write finished lines.

        Args:
            indices: indices of the lines in the input.
            texts: their outputs, without line feeds.

        Raises:
            UserError: the journal cannot be written, for example because the disk is full.
        """
        pairs = zip(indices, texts, strict=True)
        self._write(b"".join(b"%d\t%s\n" % (index, text.encode("utf-8", "replace")) for index, text in pairs))

    def publish(self, blank: np.ndarray) -> None:
        """Write the output from the finished lines, atomically, and remove the journals.

        Args:
            blank: bool [lines], True for lines that are blank in the input and the output.

        Raises:
            UserError: a line is not finished, or the output cannot be written.
        """
        with self._contents() as contents:
            places = self._places(contents, blank)
            missing = np.flatnonzero((places[0] < 0) & ~blank)
            if len(missing):
                raise UserError(
                    f"line {missing[0] + 1} and {len(missing) - 1} more are in no journal of {self.folder}: give the "
                    "same command again, and see that all processes write into the same folder"
                )
            self._write_output(contents, places)
        self._tidy()

    def _write_output(self, contents: dict[str, Content], places: Places) -> None:
        try:
            self._drop_half_output()
            with os.fdopen(self._directory.open(_WHOLE, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                _write_lines(file, contents, places)
                file.flush()
                os.fsync(file.fileno())
                self._whole = os.fstat(file.fileno())
            self._directory.move(_WHOLE, self.output)
            _force_folder(self.output.parent)
        except OSError as error:
            self._drop_half_output()
            raise self._cannot_be_written(error) from error

    def _drop_half_output(self) -> None:
        with contextlib.suppress(OSError):
            self._directory.unlink(_WHOLE)

    def is_published(self) -> bool:
        """Whether this process has written the output, even if it was interrupted meanwhile."""
        return self._whole is not None and self.output.exists() and os.path.samestat(self._whole, self.output.stat())

    def _tidy(self) -> None:
        with contextlib.suppress(OSError):
            for name in self._names():
                self._directory.unlink(name)
            self.folder.rmdir()  # unless another program has created files in it

    def _names(self) -> list[str]:
        return list(filter(_JOURNAL.fullmatch, self._directory.names()))

    @contextlib.contextmanager
    def _opened(self, name: str, flags: int) -> Iterator[int]:
        file = self._directory.open(name, flags)
        try:
            yield file
        finally:
            os.close(file)

    @contextlib.contextmanager
    def _contents(self) -> Iterator[dict[str, Content]]:
        """The contents of all journals, by name."""
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context(self._opened(name, os.O_RDONLY)) for name in self._names()}
            yield {name: stack.enter_context(_mapped(file)) for name, file in files.items()}

    def _check_fingerprints(self, fingerprint: Fingerprint) -> None:
        """
        Raises:
            _Unusable: a journal belongs to another run, or does not begin with a fingerprint.
        """
        with self._contents() as contents:
            for name, content in contents.items():
                payloads, _ = read_records(content)
                if not payloads and content[:1] in (b"", b"@", b"\0"):  # killed before the first record
                    continue
                former = read_fingerprint(content[payloads[0]]) if payloads else None
                if former is None:
                    raise self._damaged(name, "it does not say of which run it is")
                if former != fingerprint:
                    raise _Unusable(
                        f"{self.folder} holds finished lines of another run, in which "
                        f"{differences(former, fingerprint)}: "
                        "give the options of that run to continue, or --overwrite to start again"
                    )

    def _places(self, contents: dict[str, Content], blank: np.ndarray) -> Places:
        """
        Raises:
            _Unusable: a record cannot be from a run with these lines.
        """
        journals, starts = np.full(self._lines, -1, dtype=np.int16), np.zeros(self._lines, dtype=np.int64)
        names = list(contents)
        for number, content in enumerate(contents.values()):
            for index, start, stop in _finished_lines(content):
                fault = None
                if index is None:
                    fault = "a record is not made of numbered lines of text"
                elif index >= self._lines or blank[index]:
                    fault = f"it has a text for line {index + 1}, which the input does not ask for"
                elif journals[index] >= 0:
                    before = _line_at(contents[names[journals[index]]], int(starts[index]))
                    fault = f"line {index + 1} has two different texts" if content[start:stop] != before else None
                if fault:
                    raise self._damaged(names[number], fault)
                journals[index], starts[index] = number, start
        return journals, starts

    def _damaged(self, name: str, fault: str) -> _Unusable:
        return _Unusable(
            f"{self.folder / name} is damaged ({fault}): give --overwrite to start again, or another --output"
        )

    def _write(self, payload: bytes) -> None:
        record = make_record(payload)
        try:
            rest = memoryview(record)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):  # remove the incomplete record
                os.ftruncate(self._file, self._size)
                os.lseek(self._file, self._size, os.SEEK_SET)
            raise self._cannot_be_written(error) from error
        self._size += len(record)

    def _cannot_be_written(self, error: OSError) -> UserError:
        remedy = "give another"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "free some space and repeat the same command"
        return UserError(f"--output {self.output} cannot be written ({error.strerror}): {remedy}")


class StandardOutput:
    """Writes each line to the standard output as soon as all lines before it are written.

    The methods are those of a `Journal`. Lines that are finished before it is their turn wait in an unnamed file, which
    disappears with the process.
    """

    def __init__(self):
        self.written = 0  # lines
        self._size = 0
        self._file: IO[bytes] | None = None

    def lock(self) -> None:
        """
        Raises:
            UserError: a temporary file cannot be created.
        """
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  # `close` closes it
        except OSError as error:
            raise self._cannot_be_kept(error) from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def is_new(self) -> bool:
        return True

    def is_published(self) -> bool:
        return False

    def begin(self, fingerprint: Fingerprint, lines: int, overwrite: bool = False) -> np.ndarray:
        """No line is finished, bool [lines]."""
        self._places = np.zeros((lines, 2), dtype=np.int64)  # start and length in the file; 0: none
        return np.zeros(lines, dtype=bool)

    def append(self, indices: Sequence[int], texts: Sequence[str]) -> None:
        """Keep lines, and write those whose predecessors are all written.

        Args:
            indices: indices of the lines in the input.
            texts: their outputs, without line feeds.

        Raises:
            UserError: the standard output or the unnamed file cannot be written.
        """
        try:
            for index, text in zip(indices, texts, strict=True):
                line = text.encode("utf-8", "replace") + b"\n"
                self._places[index] = self._size, len(line)
                self._size += self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise self._cannot_be_kept(error) from error
        stop = self.written
        while stop < len(self._places) and self._places[stop, 1]:
            stop += 1
        if stop > self.written:
            self._write(self._places[self.written : stop].tolist())
            self.written = stop

    def _write(self, places: list[list[int]]) -> None:
        try:
            with tqdm.external_write_mode(file=sys.stdout), open(sys.stdout.fileno(), "wb", closefd=False) as file:
                for start, length in places:
                    file.write(os.pread(self._file.fileno(), length, start))
        except OSError as error:
            raise UserError(f"the standard output cannot be written ({error.strerror}): give --output FILE") from error

    def publish(self, blank: np.ndarray) -> None:
        """Nothing to do: all lines are written."""

    def _cannot_be_kept(self, error: OSError) -> UserError:
        return UserError(
            f"the temporary folder cannot be written ({error.strerror}): give --output FILE, or name a folder with "
            "room in TMPDIR"
        )


def _finished_lines(content: Content) -> Iterator[tuple[int | None, int, int]]:
    """The index of each finished line, and the start and end of its text; None if the record is invalid."""
    for payload in read_records(content)[0][1:]:
        start = payload.start
        while start < payload.stop:
            line = _LINE.match(content, start, payload.stop)
            if line is None or not _is_text(line[2]):
                yield None, start, payload.stop
                return
            yield int(line[1]), *line.span(2)
            start = line.end()


def _is_text(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _line_at(content: Content, start: int) -> bytes:
    return content[start : content.find(b"\n", start)]


def _write_lines(file: IO[bytes], contents: dict[str, Content], places: Places) -> None:
    journals = list(contents.values())
    for number, start in zip(*(place.tolist() for place in places), strict=True):
        file.write(b"\n" if number < 0 else _line_at(journals[number], start) + b"\n")


@contextlib.contextmanager
def _mapped(file: int) -> Iterator[Content]:
    if not os.fstat(file).st_size:  # an empty file cannot be mapped
        yield b""
        return
    with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as content:
        yield content


def _force_folder(folder: Path) -> None:
    """Force the entries of a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
