"""Modes in which torch calls something in place of its operations."""

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """A base class for modes. For other subclasses of `TorchDispatchMode` torch imports its compiler, to keep it from
    them, which takes over a second."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
