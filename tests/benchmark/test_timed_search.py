"""Searches that are timed by their parts."""

import pytest

from elseq.benchmark.models import random_model
from elseq.benchmark.timed_search import WARM_UP_SOURCE, WARM_UP_TOKENS, TimedSearch

SOURCE = [5 + place % 20 for place in range(WARM_UP_SOURCE + 500)] + [2]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    sizes = [f"--{side}-{name}" for side in ("encoder", "decoder") for name in ("layers=1", "embed-dim=16")]
    options = [*sizes, "--encoder-attention-heads=2", "--decoder-attention-heads=2", "--max-source-positions=4096"]
    return random_model("transformer", 32, options, tmp_path_factory.mktemp("model"))


def test_a_cpu_is_warmed_up_by_less_than_all(model_file):
    request = {
        "mode": "kv",
        "model_file": model_file.to_dict(),
        "sources": [SOURCE],
        "target_length": WARM_UP_TOKENS + 4,
        "beam": 2,
        **{"dtype": "float32", "device": "cpu", "threads": 1},
    }
    engine = TimedSearch(request)
    encoder, read = engine.model.encoder, []
    encode = encoder.forward_torchscript
    encoder.forward_torchscript = lambda net_input: read.append(net_input["src_tokens"]) or encode(net_input)
    engine.warm_up()
    assert read.pop().tolist() == [SOURCE[-WARM_UP_SOURCE:]]
    assert engine.found.output_lengths == [WARM_UP_TOKENS]

    seconds = engine.time()
    assert read.pop().tolist() == [SOURCE]
    assert engine.found.output_lengths == [WARM_UP_TOKENS + 4]
    assert set(seconds) == {"encoder", "decoder"} and min(seconds.values()) > 0
