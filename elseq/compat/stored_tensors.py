"""Tensors of a checkpoint that stay in its file until they are read, so that a model is never in memory twice."""

import contextlib
import os
import sys
import weakref
import zipfile
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

from elseq.errors import UserError

_IN_FORCE: ContextVar["StoredTensors | None"] = ContextVar("in force", default=None)


def load(file, *args, **kwargs):
    """`torch.load` of an open checkpoint, with stored tensors in a context that asks for them."""
    stored = _IN_FORCE.get()
    return torch.load(file, *args, **kwargs) if stored is None else stored.load(file, *args, **kwargs)


class StoredTensors:
    """The tensors of a checkpoint's file, which takes part in what is loaded within `loading`.

    torch only maps the file, which takes memory where it is touched. `read` reads the file itself: touching the map of
    one that is cut off would end the process. Elsewhere than on Linux, and of torch's format before version 1.6, all
    tensors are read at once.
    """

    def __init__(self):
        self._descriptor: int | None = None
        self._name: object = None
        self._status: tuple | None = None  # of the file when it was mapped
        self._mapped: list[tuple[int, int, int]] = []  # start, end and offset in the file of the parts of the map

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """A checkpoint that is loaded here has stored tensors."""
        token = _IN_FORCE.set(self)
        try:
            yield
        finally:
            _IN_FORCE.reset(token)

    def load(self, file, *args, **kwargs):
        """`torch.load` of an open checkpoint."""
        if self._descriptor is not None or not _can_be_mapped(file):  # one of several parts, or another format
            return torch.load(file, *args, **kwargs)
        self._descriptor, self._name = os.dup(file.fileno()), file.name
        weakref.finalize(self, os.close, self._descriptor)
        self._status = self._status_now()
        path = f"/proc/self/fd/{self._descriptor}"  # whatever has the file's name by now
        loaded = torch.load(path, *args, **kwargs, mmap=True)
        self._mapped = _places_of(os.readlink(path))
        return loaded

    def read(self, tensor: Tensor) -> Tensor:
        """A tensor with its numbers in memory: itself, unless it is in the file.

        Raises:
            UserError: the file cannot be read, or ends before it.
        """
        if self._descriptor is None:
            return tensor
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        place = next((each for each in self._mapped if each[0] <= address < each[1]), None)
        if place is None:  # it is not of the file, or the system names its map otherwise
            return tensor if self._mapped else tensor.clone()
        start, _, offset = place
        offset += address - start
        if tensor.is_contiguous():
            first = tensor.storage_offset() * tensor.itemsize
            numbers, first_number = self._bytes(offset + first, tensor.nbytes), 0
        else:
            numbers, first_number = self._bytes(offset, storage.nbytes()), tensor.storage_offset()
        layout = first_number, tensor.size(), tensor.stride()
        return torch.empty(0, dtype=tensor.dtype).set_(numbers.untyped_storage(), *layout)

    def _bytes(self, offset: int, count: int) -> Tensor:
        numbers = torch.empty(count, dtype=torch.uint8)
        waiting = memoryview(numbers.numpy())
        while waiting:
            try:
                count = os.preadv(self._descriptor, [waiting], offset)  # at most 2 GiB at a time
            except OSError as error:
                raise UserError(f"checkpoint {self._name} cannot be read ({error.strerror}): copy it again") from error
            if not count:
                raise self._changed()
            waiting, offset = waiting[count:], offset + count
        return numbers

    def check_unchanged(self) -> None:
        """
        Raises:
            UserError: the file was written to since it was mapped.
        """
        if self._descriptor is not None and self._status_now() != self._status:
            raise self._changed()

    def _status_now(self):
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns

    def _changed(self):
        return UserError(f"checkpoint {self._name} was changed while it was read: read it again when it is complete")


def _can_be_mapped(file) -> bool:
    """Whether the file is an archive that holds tensors as they are in memory, as torch writes them."""
    if sys.platform != "linux":
        return False
    file.seek(0)
    is_archive = file.read(4) == b"PK\x03\x04"
    file.seek(0)
    if not is_archive:
        return False
    with zipfile.ZipFile(file) as archive:
        is_plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    file.seek(0)
    return is_plain


def _places_of(path: str) -> list[tuple[int, int, int]]:
    """Start, end and offset in the file of the parts of this process's memory where a file is mapped."""
    places = []
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            addresses, _, offset, _, _, *name = line.rstrip("\n").split(maxsplit=5)
            if name and name[0] == path.replace("\n", "\\012"):
                start, end = (int(address, 16) for address in addresses.split("-"))
                places.append((start, end, int(offset, 16)))
    return places
