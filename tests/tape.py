"""A tape of operations on the CPU, which stands for a CUDA graph."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """Operations on tensors, and what they were called with: numbers as they were, tensors where they are."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        for function, args, kwargs, result in self.operations:
            for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs)), strict=True):
                if torch.is_tensor(old) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


class TapedWork:
    """A `CapturedWork` for the CPU: like a CUDA graph it repeats operations, and runs no Python again."""

    captures = 0
    replays = 0
    has_failed = False

    def __init__(self, device):
        self.runs = 0
        self.tape = Tape()

    @property
    def is_captured(self):
        return self.runs > 1

    def __call__(self, work):
        self.runs += 1
        if self.runs == 1:
            work()
        elif self.runs == 2:
            with self.tape:
                work()
            TapedWork.captures += 1
        else:
            self.tape.replay()
            TapedWork.replays += 1
