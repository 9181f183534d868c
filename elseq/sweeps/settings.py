"""What the configurations of the benchmark and of generation have in common."""

import json
from collections.abc import Collection

from omegaconf import DictConfig, OmegaConf

from elseq.errors import UserError


def search_options(cfg: DictConfig, names: Collection[str]) -> dict:
    """Options of the search: those of the group `decoding`, and before them those that stand in the configuration.

    The group is training's, where it sets how fairseq decodes in validation, in JSON (task.eval_bleu_args).

    Args:
        cfg: of a job.
        names: of the options that there are.

    Raises:
        UserError: the group sets something else.
    """
    options = json.loads(OmegaConf.select(cfg, "task.eval_bleu_args") or "{}")
    for name in options:
        if name not in names:
            raise UserError(f"{name} of the group decoding is no setting here: take another decoding, or none")
    return options | {name: cfg[name] for name in names if cfg.get(name) is not None}
