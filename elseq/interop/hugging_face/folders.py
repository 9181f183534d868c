"""A model's folder as transformers writes it: configuration and weights."""

import errno
import json
import os
import pickle
import re
import struct
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from elseq.compat import contents
from elseq.errors import UserError
from elseq.files import check_ordinary

# Each with its index, where the weights are in several files; the first that is there is read, as transformers does.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_LARGEST_JSON = 2**27  # bytes; a tokenizer.json of 250,000 words has 17 million


def read_json(path: Path) -> dict:
    """
    Raises:
        UserError: a file that is missing, or does not hold an object in JSON.
    """
    check_ordinary(path, _LARGEST_JSON)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the folder") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply: copy it again") from error
    except ValueError as error:  # bad JSON, or bad UTF-8
        raise UserError(f"{path} is not JSON ({str(error).splitlines()[0]}): copy it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: copy it again")
    return content


def read_settings(folder: Path, config: dict) -> tuple[str, dict]:
    """How the model is to generate, and the name of the file that tells: in older folders it is config.json."""
    path = folder / "generation_config.json"
    return (path.name, read_json(path)) if path.exists() else ("config.json", config)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All weights by their names.

    Raises:
        UserError: no weights, or a file that is missing or damaged.
    """
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).exists():
            return _read_file(folder / name)
        if index.exists():
            parts = read_json(index).get("weight_map")
            if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
                raise UserError(f"{index} has no weight_map: copy it again")
            tensors: dict[str, Tensor] = {}
            for part in sorted(set(parts.values())):
                tensors.update(_read_file(folder / Path(part).name))
            return tensors
    raise UserError(f"{folder} has no weights: give a folder with {' or '.join(WEIGHTS)}")


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise UserError(f"{path}, a part of the model, is missing: copy it there")
    check_ordinary(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            contents.check_file(file, size)
            tensors = torch.load(file, map_location="cpu", weights_only=True)
        contents.check_size(tensors, size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # torch looks for the end of an archive before the start of a short file
            raise UserError(f"{path} is damaged or was cut off: copy it again") from error
        raise UserError(f"{path} cannot be read ({error.strerror or error}): check the file") from error
    except (SafetensorError, RuntimeError, EOFError, KeyError, ValueError, struct.error) as error:
        raise UserError(f"{path} is damaged or was cut off: copy it again") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, or is damaged: give the model as model.safetensors"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{path} does not hold named tensors: give the model as model.safetensors")
    return tensors


def check_tensors(folder: Path, tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    """
    Raises:
        UserError: tensors that are missing, or more than expected, or of other shapes, or of other types than those
            of 16 bits and more that models compute in; the first of them is named.
    """
    _name_first(folder, "lacks", [name for name in expected if name not in tensors])
    _name_first(folder, "has the unknown", [name for name in tensors if name not in expected])
    differing = [name for name, shape in expected.items() if tuple(tensors[name].shape) != shape]
    if differing:
        name = differing[0]
        found, wanted = (" x ".join(map(str, shape)) for shape in (tensors[name].shape, expected[name]))
        raise UserError(f"{name} in {folder} is {found} and not {wanted}: its config.json is of another model")
    for name in expected:
        kind = tensors[name].dtype
        if not kind.is_floating_point or kind.itemsize < 2:
            kind = str(kind).removeprefix("torch.")
            raise UserError(f"{name} in {folder} is of {kind}: give the model in float32, float16 or bfloat16")


def _name_first(folder: Path, what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise UserError(f"{folder} {what} tensor {names[0]}{more}: config.json and weights are of different models")


def write(folder: Path, config: dict, settings: dict, tensors: dict[str, Tensor]) -> None:
    """The files from which transformers loads a model.

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
