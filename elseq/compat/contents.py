"""Checks the content of a checkpoint: its size in memory, plain settings, plain tensors, and no files to open."""

import math
import pickletools
import re
import struct
import zipfile
from argparse import ArgumentParser, Namespace
from itertools import zip_longest

import numpy as np
import torch
from fairseq.registry import REGISTRIES
from torch.utils._pytree import tree_leaves, tree_map_only

from elseq.compat.dispatch import DispatchMode
from elseq.compat.settings import values
from elseq.errors import UserError

# Settings that name files from which a training starts (their content is in the checkpoint), or a file to write.
_FILES = re.compile(r"(encoder|decoder)_embed_path|w2v_path|seq2seq_path|(load_)?pretrained_\w+|save_predictions")
_DEEPEST = 100  # maximum nesting
_MOST_COPIES = 32  # maximum copies of a tensor's numbers under several names
_REFERENCE = re.compile(r"\$\{(\w+(?:\.\w+)*)\}")  # a reference of OmegaConf to another setting


# --- size in memory


def is_archive(file) -> bool:
    """Whether an open file is an archive, as torch detects it. Its former format is a few pickles. The file is then at
    its start."""
    file.seek(0)
    start = file.read(4)
    file.seek(0)
    return start == b"PK\x03\x04"


def check_file(file, size: int) -> None:
    """
    Args:
        file: the open file, at its start. Its position is restored.
        size: size of the file in bytes.

    Raises:
        UserError: unpacking the file with torch.load would make it larger, or take very long.
        Exception: any other error means that the file is damaged, even if torch.load can read it.
    """
    try:
        if is_archive(file):
            _check_directory(file, size)
            with zipfile.ZipFile(file) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
                if unpacked > size:
                    raise _too_large(f"its parts have {unpacked:,} bytes and the file {size:,}")
                for entry in archive.infolist():  # torch ignores case, and takes one of several
                    if entry.filename.lower().endswith("/data.pkl"):
                        _check_pickle(archive.open(entry))
        else:
            for _ in range(5):
                _check_pickle(file)
    finally:
        file.seek(0)


_END, _END_64, _LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")


def _check_directory(file, size):
    """Check that the archive's directory is at the end of the file, so that zipfile and torch read the same one."""
    start = max(0, size - _END.size - _LOCATOR.size - _END_64.size)
    file.seek(start)
    tail = file.read()
    end = len(tail) - _END.size
    signature, *_, length, offset, comment = _END.unpack_from(tail, end)
    if signature != b"PK\5\6" or comment:
        raise zipfile.BadZipFile("it continues after its end")
    if tail[end - _LOCATOR.size :].startswith(b"PK\6\7"):  # archives larger than 4 GB, and all archives of torch
        end -= _LOCATOR.size
        _, _, place, _ = _LOCATOR.unpack_from(tail, end)
        end -= _END_64.size
        signature, *_, length, offset = _END_64.unpack_from(tail, end)
        if signature != b"PK\6\6" or place != start + end:
            raise zipfile.BadZipFile("its end is in another place")
    if offset + length != start + end:
        raise zipfile.BadZipFile("it has two lists of its parts")


# Types that torch builds in any size from a few bytes.
_GROWING = {"builtins bytearray", "__builtin__ bytearray", "torch._utils _rebuild_device_tensor_from_numpy"}
_DEEPEST_TUPLE = 20  # hashing a tuple visits all its elements, even shared ones


def _check_pickle(file):
    """Read the instructions of a pickle without running them, and check the nesting of its tuples."""
    depths: list = []  # of the values on the stack
    memo = {}
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name == "GLOBAL" and argument in _GROWING:
            raise _too_large(f"it holds {argument.replace(' ', '.')}, which fairseq never saves")
        if name in ("BINGET", "LONG_BINGET"):
            depths.append(memo[argument])
            continue
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = depths[-1]
            continue
        taken = []
        for kind in reversed(opcode.stack_before):
            if kind is pickletools.stackslice:
                while depths[-1] is not None:
                    taken.append(depths.pop())
            else:
                taken.append(depths.pop() or 0)
        depth = 1 + max(taken, default=0) if name.startswith("TUPLE") else 0
        if depth > _DEEPEST_TUPLE:
            raise _too_large("its parts are nested in one another")
        depths += [None if kind is pickletools.markobject else depth for kind in opcode.stack_after]


def _too_large(reason):
    return UserError(f"it is damaged, or was made to fill the memory ({reason}): use the file that the training saved")


def check_size(state: object, size: int) -> None:
    """
    Args:
        state: the result of torch.load.
        size: size of the file in bytes.

    Raises:
        UserError: the content is larger than the file, or would be if nothing were shared.
    """
    walked = stored = viewed = 0
    seen = set()
    waiting = [(state, 0)]
    while waiting:
        value, depth = waiting.pop()
        walked += 1  # each value takes at least one byte of the file, unless it is shared
        if walked > size or depth > _DEEPEST:
            raise _too_large("its parts are nested in one another")
        if isinstance(value, torch.Tensor):
            if value.device.type != "cpu" or value.layout != torch.strided:
                continue  # it has no numbers in memory
            storage = value.untyped_storage()
            held, key = storage.nbytes(), storage.data_ptr()
            needed = value.numel() * value.element_size()
            if needed > held:
                raise _too_large("one of its tensors repeats its numbers")
            viewed += needed
        elif isinstance(value, np.ndarray | bytes | bytearray | str):
            held, key = value.nbytes if isinstance(value, np.ndarray) else len(value), id(value)
        else:
            if isinstance(value, dict):
                waiting += [(inner, depth + 1) for pair in value.items() for inner in pair]
            elif isinstance(value, list | tuple | set):
                waiting += [(inner, depth + 1) for inner in value]
            elif isinstance(value, Namespace):
                waiting += [(inner, depth + 1) for inner in vars(value).values()]
            continue
        if key not in seen:
            seen.add(key)
            stored += held
        if stored > size or viewed > _MOST_COPIES * size:
            raise _too_large("its tensors have more numbers than the file")


class MemoryBudget(DispatchMode):
    """A context that limits the total bytes of new tensors, so that a model is not much larger than its file.

    Freed tensors count as well. Each tensor counts as at least `_LEAST` bytes, which limits the time for many small
    ones.
    """

    _LEAST = 16384

    def __init__(self, size: int, name: object):
        """
        Args:
            size: limit in bytes.
            name: name of the checkpoint in errors.
        """
        super().__init__()
        self.left = size
        self.name = name

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._schema.is_mutable or func.is_view:
            return func(*args, **kwargs)
        try:
            self.left -= sum(max(self._LEAST, size) for size in _bytes_made(func, args, kwargs))
        except (NotImplementedError, RuntimeError, TypeError, ValueError, ArithmeticError):
            self.left -= self._LEAST  # the size depends on the numbers, or the operation fails below
        if self.left < 0:
            raise UserError(
                f"checkpoint {self.name} describes a model that is many times larger than the file: its settings are "
                "not those of its training; use the file that the training saved"
            )
        return func(*args, **kwargs)


def _bytes_made(func, args, kwargs) -> list[int]:
    """Of each tensor that an operation makes, at most. Those of sinusoidal positions are told without torch's functions
    for this, whose import takes a second."""
    name, leaves = func.overloadpacket, tree_leaves((args, kwargs))
    tensors = [each for each in leaves if isinstance(each, torch.Tensor)]
    if name is torch.ops.aten.arange:
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        numbers = math.ceil((given["end"] - given.get("start", 0)) / given.get("step", 1))
        return [torch.int64.itemsize * numbers]
    if name is torch.ops.aten.cat:
        return [sum(each.numel() for each in tensors) * max(each.element_size() for each in tensors)]
    is_complex = any(isinstance(each, complex) for each in leaves)
    if torch.Tag.pointwise in func.tags and not is_complex and all(each.is_floating_point() for each in tensors):
        shape = map(max, zip_longest(*(reversed(each.shape) for each in tensors), fillvalue=1))
        width = max(torch.get_default_dtype().itemsize, *(each.element_size() for each in tensors))
        return [math.prod(shape) * width] * len(func._schema.returns)
    made = tree_leaves(_without_numbers(func, args, kwargs))
    return [math.prod(each.shape) * each.element_size() for each in made if isinstance(each, torch.Tensor)]


def _without_numbers(func, args, kwargs):
    """The result of an operation, as tensors without memory."""

    def empty(tensor):
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")

    args, kwargs = tree_map_only(torch.Tensor, empty, (args, kwargs))
    if any(argument.name == "device" for argument in func._schema.arguments):
        kwargs = {**kwargs, "device": "meta"}
        if "pin_memory" in kwargs:
            kwargs["pin_memory"] = False
    return func(*args, **kwargs)


# --- plain settings and tensors


def check_parts(state: dict) -> None:
    """Check the model and the settings. Resolve references to other settings, and remove names of files.

    Args:
        state: the result of torch.load, changed in place.

    Raises:
        UserError: a part has a form that training does not save.
    """
    model = state["model"]
    if not isinstance(model, dict):
        raise _not_saved(f"its model is of the type {type(model).__name__}, not tensors by their names")
    for name, tensor in model.items():
        if not isinstance(name, str):
            raise _not_saved(f"a tensor of its model has the name {name!r:.40}")
        if name.endswith("_extra_state"):
            continue
        if not isinstance(tensor, torch.Tensor):
            raise _not_saved(f"{name:.100} of its model is of the type {type(tensor).__name__}, not a tensor")
        if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized:
            raise _not_saved(f"{name:.100} of its model is not a plain tensor (meta, sparse or quantized)")
    cfg, args = state.get("cfg"), state.get("args")
    if not isinstance(cfg, dict | None):
        raise _not_saved(f"its configuration (cfg) is of the type {type(cfg).__name__}, not sections of settings")
    if not isinstance(args, Namespace | None):
        raise _not_saved(f"its options (args) are of the type {type(args).__name__}, not a namespace")
    if cfg is not None:
        for section in ("model", "task") if args is None else ():
            if not isinstance(cfg.get(section), dict | Namespace):
                raise _not_saved(f"cfg.{section} is of the type {type(cfg.get(section)).__name__}, not settings")
            _check_name(values(cfg[section]).get("_name"), f"cfg.{section}._name")
        state["cfg"] = _plain(cfg, cfg, "cfg")
    if args is not None:
        for name in ("arch", "task", *REGISTRIES):  # fairseq uses them in paths
            _check_name(getattr(args, name, None), f"args.{name}")
        state["args"] = _plain(args, vars(args), "args")


def _check_name(value, place):
    if value is not None and not (isinstance(value, str) and re.fullmatch(r"(\w[\w-]*)?", value)):
        raise _not_saved(f"{place} is {value!r:.60}, which is no name")


def _not_saved(reason):
    return UserError(f"it is not as fairseq saves one ({reason}): use the file that the training saved")


def _plain(value, root, place):
    """Settings without references to other settings, and without names of files from which training started.

    Args:
        root: the root of references. References of old namespaces omit the section.
        place: name of the setting in errors.
    """
    if isinstance(value, dict):
        if not all(isinstance(name, str | int) for name in value):
            raise _not_saved(f"a name in {place} is no text")
        # a missing setting has the default of its dataclass
        return {name: _plain(inner, root, f"{place}.{name}") for name, inner in value.items() if not _is_file(name)}
    if isinstance(value, Namespace):
        if not all(isinstance(name, str) for name in vars(value)):
            raise _not_saved(f"a name in {place} is no text")
        return Namespace(
            **{
                name: None if _is_file(name) else _plain(inner, root, f"{place}.{name}")
                for name, inner in vars(value).items()
            }
        )
    if isinstance(value, list | tuple):
        return type(value)(_plain(inner, root, place) for inner in value)
    if isinstance(value, str):
        if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", value):
            raise _not_saved(f"{place} is {value!r:.60}, which holds control characters")
        return _refer(value, root, place) if "${" in value else value
    if isinstance(value, torch.Tensor | np.ndarray | set | bytes | bytearray):
        raise _not_saved(f"{place} is of the type {type(value).__name__}, which no setting has")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise _not_saved(f"{place} has {len(str(value))} digits")
    return value.item() if isinstance(value, np.generic) else value


def _is_file(name):
    return isinstance(name, str) and _FILES.fullmatch(name) is not None


def _refer(text, root, place):
    """The setting that a reference names; some versions of fairseq save references. OmegaConf itself would also read
    environment variables, and expand nested references without a limit."""
    value, missing = text, object()
    for _ in range(10):
        found = _REFERENCE.fullmatch(value)
        if not found:
            break
        value = root
        for name in found[1].split("."):
            value = values(value)
            value = value.get(name, missing) if isinstance(value, dict) else missing
        if value is missing:
            value = root.get(found[1].rpartition(".")[2], missing)
        if not isinstance(value, str):
            break
    if isinstance(value, str) and "${" in value or not isinstance(value, str | int | float | bool | None):
        raise _not_saved(f"{place} is {text!r:.80}, which refers to no other setting")
    return value


# --- types of the settings


def check_values(kind: type | None, settings: dict | Namespace, section: str) -> None:
    """
    Args:
        kind: class of the model or task for the settings, or None if it is unknown.
        settings: the settings of that section of a checkpoint.
        section: name of the section in errors.

    Raises:
        UserError: an option cannot have the value. fairseq would build another model, or fail much later.
    """
    given = values(settings)
    for action in _options_of(kind) if kind is not None else ():
        value = given.get(action.dest)
        if value is None or value == "???":  # OmegaConf's value for a missing setting
            continue
        wanted, meaning = _TYPES.get(_BOOLEAN if action.nargs == 0 else action.type, (None, None))
        if action.choices is not None and value not in action.choices:
            meaning = f"one of {', '.join(map(str, action.choices))}"
        elif action.choices is not None or wanted is None or action.nargs or isinstance(value, wanted):
            continue
        raise UserError(f"{section}.{action.dest} in it is {value!r:.60} and must be {meaning}: it was changed")


_BOOLEAN = "boolean"
_SIMPLE = str | bool | int | float | list  # for argparse, defaults that refer to other options are text
_TYPES = {
    _BOOLEAN: (bool | int, "true or false"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    str: (_SIMPLE, "text"),
    None: (_SIMPLE, "text"),
}


def _options_of(kind):
    parser = ArgumentParser(add_help=False, conflict_handler="resolve")
    try:
        kind.add_args(parser)
    except Exception:  # a plugin may need fairseq's own parser; its options are not checked
        return ()
    return parser._actions
