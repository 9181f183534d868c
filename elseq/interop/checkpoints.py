"""Makes checkpoints in the format of fairseq-train, without training."""

from argparse import Namespace

from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import MODEL_DATACLASS_REGISTRY
from omegaconf import OmegaConf
from torch import Tensor

from elseq.errors import UserError
from elseq.interop.heads import upgrade_projections
from elseq.models.stock import as_stock, elseq_configuration


def make_checkpoint(
    cfg: dict, model: dict[str, Tensor], optimizer: dict | None = None, task_state: dict | None = None
) -> dict:
    """A checkpoint before the first update.

    Args:
        cfg: the whole configuration.
        model: tensors by name.
        optimizer: names of criterion and optimizer, in the format of a checkpoint.
        task_state: state of the task.
    """
    return {
        "args": None,
        "cfg": cfg,
        "model": model,
        "optimizer_history": [{**(optimizer or {}), "lr_scheduler_state": {}, "num_updates": 0}],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "task_state": task_state or {},
    }


def plain_configuration(cfg) -> dict:
    """A checkpoint's configuration without classes."""
    return OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)


def training_configuration(model: dict, task: str, *arguments: str) -> dict:
    """The whole configuration of fairseq-train for a stock model and task.

    Args:
        model: the model's part, with `_name`.
        task: name of the task.
        arguments: options of the task.
    """
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, [".", "--task", task, "--arch", model["_name"], *arguments])
    cfg = plain_configuration(convert_namespace_to_omegaconf(args))
    return {**cfg, "model": _as_saved(model, cfg["task"])}


def _as_saved(model: dict, task: dict) -> dict | Namespace:
    """The part of a stock model in a configuration. For models without a dataclass, fairseq keeps all options in a
    namespace, including those of the task, which BART needs for loading."""
    if model["_name"] in MODEL_DATACLASS_REGISTRY:
        return model
    return Namespace(**{**task, **model, "arch": model["_name"], "task": task["_name"]})


def to_stock(state: dict) -> dict:
    """The checkpoint of an elseq or fairseq model, in a form that fairseq loads without elseq.

    Raises:
        UserError: fairseq has no equivalent of the model.
    """
    model = as_stock(elseq_configuration(state["cfg"].model))
    cfg = plain_configuration(state["cfg"])
    task = cfg["task"]
    if not isinstance(cfg.get("common"), dict) or not isinstance(task, Namespace) and "_name" not in task:
        raise UserError(
            "its settings have no section cfg.common or no cfg.task._name: use the file that the training saved"
        )
    if isinstance(task, dict):  # old tasks have a namespace
        task["_name"] = task["_name"].removeprefix("elseq_")
        cfg["model"] = _as_saved(model, task)
    else:
        cfg["model"] = _as_saved(model, vars(task) | {"_name": task.task})
    cfg["common"]["user_dir"] = None
    tensors = upgrade_projections(state["model"])
    return make_checkpoint(cfg, tensors, state["optimizer_history"][-1], state.get("task_state"))
