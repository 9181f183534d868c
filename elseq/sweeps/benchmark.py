"""A job of elseq-benchmark with Hydra: one mode at one batch size and beam."""

import contextlib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from elseq.arguments import IN_WORDS
from elseq.benchmark.arguments import STOCK_MODES, Settings
from elseq.benchmark.command import make_grid, title
from elseq.benchmark.rows import Row
from elseq.benchmark.runs import run_grid
from elseq.errors import UserError
from elseq.models.stock import elseq_configuration, training_options
from elseq.precision import INT8
from elseq.sweeps.jobs import Result, recorded
from elseq.sweeps.settings import search_options

# Fields of the settings with other names here, and options of the search.
_NAMES = {"modes": "decode.mode", "batch_sizes": "batch", "beams": "beam", "data": "task.data"}
_SEARCH = ("beam", "min_len", "max_len_b", "lenpen", "no_repeat_ngram_size")


def _known(cfg: dict) -> Row:
    return Row(cfg["decode"]["mode"], cfg["batch"], cfg["beam"], cfg["dtype"])


@recorded(known=_known)
def job(cfg: DictConfig, folder: Path) -> Result:
    """Measure the mode of the configuration, without stock."""
    with contextlib.ExitStack() as stack:
        settings = read_settings(cfg)
        if INT8 in settings.dtype and settings.modes[0] in STOCK_MODES:
            raise UserError("fairseq has no int8; the int8 of others is compared with its float32")
        grid = make_grid(settings, stack, _name)
        if settings.checkpoint is None:
            grid = replace(grid, model_file=replace(grid.model_file, name=HydraConfig.get().runtime.choices.model))
        found: list[tuple[Row, list | None]] = []
        run_grid(grid, lambda row, best: found.append((row, best)))
        if len(found) != 1:
            raise UserError("batch, beam and dtype are one value each; several with commas between them need -m")
        row, best = found[0]
        outputs = None if best is None else [" ".join(map(str, tokens)) for tokens in best]
        return Result(row, title(settings, grid), outputs)


def _name(field: str) -> str:
    """Name of a field of the settings in the configuration."""
    return _NAMES.get(field, field).removesuffix(".mode")


def read_settings(cfg: DictConfig) -> Settings:
    """What a configuration asks elseq-benchmark for.

    Raises:
        UserError: settings are incompatible.
    """
    model = cfg.get("model")
    if (model is None) == (cfg.checkpoint is None):
        raise UserError("give either model=NAME, one of hydra_conf/model, or checkpoint=FILE")
    search = search_options(cfg, _SEARCH)
    given = {}
    for each in fields(Settings):
        name = _NAMES.get(each.name, each.name)
        value = search[name] if name in search else OmegaConf.select(cfg, name)
        if value is not None:
            given[each.name] = _read(_name(each.name), str(value), each.metadata)
    if model is not None:
        configuration = elseq_configuration(OmegaConf.create(OmegaConf.to_container(model, resolve=True)))
        _, arch, *model_options = training_options(configuration)
        given |= {"arch": arch, "random_weights": True, "model_options": model_options}
    return Settings(**given)


def _read(name: str, text: str, metadata: Mapping):
    """A value as the command line reads it.

    Raises:
        UserError: the command line would refuse the value.
    """
    kind, choices = metadata.get("type", str), metadata.get("choices")
    try:
        value = kind(text)
    except UserError as error:
        raise UserError(f"{name} {error}") from error
    except ValueError as error:
        raise UserError(f"{name} {text} is not possible: give {IN_WORDS[kind.__name__]}") from error
    if choices is not None and value not in choices:
        known = ", ".join(map(repr, choices))
        raise UserError(f"{name}: invalid choice: {text!r} (choose from {known}); see elseq-benchmark --help")
    return value
