"""The common settings of the benchmark's and generation's configurations."""

from collections.abc import Collection

from omegaconf import DictConfig, OmegaConf

from elseq.compat.settings import json_object
from elseq.errors import UserError


def search_options(cfg: DictConfig, names: Collection[str]) -> dict:
    """The search options: those of the configuration, otherwise those of the group `decoding`.

    The group also configures how fairseq decodes in validation, in JSON (task.eval_bleu_args).

    Args:
        cfg: configuration of a job.
        names: names of the possible options.

    Raises:
        UserError: the group sets another option, or is no JSON.
    """
    options = json_object(OmegaConf.select(cfg, "task.eval_bleu_args") or "{}", "task.eval_bleu_args")
    for name in options:
        if name not in names:
            raise UserError(f"{name} of the group decoding is no setting here: take another decoding, or none")
    return options | {name: cfg[name] for name in names if cfg.get(name) is not None}
