import logging

import pytest

from elseq.attention.methods import EL, KV, Choice
from elseq.generation import method_choice
from elseq.generation.method_choice import CLEARLY, USABLE, choose_methods, possible_choices
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
    assert choose_methods("kv", decoder, WORKLOAD) == (KV, KV)
    assert choose_methods("el", decoder, WORKLOAD) == (EL, EL)
    assert possible_choices("el") == [(EL, EL)]


def test_auto_takes_el_where_keys_and_values_do_not_fit(decoder, free):
    needed = decoding_state_bytes(decoder, WORKLOAD, Choice(KV, KV))
    free(int(needed / USABLE) + 1)
    assert choose_methods("auto", decoder, WORKLOAD) == (KV, KV)
    free(int(needed / USABLE) - 1)
    assert choose_methods("auto", decoder, WORKLOAD) == (EL, EL)


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
    assert choose_methods("auto", decoder, WORKLOAD) == (KV, KV)


@pytest.fixture
def seconds(monkeypatch):
    """Sets what cross-attention takes under each method."""
    monkeypatch.setattr(method_choice, "WORTH_MEASURING", {"cpu": 0, "other": 0})
    return lambda **each: monkeypatch.setattr(
        method_choice, "cross_attention_seconds", lambda method, *_: each[method.name]
    )


@pytest.mark.parametrize(
    ("kv", "el", "cross"), [(1.0, 2.0, KV), (1.0, 0.99 * CLEARLY, EL), (1.0, (1 + CLEARLY) / 2, KV)]
)
def test_measured_times_decide_in_cross_attention(decoder, free, seconds, kv, el, cross):
    free(10**15)
    seconds(kv=kv, el=el)
    assert choose_methods("auto", decoder, WORKLOAD) == (KV, cross)


def test_nothing_is_measured_where_it_cannot_matter(decoder, free, seconds, monkeypatch):
    free(10**15)
    seconds()  # asked for a time, it fails
    monkeypatch.setattr(decoder, "decode_dtype", "int8")
    assert choose_methods("auto", decoder, WORKLOAD) == (KV, KV)
    monkeypatch.setattr(decoder, "decode_dtype", None)
    monkeypatch.setattr(method_choice, "WORTH_MEASURING", {"cpu": 10**10, "other": 10**12})
    assert choose_methods("auto", decoder, WORKLOAD) == (KV, KV)
    assert choose_methods("auto", ours("transformer_lm").decoder, WORKLOAD) == (KV, KV)


def test_auto_explains_its_choice_once(decoder, free, caplog):
    caplog.set_level(logging.INFO)
    free(10**15)
    for _ in range(3):
        choose_methods("auto", decoder, WORKLOAD)
    free(3 << 20)
    large = Workload(sentences=400, beam=4, source_length=500, target_length=20)
    choose_methods("auto", decoder, large)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("the decoding method auto is kv on this CPU")
    assert second.startswith("the decoding method auto is el on this CPU")
    assert "does not fit" in second


def test_a_choice_that_was_the_user_s_is_not_explained(decoder, caplog):
    caplog.set_level(logging.INFO)
    choose_methods("el", decoder, WORKLOAD)
    assert not caplog.records
