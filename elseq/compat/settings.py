"""Settings of a model or task: a namespace in old checkpoints and on the command line, otherwise a configuration."""

import contextlib
import json
from argparse import Namespace
from collections.abc import Mapping

from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from omegaconf import OmegaConf, open_dict

from elseq.errors import UserError


def values(settings) -> Mapping:
    """The settings by name. Changes to those of a namespace change the namespace."""
    return vars(settings) if isinstance(settings, Namespace) else settings


def unlocked(settings) -> contextlib.AbstractContextManager:
    """A context in which settings can be changed or added, also those of a locked configuration."""
    return open_dict(settings) if OmegaConf.is_config(settings) else contextlib.nullcontext()


def is_replaced(value) -> bool:
    """Whether OmegaConf puts something else in place of a text: what it refers to, or nothing."""
    return isinstance(value, str) and ("${" in value or value == "???")


def whole_of(settings):
    """The whole configuration that contains a model's settings; None for old checkpoints, whose options are one
    namespace."""
    parent = settings._get_parent() if hasattr(settings, "_get_parent") else None
    return parent if parent is not None and "task" in parent else None


def model_name(settings) -> str | None:
    """The name of the model, or of its architecture."""
    return getattr(settings, "_name", None) or getattr(settings, "arch", None)


def model_class(settings) -> type | None:
    """The class that fairseq builds for a model's settings, or None if it is unknown."""
    name = model_name(settings)
    return ARCH_MODEL_REGISTRY.get(name) or MODEL_REGISTRY.get(name)


def json_object(text, option: str) -> dict:
    """The settings that an option holds in JSON.

    Raises:
        UserError: the text is no JSON, or no object.
    """
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{text!r:.60} is no JSON object: give one such as '{{\"NAME\": VALUE}}'", option)
    return found
