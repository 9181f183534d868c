"""A model's folder as transformers writes it: configuration and weights."""

import errno
import json
import os
import pickle
import re
import zipfile
from collections import Counter
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from elseq.compat import contents
from elseq.errors import UserError
from elseq.files import check_ordinary, read_json
from elseq.numerics import check_finite

# Each with its index, where the weights are in several files; the first that is there is read, as transformers does.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SHARED = 3  # names of one tensor: the embedding of a BART, of its encoder, its decoder and its output


def read_settings(folder: Path, config: dict) -> tuple[str, dict]:
    """The settings of generation as transformers reads them, and the name of their file.

    Only generation_config.json counts. In older folders without it, only config.json counts, without the defaults of
    the model's class.

    Args:
        folder: of the model.
        config: its config.json, as it is.
    """
    path = folder / "generation_config.json"
    settings = read_json(path) if path.exists() else config
    is_of_model = settings is config or settings.get("_from_model_config")
    if is_of_model and settings.get("force_bos_token_to_be_generated"):  # the name before transformers 4
        settings = settings | {"forced_bos_token_id": settings.get("bos_token_id")}
    return path.name if path.exists() else "config.json", settings


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All weights by their names.

    Raises:
        UserError: no weights, or a file that is missing or damaged.
    """
    for name in WEIGHTS:
        if (folder / name).exists():
            return _read_file(folder / name)
        if (folder / f"{name}.index.json").exists():
            return _read_parts(folder, folder / f"{name}.index.json")
    adapter = "adapter_model.safetensors"
    if (folder / adapter).exists():
        raise UserError(f"{folder} has no weights but those of an adapter, {adapter}: merge it into its model first")
    raise UserError(f"{folder} has no weights: give a folder with {' or '.join(WEIGHTS)}")


def _read_parts(folder: Path, index: Path) -> dict[str, Tensor]:
    parts = read_json(index).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise UserError(f"{index} has no weight_map: copy it again")
    tensors: dict[str, Tensor] = {}
    for part in sorted(set(parts.values())):
        if Path(part).is_absolute() or ".." in Path(part).parts or not Path(part).name or "\0" in part:
            raise UserError(f"{index} names {part!r}, which is no file of the folder: copy it again")
        for name, tensor in _read_file(folder / part).items():
            if name in tensors and not _is_same(tensor, tensors[name]):
                raise UserError(f"{folder} has the tensor {name} twice, of two values: copy the model again")
            tensors[name] = tensor
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise UserError(f"{path}, a part of the model, is missing: copy it there")
    check_ordinary(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        size, is_archive = path.stat().st_size, zipfile.is_zipfile(path)  # older files are none, and cannot be mapped
        if is_archive:
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise UserError("it is compressed, as torch never is: give the model as model.safetensors")
        with path.open("rb") as file:
            contents.check_file(file, size)
        # A mapped file needs no memory, and torch compares the sizes of its tensors with that of the file.
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
        contents.check_size(tensors, size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # torch looks for the end of an archive before the start of a short file
            raise UserError(f"{path} is damaged or was cut off: copy it again") from error
        raise UserError(f"{path} cannot be read ({error.strerror or error}): check the file") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, or is damaged: give the model as model.safetensors"
        ) from error
    except Exception as error:  # the libraries do not document the errors for damaged files
        raise UserError(f"{path} is damaged or was cut off: copy it again") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise UserError(f"{path} does not hold named tensors: give the model as model.safetensors")
    return {name: tensor.detach() for name, tensor in tensors.items()}


def without_prefix(tensors: dict[str, Tensor], prefix: str, ignored: re.Pattern) -> dict[str, Tensor]:
    """Tensors by their names in the base model, however often its name is put before them.

    Args:
        tensors: of a folder.
        prefix: the base model's name, and a point.
        ignored: the names of tensors that nothing reads.

    Raises:
        UserError: a tensor that is there under two names, with two values.
    """
    found: dict[str, Tensor] = {}
    for full, tensor in tensors.items():
        name = full
        while name.startswith(prefix):
            name = name.removeprefix(prefix)
        if ignored.fullmatch(name):
            continue
        if name in found and not _is_same(tensor, found[name]):
            raise UserError(f"the weights have {name} twice, with and without {prefix!r}, of two values")
        found[name] = tensor
    return found


def _is_same(tensor: Tensor, other: Tensor) -> bool:
    try:
        return torch.equal(tensor, other)
    except (RuntimeError, NotImplementedError):  # those that hold no plain numbers
        return False


def check_layers(folder: Path, tensors: dict[str, Tensor], layers: dict[str, int], said: dict[str, str]) -> None:
    """
    Args:
        folder: of the model.
        tensors: its weights.
        layers: the number of layers by config.json for the beginning of their tensors' names.
        said: for the same, the words of config.json.

    Raises:
        UserError: weights of more layers than that, or fewer by so much that their names are not worth a list.
    """
    for prefix, number in layers.items():
        found = {name: re.match(rf"{prefix}\.([0-9]{{1,9}})\.", name) for name in tensors}
        surplus = [name for name, match in found.items() if match and int(match[1]) >= number]
        _name_first(folder, "has the unknown", surplus, f"its config.json has {said[prefix]}")
        if number > len(tensors):
            raise UserError(f"config.json in {folder} has {said[prefix]}, and the weights are {len(tensors)} tensors")


def check_tensors(folder: Path, tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> list[str]:
    """
    Returns:
        The names of the tensors that the model has no place for.

    Raises:
        UserError: tensors that are missing, or of other shapes, or of other types than those of 16 bits and more that
            models compute in, or that are not numbers; the first of them is named.
    """
    missing = [name for name in expected if name not in tensors]
    _name_first(folder, "lacks", missing, _why_missing(missing, tensors))
    differing = [name for name, shape in expected.items() if tuple(tensors[name].shape) != shape]
    if differing:
        name = differing[0]
        found, wanted = (" x ".join(map(str, shape)) or "one number" for shape in (tensors[name].shape, expected[name]))
        raise UserError(f"{name} in {folder} is {found} and not {wanted}: its config.json is of another model")
    for name in expected:
        kind = tensors[name].dtype
        if not kind.is_floating_point or kind.itemsize < 2:
            kind = str(kind).removeprefix("torch.")
            raise UserError(f"{name} in {folder} is of {kind}: give the model in float32, float16 or bfloat16")
    _check_storage(folder, {name: tensors[name] for name in expected})
    check_finite({name: tensors[name] for name in expected}, str(folder))
    return [name for name in tensors if name not in expected]


def _check_storage(folder: Path, tensors: dict[str, Tensor]) -> None:
    """
    Raises:
        UserError: a tensor that does not have all its numbers, so that little bytes would become many.
    """
    claimed: Counter[int] = Counter()
    for name, tensor in tensors.items():
        is_plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if is_plain:
            storage = tensor.untyped_storage()
            claimed[storage.data_ptr()] += tensor.nbytes
            is_plain = claimed[storage.data_ptr()] <= _SHARED * storage.nbytes()
        if not is_plain:
            raise UserError(f"{name} in {folder} is no plain tensor: save the model again")


def _why_missing(missing: list[str], tensors: dict[str, Tensor]) -> str:
    """The probable reason why the first missing tensor is missing."""
    wrapped = next((name for name in tensors if missing and name.endswith(f".{missing[0]}")), None)
    if wrapped is not None:
        return f"it has {wrapped} in its place, as a wrapper saves it; save the model that is inside the wrapper"
    adapted = next((name for name in tensors if ".base_layer." in name or ".lora_" in name), None)
    if adapted is not None:
        return f"it has adapters, {adapted}; merge them into the model, and save that"
    return "config.json and weights are of different models"


def _name_first(folder: Path, what: str, names: list[str], why: str) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise UserError(f"{folder} {what} tensor {names[0]}{more}: {why}")


def write(folder: Path, config: dict, settings: dict, tensors: dict[str, Tensor]) -> None:
    """Write the files from which transformers loads a model.

    Raises:
        OSError: they cannot be written.
    """
    for name, content in (("config.json", config), ("generation_config.json", settings)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # the library has the error of the system in words only
        number = re.search(r"(?:os error|code:) (\d+)", str(error))
        raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))) from error
