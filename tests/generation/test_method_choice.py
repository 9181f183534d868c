import builtins
import logging

import pytest
import torch

from elseq.attention.methods import EL, KV
from elseq.generation import method_choice
from elseq.generation.method_choice import USABLE, choose_method, free_memory_bytes
from elseq.generation.planner import Workload, decoding_state_bytes
from tests.models.building import ours

WORKLOAD = Workload(sentences=4, beam=4, source_length=50, target_length=20)


@pytest.fixture(scope="module")
def decoder():
    return ours("transformer").decoder


@pytest.fixture
def free(monkeypatch):
    """Sets what counts as free memory."""
    method_choice._explain.cache_clear()
    return lambda size: monkeypatch.setattr(method_choice, "free_memory_bytes", lambda device: size)


@pytest.mark.parametrize("size", [0, 10**15])
def test_a_method_that_was_asked_for_is_taken_whatever_the_memory(decoder, free, size):
    free(size)
    assert choose_method("kv", decoder, WORKLOAD) == KV
    assert choose_method("el", decoder, WORKLOAD) == EL


def test_auto_takes_el_where_keys_and_values_do_not_fit(decoder, free):
    needed = decoding_state_bytes(decoder, WORKLOAD, KV, torch.float32)
    free(int(needed / USABLE) + 1)
    assert choose_method("auto", decoder, WORKLOAD) == KV
    free(int(needed / USABLE) - 1)
    assert choose_method("auto", decoder, WORKLOAD) == EL


@pytest.mark.parametrize(
    "options",
    [
        {"encoder_embed_dim": 64, "decoder_embed_dim": 8, "decoder_attention_heads": 2, "decoder_layers": 1},
        {"num_kv_heads": 1},
    ],
    ids=["wide encoder and narrow decoder", "multi-query"],
)
def test_auto_takes_kv_where_hidden_states_are_larger_than_what_they_project_to(free, options):
    decoder = ours("transformer", **options).decoder
    free(0)
    assert choose_method("auto", decoder, WORKLOAD) == KV


def test_auto_explains_its_choice_once(decoder, free, caplog):
    caplog.set_level(logging.INFO)
    free(10**15)
    for _ in range(3):
        choose_method("auto", decoder, WORKLOAD)
    free(3 << 20)
    large = Workload(sentences=400, beam=4, source_length=500, target_length=20)
    choose_method("auto", decoder, large)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("--decode-attention auto chooses kv on this CPU")
    assert second.startswith("--decode-attention auto chooses el on this CPU")
    assert "does not fit" in second


def test_a_choice_that_was_the_user_s_is_not_explained(decoder, caplog):
    caplog.set_level(logging.INFO)
    choose_method("el", decoder, WORKLOAD)
    assert not caplog.records


def test_free_memory():
    size = free_memory_bytes(torch.device("cpu"))
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    assert 0 < size <= total


def test_free_memory_on_systems_without_proc(monkeypatch):
    def refuse(*args, **kwargs):
        raise FileNotFoundError

    before = free_memory_bytes(torch.device("cpu"))
    monkeypatch.setattr(builtins, "open", refuse)
    assert 0 < free_memory_bytes(torch.device("cpu")) < 100 * before
