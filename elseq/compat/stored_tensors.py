"""Tensors of a checkpoint that stay in its file until they are read, so that a model is never in memory twice."""

import os
import struct
import sys
import weakref
import zipfile
from contextlib import AbstractContextManager
from contextvars import ContextVar

import torch
from torch import Tensor

from elseq.compat.contents import is_archive
from elseq.compat.patching import setting
from elseq.errors import UserError

# Before each part of an archive is a header. Its last fields are the lengths of the name and of what else follows.
_HEADER = struct.Struct("<26x2H")
_ACTIVE: ContextVar["StoredTensors | None"] = ContextVar("active", default=None)


def load(file, *args, **kwargs):
    """`torch.load` of an open checkpoint, with stored tensors in a context that asks for them."""
    stored = _ACTIVE.get()
    return torch.load(file, *args, **kwargs) if stored is None else stored.load(file, *args, **kwargs)


class StoredTensors:
    """The tensors of a checkpoint's file, which takes part in what is loaded within `loading`.

    torch only maps the file, which takes memory where it is touched. `read` reads the file itself: touching the map of
    one that is cut off would end the process. Elsewhere than on Linux, and of torch's format before version 1.6, all
    tensors are read at once.
    """

    def __init__(self):
        self.status: tuple | None = None  # of the file, by which it is known again, and whether it has changed
        self._descriptor: int | None = None
        self._name: object = None
        self._sizes: dict[int, int] = {}  # of the storages in the file, bytes, by their offset
        self._map: tuple[int, int, int] | None = None  # its start and end in memory, and its offset in the file
        self._held: torch.UntypedStorage | None = None  # a part of the map, whose addresses therefore stay taken
        self._version = 0  # of the tensors, which torch counts up when one is changed in place

    def loading(self) -> AbstractContextManager:
        """A checkpoint that is loaded here has stored tensors."""
        return setting(_ACTIVE, self)

    def load(self, file, *args, **kwargs):
        """`torch.load` of an open checkpoint."""
        sizes = _sizes_of_records(file) if self._descriptor is None and sys.platform == "linux" else None
        if sizes is None:  # one of several parts, or another format
            return torch.load(file, *args, **kwargs)
        descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, descriptor)
        path = f"/proc/self/fd/{descriptor}"  # whatever has the file's name by now
        try:
            loaded = torch.load(path, *args, **kwargs, mmap=True)
        except RuntimeError as error:
            if "unable to mmap" in str(error):  # the file system has no maps, or a limit of memory allows none
                return torch.load(file, *args, **kwargs)
            raise
        model = loaded.get("model") if isinstance(loaded, dict) else None
        tensors = [each for each in (model.values() if isinstance(model, dict) else ()) if isinstance(each, Tensor)]
        self._held = next((each.untyped_storage() for each in tensors if each.nbytes), None)
        if self._held is not None:
            self._map = _map_around(self._held.data_ptr())
            self._version = max(tensor._version for tensor in tensors)
            self._descriptor, self._name, self._sizes = descriptor, file.name, sizes
            self.status = self._status_now()
        return loaded

    def has(self, tensor: Tensor) -> bool:
        """Whether the numbers of a tensor are those in the file."""
        return self._place(tensor) is not None and tensor._version <= self._version

    def _place(self, tensor: Tensor) -> int | None:
        """Where the storage of a tensor begins in the file."""
        if self._map is None:
            return None
        start, end, offset = self._map
        address = tensor.untyped_storage().data_ptr()
        return offset + address - start if start <= address < end else None

    def read(self, tensor: Tensor) -> Tensor:
        """A tensor with its numbers in memory: itself, or a contiguous copy of one that is in the file.

        Raises:
            UserError: the file cannot be read, or does not hold the tensor as a whole.
        """
        place = self._place(tensor)
        if place is None:
            return tensor
        if tensor._version > self._version:  # somebody has changed the numbers, of which the map then has a copy
            return tensor.clone(memory_format=torch.contiguous_format)
        if self._sizes.get(place) != tensor.untyped_storage().nbytes():
            raise UserError(f"checkpoint {self._name} is damaged: copy or train it again")
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        count = last + 1 if tensor.numel() else 0
        read = self._bytes(place + tensor.storage_offset() * tensor.itemsize, count * tensor.itemsize)
        numbers = torch.empty(0, dtype=tensor.dtype)
        return numbers.set_(read.untyped_storage(), 0, tensor.size(), tensor.stride()).contiguous()

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
        if self._descriptor is not None and self._status_now() != self.status:
            raise self._changed()

    def _status_now(self) -> tuple:
        status = os.fstat(self._descriptor)
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def _changed(self):
        return UserError(f"checkpoint {self._name} was changed while it was read: read it again when it is complete")


def _sizes_of_records(file) -> dict[int, int] | None:
    """Bytes of the parts of an archive, by their offset in the file. None: it is no archive, or one that is compressed,
    as torch never writes it."""
    sizes = {}
    if is_archive(file):
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        for entry in entries if all(entry.compress_type == zipfile.ZIP_STORED for entry in entries) else ():
            file.seek(entry.header_offset)
            lengths = _HEADER.unpack(file.read(_HEADER.size))
            sizes[file.tell() + sum(lengths)] = entry.file_size
    file.seek(0)
    return sizes or None


def _map_around(address: int) -> tuple[int, int, int]:
    """Start, end and offset in its file of what is mapped at an address of this process."""
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            addresses, _, offset, _ = line.split(maxsplit=3)
            start, end = (int(each, 16) for each in addresses.split(b"-"))
            if start <= address < end:
                return start, end, int(offset, 16)
    raise AssertionError("torch has mapped the file")
