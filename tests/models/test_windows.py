"""Sources in windows, against fairseq's encoder on one window at a time and attention written out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elseq.errors import UserError, as_option, renamed
from elseq.generation import SequenceGenerator
from elseq.models import windows
from elseq.models.top_k import apply_attention_top_k
from elseq.models.windows import UNLIMITED, SourceWindows, chosen_windows
from tests.tiny_models import assert_same_hypotheses, make_dictionary, make_models, make_sample, make_sources, pad_rows

DICTIONARY = make_dictionary(30)
POSITIONS = 12
LENGTHS = [40, 5, 23, 11, 12]  # without the end symbol: the third to last have one and two windows of 12


def window_of(token, starts, length):
    """The first of the windows in which the token has the most context on its shorter side."""
    return max(
        (start for start in starts if start <= token < start + length),
        key=lambda start: (min(token - start, start + length - 1 - token), -start),
    )


def starts_of(tokens, length, overlap):
    starts = [0]
    while starts[-1] + length < tokens:
        starts.append(min(starts[-1] + length - overlap, tokens - length))
    return starts


@given(st.integers(1, 60), st.integers(1, 14), st.data())
def test_every_token_has_the_window_with_the_most_context(tokens, length, data):
    overlap = data.draw(st.integers(0, length - 1))
    cut = SourceWindows(length, overlap).cut([tokens])
    starts = starts_of(tokens, length, overlap)
    assert [window.start for window in cut] == starts
    assert [window.stop for window in cut] == [min(start + length, tokens) for start in starts]
    used = [(token, window.start) for window in cut for token in range(window.first, window.end)]
    assert used == [(token, window_of(token, starts, length)) for token in range(tokens)]


def models_in_windows(family="transformer", length=POSITIONS, overlap=5, trained=None):
    models = make_models(family, DICTIONARY, positions=POSITIONS)
    for model in models.values():
        model.double()
    if family == "bart":  # fairseq's GELU is float32
        models["stock"] = make_models(family, DICTIONARY, positions=POSITIONS)["kv"].double()
    for method in ("kv", "el"):
        models[method].encoder.source_windows = SourceWindows(length, overlap, trained)
    return models


def encoded_one_by_one(encoder, row, length, overlap, layer=None):
    """The states of a source, [tokens, width], by fairseq's encoder: of its end, or of a layer."""
    starts, states = starts_of(len(row), length, overlap), {}
    for start in starts:
        encoded = encoder(torch.tensor([row[start : start + length]]), return_all_hiddens=layer is not None)
        [states[start]] = (encoded["encoder_out"][0] if layer is None else encoded["encoder_states"][layer]).unbind(1)
    found = []
    for token in range(len(row)):
        start = window_of(token, starts, length)
        found.append(states[start][token - start])
    return torch.stack(found)


@pytest.mark.few_cases(12)
@pytest.mark.parametrize("family", ["transformer", "bart"])
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("length, overlap", [(12, 5), (12, 0), (7, 6), (1, 0)])
@pytest.mark.parametrize("most", [1, 30, 4096])
@torch.no_grad()
def test_states_are_those_of_windows_encoded_alone(family, left, length, overlap, most, monkeypatch):
    monkeypatch.setitem(windows.MOST_TOKENS, "cpu", most)
    models = models_in_windows(family, length, overlap)
    rows = make_sources(DICTIONARY, LENGTHS)
    tokens = pad_rows(rows, DICTIONARY.pad(), left)
    found = models["kv"].encoder(tokens)
    assert torch.equal(found["encoder_padding_mask"][0], tokens.eq(DICTIONARY.pad()))
    assert found["src_lengths"][0].flatten().tolist() == [len(row) for row in rows]
    for number, row in enumerate(rows):
        expected = encoded_one_by_one(models["stock"].encoder, row, length, overlap)
        states = found["encoder_out"][0][tokens[number].ne(DICTIONARY.pad()), number]
        torch.testing.assert_close(states, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["transformer", "bart"])
@torch.no_grad()
def test_states_of_all_layers_are_joined(family):
    models = models_in_windows(family)
    rows = make_sources(DICTIONARY, LENGTHS)
    tokens = pad_rows(rows, DICTIONARY.pad(), left=True)
    found = models["kv"].encoder(tokens, return_all_hiddens=True)["encoder_states"]
    stock = models["stock"].encoder
    assert len(found) == len(stock.layers) + 1  # and the embeddings
    for number, row in enumerate(rows):
        for layer, states in enumerate(found):
            expected = encoded_one_by_one(stock, row, POSITIONS, 5, layer)
            torch.testing.assert_close(
                states[tokens[number].ne(DICTIONARY.pad()), number], expected, rtol=0, atol=1e-12
            )


def test_training_joins_no_states_of_layers():
    """Which nobody reads."""
    model = models_in_windows()["kv"]
    rows = make_sources(DICTIONARY, LENGTHS)
    source, target = (
        pad_rows(rows, DICTIONARY.pad(), left=True),
        torch.tensor(make_sources(DICTIONARY, [4] * len(rows))),
    )
    outputs = []
    model.encoder.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    for options in ({}, {"return_all_hiddens": True}):
        model(source, None, target, **options)
    assert [len(output["encoder_states"]) for output in outputs] == [0, len(model.encoder.layers) + 1]


@torch.no_grad()
def test_a_source_of_one_window_is_encoded_as_ever():
    models = models_in_windows()
    tokens = pad_rows(make_sources(DICTIONARY, [11, 4, 9]), DICTIONARY.pad(), left=True)
    found = models["kv"].encoder(tokens)
    models["kv"].encoder.source_windows = None
    expected = models["kv"].encoder(tokens)
    assert found.keys() == expected.keys()
    assert torch.equal(found["encoder_out"][0], expected["encoder_out"][0])


@torch.no_grad()
def test_the_order_of_sources_does_not_matter():
    encoder = models_in_windows()["el"].encoder
    rows = make_sources(DICTIONARY, LENGTHS)
    order = [3, 0, 4, 2, 1]
    states = encoder(pad_rows(rows, DICTIONARY.pad()))["encoder_out"][0]
    permuted = encoder(pad_rows([rows[number] for number in order], DICTIONARY.pad()))["encoder_out"][0]
    torch.testing.assert_close(permuted, states[:, order], rtol=0, atol=1e-12)


def attention_written_out(attention, query, memory, top_k):
    """Of positions [T, D] to states [S, D], head by head."""
    outputs = []
    width = attention.head_dim
    for head in range(attention.num_heads):
        part = slice(head * width, (head + 1) * width)
        q, k, v = (
            x @ projection.weight[part].t() + projection.bias[part]
            for x, projection in ((query, attention.q_proj), (memory, attention.k_proj), (memory, attention.v_proj))
        )
        scores = q @ k.t() / math.sqrt(width)
        if top_k is not None and top_k < scores.size(1):
            least = scores.sort(dim=1, descending=True).values[:, top_k - 1 : top_k]
            scores = scores.masked_fill(scores < least, -math.inf)
        outputs.append(scores.softmax(dim=1) @ v)
    return attention.out_proj(torch.cat(outputs, dim=1))


def decoded_written_out(decoder, target, memory, top_k):
    """Logits of a target [T], by the parameters of a decoder whose layers normalize afterwards: [T, V]."""
    position = decoder.embed_positions.weight[DICTIONARY.pad() + 1 :][: len(target)]
    x = decoder.embed_scale * decoder.embed_tokens(target) + position
    if decoder.layernorm_embedding is not None:
        x = decoder.layernorm_embedding(x)
    for layer in decoder.layers:
        own = torch.stack(
            [attention_written_out(layer.self_attn, x[t : t + 1], x[: t + 1], None)[0] for t in range(len(x))]
        )
        x = layer.self_attn_layer_norm(x + own)
        x = layer.encoder_attn_layer_norm(x + attention_written_out(layer.encoder_attn, x, memory, top_k))
        x = layer.final_layer_norm(x + layer.fc2(layer.activation_fn(layer.fc1(x))))
    return decoder.output_projection(x)


@pytest.mark.few_cases(8)
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize("family", ["transformer", "bart"])
@pytest.mark.parametrize("top_k", [None, 1, 3, 12, 40, 41])
@torch.no_grad()
def test_decoding_attends_to_all_windows(method, family, top_k):
    from elseq.attention import METHODS

    models = models_in_windows(family)
    model = models[method]
    apply_attention_top_k(model, top_k, ("cross",))
    rows = make_sources(DICTIONARY, LENGTHS)
    beam = 2
    target = torch.tensor(make_sources(DICTIONARY, [6] * len(rows) * beam, seed=2))
    state = model.decoder.new_state(model.encoder(pad_rows(rows, DICTIONARY.pad(), left=True)), METHODS[method])
    found = torch.cat([model.decoder.decode(target[:, t : t + 1], state)[0] for t in range(target.size(1))], dim=1)
    for number, row in enumerate(rows):
        memory = encoded_one_by_one(models["stock"].encoder, row, POSITIONS, 5)
        for hypothesis in range(beam * number, beam * (number + 1)):
            expected = decoded_written_out(model.decoder, target[hypothesis], memory, top_k)
            torch.testing.assert_close(found[hypothesis], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("top_k", [None, 4])
def test_a_search(top_k):
    """kv, el and fairseq's generator find the same hypotheses, and attention over all of the source."""
    models = models_in_windows()
    for method in ("kv", "el"):
        apply_attention_top_k(models[method], top_k, ("cross",))
    rows = make_sources(DICTIONARY, LENGTHS)
    options = {"beam_size": 3, "max_len_b": 9, "print_alignment": "hard"}
    found = {}
    for method in ("kv", "el"):
        search = SequenceGenerator([models[method]], DICTIONARY, **options)
        found[method] = search.generate([models[method]], make_sample(DICTIONARY, rows))
    assert_same_hypotheses(found["kv"], found["el"], tolerance=1e-10)
    alone = [
        SequenceGenerator([models["el"]], DICTIONARY, **options).generate(
            [models["el"]], make_sample(DICTIONARY, [row])
        )[0]
        for row in rows
    ]
    assert_same_hypotheses(found["kv"], alone, tolerance=1e-10)
    for hypotheses, other in zip(found["el"], alone, strict=True):
        for hypothesis, single in zip(hypotheses, other, strict=True):
            attention = hypothesis["attention"][-single["attention"].size(0) :]  # padding is on the left
            torch.testing.assert_close(attention, single["attention"], rtol=0, atol=1e-10)


# --- training


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: None if each.grad is None else each.grad.clone() for name, each in model.named_parameters()}


@pytest.mark.parametrize("top_k", [None, 5])
def test_gradients_flow_through_all_windows(top_k):
    models = models_in_windows()
    model = models["kv"].train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) or hasattr(module, "p"):
            module.p = 0.0
    apply_attention_top_k(model, top_k, ("cross",))
    rows = make_sources(DICTIONARY, LENGTHS)
    target = torch.tensor(make_sources(DICTIONARY, [4] * len(rows), seed=2))
    logits, _ = model(pad_rows(rows, DICTIONARY.pad(), left=True), None, target)
    found = gradients(model, logits.square().sum())
    model.encoder.source_windows = None
    by_hand = [
        decoded_written_out(model.decoder, words, encoded_one_by_one(model.encoder, row, POSITIONS, 5), top_k)
        for row, words in zip(rows, target, strict=True)
    ]
    expected = gradients(model, torch.stack(by_hand).square().sum())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-10, msg=name)


def test_gradients_flow_through_some_random_windows():
    models = models_in_windows(trained=1)
    encoder = models["kv"].encoder
    rows = make_sources(DICTIONARY, [40, 30, 5])
    tokens = pad_rows(rows, DICTIONARY.pad())
    drawn = set()
    for seed in range(20):
        torch.manual_seed(seed)
        states = encoder(tokens)["encoder_out"][0]
        with torch.no_grad():
            torch.testing.assert_close(states, encoder(tokens)["encoder_out"][0], rtol=0, atol=1e-12)
        reached = []
        for number in range(len(rows)):
            embedded = torch.autograd.grad(
                states[:, number].square().sum(), encoder.embed_positions.weight, retain_graph=True
            )[0]
            reached.append(bool(embedded.any()))
        assert all(reached)  # one window of each source at least
        own = encoder.embed_tokens.weight
        [through] = torch.autograd.grad(states.square().sum(), own)
        words = {word for word in range(len(DICTIONARY)) if through[word].any()}
        drawn.add(frozenset(words))
        assert words <= {word for row in rows for word in row}
    assert len(drawn) > 5  # other windows at each step


def test_random_windows_are_those_of_the_seed_and_the_source():
    """Whatever else is in the batch."""
    encoder = models_in_windows(trained=1)["kv"].encoder
    rows = make_sources(DICTIONARY, [40, 30, 23])

    def reached(batch, number):
        states = encoder(pad_rows(batch, DICTIONARY.pad(), left=True))["encoder_out"][0]
        [through] = torch.autograd.grad(states[:, number].square().sum(), encoder.embed_tokens.weight)
        return through

    for seed in range(5):
        torch.manual_seed(seed)
        together = [reached(rows, number) for number in range(len(rows))]
        torch.rand(seed)
        alone = [reached([row], 0) for row in rows]
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_without_gradients_all_windows_are_alike():
    encoder = models_in_windows(trained=1)["kv"].encoder
    with torch.no_grad():
        assert not encoder(pad_rows(make_sources(DICTIONARY, [40]), DICTIONARY.pad()))["encoder_out"][0].requires_grad


# --- options


def test_positions():
    model = models_in_windows()["kv"]
    assert model.max_positions() == (UNLIMITED, POSITIONS)
    model.encoder.source_windows = None
    assert model.max_positions() == (POSITIONS, POSITIONS)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, None),
        ({"source_window": 0}, None),
        ({"long_input": True}, SourceWindows(100, 50)),
        ({"long_input": True, "source_window": 40}, SourceWindows(40, 20)),
        ({"source_window": 9, "source_window_overlap": 0}, SourceWindows(9, 0)),
        ({"source_window": 9, "train_windows": 2}, SourceWindows(9, 4, 2)),
    ],
)
def test_windows_that_are_asked_for(options, expected):
    assert chosen_windows(100, **options) == expected


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"source_window": 101}, "^source_window 101 is more than the encoder's 100 positions: give these or fewer$"),
        ({"source_window": -3}, "^source_window -3 is not possible: give 1 or more, or 0 for none$"),
        (
            {"source_window": 10, "source_window_overlap": 10},
            "^source_window_overlap 10 does not go with windows of 10 tokens: give 0 to 9$",
        ),
        ({"source_window": 10, "source_window_overlap": -1}, "^source_window_overlap -1 does not go with"),
        ({"source_window_overlap": 4}, "^source_window_overlap 4 is for sources in windows: also give source_window"),
        ({"train_windows": 4}, "^train_windows 4 is for sources in windows"),
        ({"source_window": 10, "train_windows": 0}, "^train_windows 0 is not possible: give 1 or more$"),
        ({"source_window": 0, "long_input": True}, "^source_window 0 does not go with long_input: leave out one$"),
    ],
)
def test_windows_that_cannot_be(options, sentence):
    with pytest.raises(UserError, match=sentence):
        chosen_windows(100, **options)


@pytest.mark.parametrize("options", [{"train_windows": 4}, {"source_window": 0, "long_input": True}])
def test_all_names_are_those_of_the_user(options):
    with pytest.raises(UserError, match="--long-input") as refused, renamed(as_option):
        chosen_windows(100, **options)
    assert "_" not in str(refused.value)
