"""A job of elseq-benchmark with Hydra: one mode at one batch size and beam."""

import contextlib
import re
from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from elseq.benchmark.command import make_grid, parse, title
from elseq.benchmark.runs import run_grid
from elseq.errors import UserError, as_option
from elseq.models.stock import elseq_configuration, training_options
from elseq.sweeps.jobs import Result, recorded
from elseq.sweeps.settings import search_options

_SEARCH = ("beam", "min_len", "max_len_b", "lenpen", "no_repeat_ngram_size")
_SAME = (
    "checkpoint",
    "user_dir",
    "vocabulary_size",
    "source",
    "output_length",
    "dtype",
    "device",
    "threads",
    "repeats",
)
# Names of settings for options of the command line.
_SETTINGS = {name.replace("_", "-"): name for name in (*_SEARCH, *_SAME, "source_length")}
_SETTINGS |= {"modes": "decode", "batch-sizes": "batch", "beams": "beam", "data": "task.data"}
_OPTION = re.compile(r"(?:argument )?--([a-z][a-z-]*)")


def _known(cfg: dict) -> dict:
    return {"mode": cfg["decode"]["mode"], "batch_size": cfg["batch"], "beam": cfg["beam"]}


@recorded(known=_known)
def job(cfg: DictConfig, folder: Path) -> Result:
    """Measure the mode of the configuration, as the command line of `arguments` does, without stock."""
    with _settings_named(), contextlib.ExitStack() as stack:
        args = parse(arguments(cfg))
        grid = replace(make_grid(args, stack), modes=args.modes)
        if cfg.checkpoint is None:
            grid = replace(grid, model_file=replace(grid.model_file, name=HydraConfig.get().runtime.choices.model))
        found: list[tuple[dict, list | None]] = []
        run_grid(grid, lambda row, best: found.append((row, best)))
        if len(found) != 1:
            raise UserError("batch and beam are one number each; several with commas between them need -m")
        row, best = found[0]
        outputs = None if best is None else [" ".join(map(str, tokens)) for tokens in best]
        return Result(row, title(args, grid), outputs)


@contextlib.contextmanager
def _settings_named():
    """Replace the options in error sentences by the names of settings."""
    try:
        yield
    except UserError as error:
        raise UserError(_OPTION.sub(lambda option: _SETTINGS.get(option[1], option[0]), str(error))) from error


def arguments(cfg: DictConfig) -> list[str]:
    """The command line of elseq-benchmark for a configuration.

    Raises:
        UserError: settings are incompatible.
    """
    model = cfg.get("model")
    if (model is None) == (cfg.checkpoint is None):
        raise UserError("give either model=NAME, one of hydra_conf/model, or checkpoint=FILE")
    search = search_options(cfg, _SEARCH)
    options = {
        "modes": cfg.decode.mode,
        "batch-sizes": cfg.batch,
        "beams": search.pop("beam", None),
        "source-length": cfg.source_length if cfg.source is None else None,
        "data": cfg.task.data,
        **{name: cfg[name] for name in _SAME},
        **search,
    }
    checkpoint = options.pop("checkpoint")
    given = [f"{as_option(name)}={value}" for name, value in options.items() if value is not None]
    if checkpoint is not None:
        return [str(checkpoint), *given]
    configuration = elseq_configuration(OmegaConf.create(OmegaConf.to_container(model, resolve=True)))
    _, arch, *model_options = training_options(configuration)
    return [f"--arch={arch}", "--random-weights", *given, "--", *model_options]
