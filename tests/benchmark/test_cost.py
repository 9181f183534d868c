"""Formulae by hand, and the sizes of a model that they are fed."""

from dataclasses import replace

import pytest

from elseq.attention import methods
from elseq.benchmark.cost import Batch, Decoding, Sizes, bytes_read, item_sizes, operations, step_cost
from elseq.benchmark.models import load, random_model

ENCODER_DECODER = Sizes(
    encoder=100,
    decoder=60,
    cross_key_value=16,
    output=30,
    encoder_layers=1,
    encoder_width=4,
    decoder_layers=2,
    decoder_width=4,
    memory_width=4,
    key_widths=(4, 4),
    cross_key_widths=(4, 4),
    heads=2,
    head_dim=2,
)
LANGUAGE_MODEL = Sizes(
    encoder=0,
    decoder=60,
    cross_key_value=0,
    output=30,
    encoder_layers=0,
    encoder_width=0,
    decoder_layers=2,
    decoder_width=4,
    memory_width=0,
    key_widths=(4, 4),
    cross_key_widths=(),
    heads=2,
    head_dim=2,
)
KV, COPIED, EL = Decoding(), Decoding(copied=True), Decoding(methods.EL, methods.EL)


# Of one sentence, beam 2, 3 steps, 5 source positions: encoder, its attention, keys and values of the source, weights
# of the steps, self-attention (1 + 2 + 3 positions), cross-attention (3 x 5 positions).
@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (KV, 1000 + 400 + 160 + 2 * 3 * 2 * 74 + 2 * 2 * 6 * 16 + 2 * 2 * 15 * 16),
        (COPIED, 1000 + 400 + 320 + 2 * 3 * 2 * 74 + 2 * 2 * 6 * 16 + 2 * 2 * 15 * 16),
        (EL, 1000 + 400 + 0 + 2 * 3 * 2 * 90 + 2 * 2 * 6 * 32 + 2 * 2 * 15 * 32),
    ],
)
def test_operations(method, expected):
    assert operations(ENCODER_DECODER, Batch(2, (3,), source_length=5), method) == expected


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (KV, 100 + 3 * 74 + 16 + 2 * 2 * 6 * 8 + 2 * 15 * 8),
        (COPIED, 100 + 3 * 74 + 16 + 2 * 2 * 6 * 8 + 2 * 2 * 15 * 8),
        (EL, 100 + 3 * 90 + 0 + 2 * 2 * 6 * 4 + 2 * 15 * 4),
    ],
)
def test_bytes(method, expected):
    assert bytes_read(ENCODER_DECODER, Batch(2, (3,), source_length=5), method, 4) == 4 * expected


def test_bytes_of_weights_in_int8():
    weights, state = 100 + 3 * 74 + 16, 2 * 2 * 6 * 8 + 2 * 15 * 8
    assert bytes_read(ENCODER_DECODER, Batch(2, (3,), source_length=5), KV, 4, 1) == weights + 4 * state
    assert (item_sizes("int8"), item_sizes("bfloat16")) == ((4, 1), (2, 2))


def test_language_model():
    """4 prompt positions: read in one pass and shared, or word by word for each hypothesis."""
    batch = Batch(2, (3,), prompt_length=4)
    steps = 2 * 3 * 2 * 90 + 2 * 2 * (3 * 4 + 6) * 16
    assert operations(LANGUAGE_MODEL, batch, KV) == 4 * 2 * 60 + 2 * 10 * 16 + steps
    assert operations(LANGUAGE_MODEL, batch, COPIED) == 2 * (4 * 2 * 90 + 2 * 10 * 16) + steps
    own = 2 * 2 * 6 * 8
    assert bytes_read(LANGUAGE_MODEL, batch, KV, 2) == 2 * (4 * 90 + own + 2 * 3 * 4 * 8)
    assert bytes_read(LANGUAGE_MODEL, batch, COPIED, 2) == 2 * (7 * 90 + own + 2 * 2 * 3 * 4 * 8 + 2 * 2 * 10 * 8)


def test_layers_with_numbers_of_heads_of_their_own():
    """Key/value heads of all layers together decide what is read; the operations do not depend on them."""
    batch = Batch(2, (3,), source_length=5)
    sizes = replace(ENCODER_DECODER, key_widths=(4, 2), cross_key_widths=(2, 2))
    assert operations(sizes, batch, KV) == operations(ENCODER_DECODER, batch, KV)
    assert bytes_read(sizes, batch, KV, 4) == 4 * (100 + 3 * 74 + 16 + 2 * 6 * (8 + 4) + 15 * (4 + 4))
    assert bytes_read(sizes, batch, EL, 4) == bytes_read(ENCODER_DECODER, batch, EL, 4)


def test_sentences_add_up():
    one, other = (Batch(2, (steps,), source_length=5) for steps in (3, 7))
    both = Batch(2, (3, 7), source_length=5)
    assert operations(ENCODER_DECODER, both, EL) == sum(operations(ENCODER_DECODER, part, EL) for part in (one, other))


# The third step of two sentences, beam 2: the weights once for the bytes and for each hypothesis for the operations, 3
# positions of each hypothesis, 5 of each source, and 2 x 2 x 10 logits, written and read.
@pytest.mark.parametrize(
    ("method", "weights", "self_pair", "kept", "copies"),
    [(KV, 74, 16, 8, 1), (COPIED, 74, 16, 8, 2), (EL, 90, 32, 4, 1)],
)
def test_a_step(method, weights, self_pair, kept, copies):
    numbers = 2 * 2 * 2 * 3 * kept + 2 * 2 * copies * 5 * kept + 2 * 2 * 2 * 10
    done = 2 * 2 * (2 * weights + 2 * (3 + 5) * self_pair)
    batch = Batch(2, (3, 3), source_length=5)
    assert step_cost(ENCODER_DECODER, batch, method, 10, 4) == (4 * (weights + numbers), done)
    assert step_cost(ENCODER_DECODER, batch, method, 10, 4, 1).bytes == weights + 4 * numbers


def test_a_step_after_a_prompt():
    """The prompt of 4 positions is read once a sentence, by all of its hypotheses."""
    found = step_cost(LANGUAGE_MODEL, Batch(2, (1,), prompt_length=4), KV, 10, 2)
    assert found.bytes == 2 * (90 + 2 * 2 * 1 * 8 + 2 * 4 * 8 + 2 * 2 * 10)
    assert found.operations == 2 * (2 * 90 + 2 * (4 + 1) * 16)


def test_sizes_of_a_model(tmp_path):
    sizes = {"layers": 2, "embed-dim": 32, "ffn-embed-dim": 64, "attention-heads": 4}
    options = [f"--{side}-{name}={value}" for side in ("encoder", "decoder") for name, value in sizes.items()]
    model_file = random_model("bart_base", 50, options, tmp_path)
    expected = Sizes(
        encoder=2 * (4 * 32 * 32 + 2 * 32 * 64),
        decoder=2 * (8 * 32 * 32 + 2 * 32 * 64),
        cross_key_value=2 * 2 * 32 * 32,
        output=50 * 32,
        encoder_layers=2,
        encoder_width=32,
        decoder_layers=2,
        decoder_width=32,
        memory_width=32,
        key_widths=(32, 32),
        cross_key_widths=(32, 32),
        heads=4,
        head_dim=8,
    )
    for mode in ("stock", "kv"):
        model, _ = load(model_file, mode)
        assert Sizes.of(model) == expected
