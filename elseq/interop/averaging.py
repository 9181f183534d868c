"""The mean of the parameters of several checkpoints of a training."""

import re
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from elseq.compat.settings import model_name
from elseq.errors import UserError, as_option
from elseq.models.stock import elseq_configuration

_OF_EPOCH = re.compile(r"checkpoint(\d+)\.pt")
_OF_UPDATE = re.compile(r"checkpoint_\d+_(\d+)\.pt")


def last_checkpoints(folder: Path, count: int, by_updates: bool) -> list[Path]:
    """The last checkpoints of a training, oldest first.

    Args:
        folder: --save-dir of the training.
        count: their number.
        by_updates: take those of --save-interval-updates, otherwise those of epochs.

    Raises:
        UserError: the folder has fewer checkpoints.
    """
    pattern, example = (_OF_UPDATE, "checkpoint_1_1000.pt") if by_updates else (_OF_EPOCH, "checkpoint1.pt")
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))]
    if not found:
        raise UserError(f"{folder} has no checkpoints such as {example}: give the folder of a training that saved some")
    if len(found) < count:
        raise UserError(f"{folder} has {len(found)} checkpoints such as {example}: give a lower --last than {count}")
    return [path for _, path in sorted(found)[-count:]]


def mean(models: Iterable[tuple[Path, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """The mean of each parameter, summed in float32 and in the type that it has. Tied parameters stay tied.

    Args:
        models: the file and the parameters by name of each model. One is held at a time, beside the sum.

    Raises:
        UserError: the models have different parameters.
    """
    sums: dict[str, Tensor] = {}
    number, first = 0, None
    for path, model in models:
        if first is None:
            first, shapes = path, {name: (tensor.shape, tensor.dtype) for name, tensor in model.items()}
            same = _tied(model)
            sums = {name: tensor.to(_wide(tensor), copy=True) for name, tensor in model.items() if same[name] == name}
        else:
            _compare(first, shapes, path, model)
            for name, total in sums.items():
                if total.is_floating_point():
                    total += model[name]
                elif not torch.equal(total, model[name]):
                    raise UserError(f"{path} and {first} differ in {name}, which has no mean: give others")
        number += 1
        del model  # before the next one is read
    means = {
        name: (total / number).to(shapes[name][1]) if total.is_floating_point() else total
        for name, total in sums.items()
    }
    return {name: means[same[name]] for name in shapes}


# Options that may change during a training: they do not change what a trained model computes, or the sizes of its
# parameters show the change.
_CHANGEABLE = re.compile(
    r"dropout|layerdrop|noise|embed_path|chunk_size|activations|min_params|decode_attention|max_|kv_heads"
)


def settings_of(cfg) -> dict:
    """What a model computes by, besides its parameters.

    Args:
        cfg: the model's part of a configuration.
    """
    try:
        settings = elseq_configuration(cfg)
        settings = {"arch": settings.pop("_name"), **settings}
    except UserError:  # a model that keeps fairseq's modules
        settings = {"arch": model_name(cfg)}
    return {name: value for name, value in settings.items() if not _CHANGEABLE.search(name)}


def check_same(first: Path, wanted: dict, path: Path, settings: dict) -> None:
    """
    Raises:
        UserError: the models of two checkpoints compute by different settings, as of `settings_of`.
    """
    for name in wanted | settings:
        if wanted.get(name) != settings.get(name):
            raise UserError(
                f"{path} and {first} differ in {as_option(name)}, {settings.get(name)} and {wanted.get(name)}: give "
                "those of one training"
            )


def common(records: Sequence[list]) -> list:
    """What all records begin with."""
    same = takewhile(lambda entries: len(set(map(repr, entries))) == 1, zip(*records, strict=False))
    return [entries[0] for entries in same]


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else tensor.dtype


def _tied(model: dict[str, Tensor]) -> dict[str, str]:
    """For each name, the first name of the same tensor."""
    first = {}
    return {
        name: first.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name)
        for name, tensor in model.items()
    }


def _compare(first: Path, shapes: dict, path: Path, model: dict[str, Tensor]) -> None:
    if different := sorted(shapes.keys() ^ model.keys()):
        raise UserError(f"{path} and {first} differ in the parameter {different[0]}: give those of one training")
    for name, (shape, _) in shapes.items():
        if model[name].shape != shape:
            raise UserError(
                f"{name} has the shape {list(model[name].shape)} in {path} and {list(shape)} in {first}: give those of "
                "one training"
            )
