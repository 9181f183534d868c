"""The settings of a model or a task: a namespace in old checkpoints and on the command line, else a configuration."""

from argparse import Namespace
from collections.abc import Mapping

from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY


def values(settings) -> Mapping:
    """By their names; a change of a namespace's is one of the namespace."""
    return vars(settings) if isinstance(settings, Namespace) else settings


def model_name(settings) -> str | None:
    """Of the model, or of its architecture."""
    return getattr(settings, "_name", None) or getattr(settings, "arch", None)


def model_class(settings) -> type | None:
    """The class that fairseq would build from a model's settings, or None if it knows none."""
    name = model_name(settings)
    return ARCH_MODEL_REGISTRY.get(name) or MODEL_REGISTRY.get(name)
