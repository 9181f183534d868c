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
    assert (args.memory_cap, args.most, args.batch_sizes) == ({"batch": [None], "speed": [None]}, 8, [2, 4, 8])


def test_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    args = parse(["--device=cuda", "--dtype=float16"])
    assert (args.memory_cap, args.most, args.batch_sizes) == (
        {"batch": [16 * GIBIBYTE, None], "speed": [16 * GIBIBYTE, None]},
        1024,
        None,
    )
    # Options may be shortened.
    assert [parse(["--device=cuda", tiny]).batch_sizes for tiny in ("--tiny", "--tin")] == [[2, 3], [2, 3]]


@pytest.mark.parametrize(
    ("text", "batch", "speed"),
    [
        ("16GB,device,800M", [16 * GIBIBYTE, None, 800 * 2**20], [16 * GIBIBYTE, None, 800 * 2**20]),
        ("batch=device,speed=16GB", [None], [16 * GIBIBYTE]),
        ("speed=16GB,speed=800M", [None], [16 * GIBIBYTE, 800 * 2**20]),
        ("16GB,batch=device,16GB", [16 * GIBIBYTE, None], [16 * GIBIBYTE]),
    ],
)
def test_memory_caps(text, batch, speed):
    assert parse([f"--memory-cap={text}"]).memory_cap == {"batch": batch, "speed": speed}


def test_a_search_that_no_model_has():
    sentence = "^--searches diverse is not among those of --models gpt2_124m: beam, greedy$"
    with pytest.raises(UserError, match=sentence):
        parse(["--tables=speed", "--models=gpt2_124m", "--searches=diverse"])
