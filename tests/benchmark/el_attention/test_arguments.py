"""What is asked for where nothing is said."""

import pytest
import torch

from elseq.benchmark.el_attention.arguments import TABLES, parse
from elseq.benchmark.el_attention.settings import SETTINGS
from elseq.errors import UserError

GIBIBYTE = 2**30


def test_on_a_cpu():
    args = parse([])
    assert (args.tables, args.models) == (list(TABLES), list(SETTINGS))
    assert (args.memory_cap, args.most, args.batch_sizes) == ([None], 8, [2, 4, 8])


def test_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    args = parse(["--device=cuda", "--dtype=float16"])
    assert (args.memory_cap, args.most, args.batch_sizes) == ([16 * GIBIBYTE, None], 1024, None)
    assert parse(["--device=cuda", "--small"]).batch_sizes == [2, 3]


def test_memory_caps():
    assert parse(["--memory-cap=16GB,device,800M"]).memory_cap == [16 * GIBIBYTE, None, 800 * 2**20]


def test_a_search_that_no_model_has():
    sentence = "^--searches diverse is not among those of --models gpt2_124m: beam, greedy$"
    with pytest.raises(UserError, match=sentence):
        parse(["--tables=speed", "--models=gpt2_124m", "--searches=diverse"])
