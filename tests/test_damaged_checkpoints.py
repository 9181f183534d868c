"""Checkpoints that were changed by hand: each gives a result or one sentence, soon, and in little memory."""

import collections
import contextlib
import copy
import random
import resource
import signal
from argparse import Namespace

import numpy as np
import pytest
import torch

import elseq
from elseq.errors import UserError

CASES = [15, pytest.param(40, marks=pytest.mark.slow)]  # of each family
SECONDS = 20
MEBIBYTES = 1500  # that the process may grow by

CODE = "__import__('os').mkdir('broken_in')"
VALUES = {
    "none": None,
    "text": "mystery",
    "empty": "",
    "code": CODE,
    "reference": "${oc.env:HOME}",
    "nested reference": "${model}",
    "path": "/dev/zero",
    "quote": "it's \\",
    "option": "--user-dir",
    "zero": 0,
    "one": 1,
    "three": 3,
    "negative": -1,
    "large": 2**31,
    "huge": 10**15,
    "beyond": 10**40,
    "fraction": 0.5,
    "nan": float("nan"),
    "infinite": float("inf"),
    "true": True,
    "false": False,
    "list": [1, 2],
    "list of text": ["a", None],
    "dict": {"a": 1},
    "namespace": Namespace(a=1),
    "tensor": torch.ones(2),
    "array": np.ones(2),
    "tuple": (1, (2,)),
    "bytes": b"abc",
}


def shared_lists():
    value = []
    for _ in range(60):
        value = [value, value]
    return value


def deep_lists():
    value = []
    for _ in range(300):
        value = [value]
    return value


def cyclic_list():
    value = []
    value.append(value)
    return value


NESTED = {"shared": shared_lists, "deep": deep_lists, "cyclic": cyclic_list}
TENSORS = {
    "none": lambda tensor: None,
    "text": lambda tensor: "mystery",
    "number": lambda tensor: 5,
    "array": lambda tensor: tensor.numpy(),
    "meta": lambda tensor: tensor.to("meta"),
    "sparse": lambda tensor: tensor.to_sparse(),
    "whole numbers": lambda tensor: tensor.to(torch.int64),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "flags": lambda tensor: tensor > 0,
    "half": lambda tensor: tensor.half(),
    "scalar": lambda tensor: torch.tensor(1.0),
    "empty": lambda tensor: tensor[:0].clone(),
    "longer": lambda tensor: torch.cat((tensor, tensor)),
    "expanded": lambda tensor: torch.ones(1).expand(10**10),
    "strided": lambda tensor: torch.ones(4).as_strided((10**5, 10**5), (0, 0)),
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
    "parameter": lambda tensor: torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor,
    "list": lambda tensor: tensor.tolist(),
}


def as_old(state):
    """A namespace of all options, as before fairseq had configurations."""
    cfg = state.pop("cfg")
    sections = [vars(part) if isinstance(part, Namespace) else part for part in cfg.values()]
    flat = {name: value for part in sections if isinstance(part, dict) for name, value in part.items()}
    names = {section: part["_name"] for section, part in cfg.items() if isinstance(part, dict) and "_name" in part}
    model = vars(cfg["model"]) if isinstance(cfg["model"], Namespace) else cfg["model"]
    state["args"] = Namespace(**{**flat, **names, **model, "arch": model["_name"], "task": names.get("task")})


def settings(part):
    return vars(part) if isinstance(part, Namespace) else part


def mutate(state, draw):
    """Change a checkpoint in place; returns what was done, in words."""
    if draw.random() < 0.15:
        as_old(state)
    where = draw.choice(["model"] * 6 + ["task"] * 3 + ["section", "top", "tensor", "tensor", "names", "nested"])
    if state.get("cfg") is None and where in ("model", "task", "section", "nested"):
        part, place = vars(state["args"]), "args"
        where = "model"
    elif where in ("model", "task"):
        part, place = settings(state["cfg"][where]), f"cfg.{where}"
    elif where in ("section", "nested"):
        part, place = state["cfg"], "cfg"
    else:
        part, place = state, ""
    if where == "tensor":
        name, how = draw.choice(sorted(state["model"])), draw.choice(sorted(TENSORS))
        state["model"][name] = TENSORS[how](state["model"][name])
        return f"{name}: {how}"
    if where == "names":
        name = draw.choice(sorted(state["model"]))
        tensor = state["model"].pop(name)
        state["model"][draw.choice([5, "mystery", name.upper(), f"module.{name}"])] = tensor
        return f"{name}: another name"
    name = draw.choice(sorted(part))
    if where == "nested":
        how = draw.choice(sorted(NESTED))
        target = settings(part["model"])
        name = draw.choice(sorted(target))
        target[name] = NESTED[how]()
        return f"cfg.model.{name}: {how}"
    if draw.random() < 0.15:
        del part[name]
        return f"{place}.{name}: missing"
    how = draw.choice(sorted(VALUES))
    part[name] = copy.deepcopy(VALUES[how])
    return f"{place}.{name}: {how}"


@contextlib.contextmanager
def time_limit(seconds):
    def stop(*_):
        raise AssertionError(f"not done after {seconds} seconds")

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB


@pytest.mark.parametrize(
    "family",
    ["tiny_translation", "tiny_bart", "tiny_language_model", pytest.param("tiny_multi_query", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("cases", CASES)
def test_changed_checkpoints(family, cases, request, tmp_path, monkeypatch):
    trained = request.getfixturevalue(family)
    monkeypatch.chdir(tmp_path)
    state = torch.load(trained.checkpoint)
    state.pop("last_optimizer_state")
    draw, counts, wrong = random.Random(family), collections.Counter(), []
    for _ in range(cases):
        changed = copy.deepcopy(state)
        done = mutate(changed, draw)
        torch.save(changed, "model.pt")
        before = peak()
        try:
            with time_limit(SECONDS):
                model = elseq.load("model.pt", data=trained.data, device="cpu")
                model.generate(["w1 w2 w3 w4", "w5"], beam=2, max_len_b=20)
            counts["results"] += 1
        except UserError as error:
            counts["sentences"] += 1
            if "\n" in str(error) or not 20 < len(str(error)) < 700:
                wrong.append(f"{done}: {error}")
        except Exception as error:
            wrong.append(f"{done}: {type(error).__name__}: {error}")
        if peak() - before > MEBIBYTES:
            wrong.append(f"{done}: {peak() - before:.0f} MiB")
    print(family, dict(counts))
    assert not list(tmp_path.glob("broken*"))
    assert not wrong, "\n".join(wrong)
