"""A step of a layer in one call, against its modules one after the other, and these in float64."""

import copy
import ctypes

import pytest
import torch
import torch.nn.functional as F
from fairseq.modules.fairseq_dropout import FairseqDropout
from torch import nn

from elseq import native
from elseq.attention.methods import EL, KV
from elseq.models import layer_step
from elseq.models.layer_step import LayerStep
from elseq.models.layers import Activation, DecoderLayer
from elseq.precision import floats, kernels, prepared
from tests.tiny_models import make_dictionary, make_elseq_model, make_sample, make_sources, pad_rows

pytestmark = pytest.mark.usefixtures("kernels_for")
DICTIONARY = make_dictionary(20)
BEAM = 3
ODD = {
    **{
        f"{side}_{name}": size
        for side in ("encoder", "decoder")
        for name, size in (("embed_dim", 36), ("ffn_embed_dim", 50))
    },
    **{f"decoder_{end}_dim": 36 for end in ("input", "output")},
}
MODELS = {
    "norms behind": ("transformer", {}),
    "norms before": ("transformer", {"decoder_normalize_before": True, "encoder_normalize_before": True}),
    "gelu": ("bart", {"activation_fn": "gelu"}),
    "a language model": ("language_model", {"activation_fn": "gelu"}),
    "grouped queries": ("transformer", {"decoder_kv_heads": 2, "cross_kv_heads": 1}),
    "wide heads": ("transformer", {"head_dim": 24}),
    "a window": ("transformer", {"local_attention_radius": 3}),
    "top-k": ("transformer", {"attention_top_k": 3}),
    "odd widths": ("transformer", ODD),
}


@pytest.fixture(autouse=True)
def by_our_kernels(monkeypatch):
    monkeypatch.setattr(floats, "fastest", lambda dtype: floats.Float32Product)


@pytest.fixture
def calls(monkeypatch):
    """The layers that were computed in one call."""
    found, call = [], LayerStep.__call__
    monkeypatch.setattr(LayerStep, "__call__", lambda step, x, state: found.append(step) or call(step, x, state))
    return found


def begin(model, lengths, method=KV, left=True):
    rows = make_sources(DICTIONARY, lengths)
    if hasattr(model, "encoder"):
        net_input = make_sample(DICTIONARY, rows, left)["net_input"]
        return model.decoder.new_state(model.encoder.forward_torchscript(net_input), method)
    state = model.decoder.new_state(None, method)
    model.decoder.read_prompt(pad_rows(rows, DICTIONARY.pad()), state)
    return state


@torch.no_grad()
def decode(model, lengths=(3, 7, 1, 5), method=KV, dtype=None, steps=12):
    """Outputs of some steps, in which hypotheses are reordered and sentences leave."""
    torch.manual_seed(2)
    precision = prepared(model, dtype)
    precision.begin(only_decodes=False)
    try:
        state, sentences, outputs = begin(model, lengths, method), len(lengths), []
        for step in range(steps):
            tokens = torch.randint(4, 24, (sentences * BEAM, 1))
            outputs.append(model.decoder.decode(tokens, state)[0].clone())
            order = torch.randint(BEAM, (sentences, BEAM)) + torch.arange(0, sentences * BEAM, BEAM).unsqueeze(1)
            if step in (4, 7):
                kept = torch.arange(sentences)[1:]
                state.keep(kept)
                order, sentences = order[kept], sentences - 1
            state.reorder(order.flatten())
    finally:
        precision.end()
    return torch.cat(outputs)


@pytest.mark.parametrize(("family", "options"), MODELS.values(), ids=MODELS)
def test_as_the_modules_in_float64(family, options, calls):
    model = make_elseq_model(family, DICTIONARY, "kv", **options)
    expected = decode(copy.deepcopy(model).double())
    assert not calls
    found = decode(model)
    assert len(calls) == 2 * 12
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("family", "options"), MODELS.values(), ids=MODELS)
def test_int8(family, options, calls, monkeypatch):
    """The same, but where the last bit of a norm decides how a number is rounded to int8."""
    model = make_elseq_model(family, DICTIONARY, "kv", **options)
    found = decode(model, dtype="int8")
    assert len(calls) == 2 * 12
    monkeypatch.setattr(layer_step, "_computes", lambda x, state: False)
    expected = decode(model, dtype="int8")
    assert len(calls) == 2 * 12
    error = (found - expected).abs() / expected.abs().max()
    assert error.max() < 0.02 and error.median() < 1e-5


def test_inner_activations_of_many_rows(calls):
    """Some rows after the others."""
    options = {"decoder_ffn_embed_dim": 2**18 + 8, "activation_fn": "gelu"}
    model = make_elseq_model("transformer", DICTIONARY, "kv", **options)
    expected = decode(copy.deepcopy(model).double(), steps=2)
    torch.testing.assert_close(decode(model, steps=2).double(), expected, rtol=1e-4, atol=1e-4)
    assert len(calls) == 2 * 2


def test_a_sentence_has_the_same_output_in_any_batch(calls):
    """In int8 as well: nothing depends on other rows."""
    model = make_elseq_model("transformer", DICTIONARY, "kv")
    for dtype in (None, "int8"):
        outputs = []
        for lengths in ((6, 3, 6, 9), (6,)):
            torch.manual_seed(1)
            precision = prepared(model, dtype)
            precision.begin(only_decodes=False)
            with torch.no_grad():
                state = begin(model, lengths, left=False)
                tokens = torch.arange(4, 8).view(4, 1)
                outputs.append([model.decoder.decode(tokens[: len(lengths)], state)[0][0] for _ in range(3)])
            precision.end()
        assert all(map(torch.equal, *outputs))
        assert len(calls) == 2 * 2 * 3
        calls.clear()


@torch.no_grad()
@pytest.mark.parametrize("name", ["fc2.bias", "encoder_attn.out_proj.bias"])
@pytest.mark.parametrize("number", [torch.inf, 1e25])
def test_a_number_too_large_for_a_norm_is_none(name, number, calls):
    model = make_elseq_model("transformer", DICTIONARY, "kv")
    model.decoder.layers[1].get_parameter(name)[3] = number
    assert decode(model, steps=2).isnan().all()
    assert len(calls) == 2 * 2


def test_no_number_stays_none(calls):
    model = make_elseq_model("transformer", DICTIONARY, "kv")
    with torch.no_grad():
        model.decoder.embed_tokens.weight[5] = torch.nan
    precision = prepared(model)
    precision.begin(only_decodes=False)
    with torch.no_grad():
        output = model.decoder.decode(torch.tensor([[5], [6]]), begin(model, (3, 3)))[0]
    precision.end()
    assert output[0].isnan().all() and output[1].isfinite().all()
    assert len(calls) == 2


class Doubled(nn.LayerNorm):
    def forward(self, x):
        return 2 * super().forward(x)


def drop(model):
    model.decoder.layers[1].dropout_module.apply_during_inference = True


def hook(model):
    model.decoder.layers[0].fc1.register_forward_hook(lambda module, inputs, output: output)


def use_other_norm(model):
    model.decoder.layers[0].final_layer_norm.__class__ = Doubled


def use_tanh(model):
    model.decoder.layers[0].activation_fn = Activation("tanh")


def train_a_dropout(model):
    model.decoder.layers[0].dropout_module.train()


def put_in_place(model):
    fc2 = model.decoder.layers[0].fc2
    fc2.forward = lambda x: F.linear(x, fc2.weight)


def replace_a_dropout(model):
    model.decoder.layers[0].dropout_module = nn.Identity()


def replace_a_method(model):
    model.decoder.layers[1].residual_connection = lambda x, residual: x


class OtherLayer(DecoderLayer):
    """Of a plugin."""


def use_a_subclass(model):
    model.decoder.layers[1].__class__ = OtherLayer


UNKNOWN = [
    drop,
    hook,
    use_other_norm,
    use_tanh,
    train_a_dropout,
    put_in_place,
    replace_a_dropout,
    replace_a_method,
    use_a_subclass,
]


@pytest.mark.parametrize("change", UNKNOWN)
def test_other_layers_are_computed_by_their_modules(change, calls):
    model = make_elseq_model("transformer", DICTIONARY, "kv")
    change(model)
    decode(model, steps=3)
    assert len(calls) == 3  # the other layer


@pytest.mark.parametrize("option", ["scale_attn", "scale_fc", "scale_heads", "scale_resids"])
def test_scaled_layers(option, calls):
    model = make_elseq_model("transformer", DICTIONARY, "kv", **{option: True})
    decode(model, steps=2)
    assert not calls


def test_hidden_states_and_whole_texts(calls):
    model = make_elseq_model("transformer", DICTIONARY, "kv")
    decode(model, steps=2, method=EL)
    decode(model.double(), steps=2)
    with torch.no_grad():
        sample = make_sample(DICTIONARY, make_sources(DICTIONARY, (3, 7)))["net_input"]
        model(**sample, prev_output_tokens=sample["src_tokens"])
    assert not calls


def test_a_hook_for_all_modules(calls):
    model = make_elseq_model("transformer", DICTIONARY, "kv")
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)
    try:
        decode(model, steps=2)
    finally:
        handle.remove()
    assert not calls


def test_dropout_of_fairseq_is_known():
    """By the attribute that this module asks."""
    assert FairseqDropout(0.1).apply_during_inference is False


def test_without_our_products(calls, monkeypatch):
    monkeypatch.setattr(floats, "fastest", lambda dtype: floats.Product)
    decode(make_elseq_model("transformer", DICTIONARY, "kv"), steps=2)
    assert not calls


def test_activations():
    """Their numbers are those of the kernels, where 0 is none."""
    assert kernels.ACTIVATIONS[1:] == ("relu", "gelu")


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("window", [None, 3])
def test_prompts(length, window, calls):
    """One of a single token is read as a step is. A window of a prompt is for the modules."""
    model = make_elseq_model("language_model", DICTIONARY, "kv", local_attention_radius=window)
    expected = decode(copy.deepcopy(model).double(), (length - 1,) * 4)
    found = decode(model, (length - 1,) * 4)
    assert len(calls) == (length == 1) * 2 + (window is None) * 2 * 12
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("hypotheses", [1, 3])
def test_hypotheses_that_are_not_of_the_sentences(hypotheses):
    model = make_elseq_model("transformer", DICTIONARY, "kv")
    precision = prepared(model)
    precision.begin(only_decodes=False)
    state = begin(model, (3, 3))
    for _ in range(2):
        with pytest.raises(ValueError, match="not multiples of"):
            model.decoder.decode(torch.full((hypotheses, 1), 5), state)
        state.keep(torch.arange(0))
    precision.end()


@torch.no_grad()
def test_a_state_that_outlives_its_search(calls):
    """Its layers may have other weights then."""
    model = make_elseq_model("transformer", DICTIONARY, "kv")
    precision = prepared(model)
    precision.begin(only_decodes=False)
    state, token = begin(model, (3, 3)), torch.full((2, 1), 5)
    model.decoder.decode(token, state)
    precision.end()
    other = copy.deepcopy(state)
    model.decoder.layers[0].fc1.weight.mul_(2)
    found, expected = model.decoder.decode(token, state)[0], copy.deepcopy(model).decoder.decode(token, other)[0]
    assert len(calls) == 2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hypotheses", [1, 7, 300])
@pytest.mark.parametrize("dtype", [None, "int8"])
@pytest.mark.parametrize(
    ("family", "options"), [*MODELS.values(), ("transformer", {"decoder_ffn_embed_dim": 2**17})], ids=str
)
def test_bytes_that_it_works_in(family, options, dtype, hypotheses):
    model = make_elseq_model(family, DICTIONARY, "kv", **options)
    layer = model.decoder.layers[0]
    precision = prepared(model, dtype)
    precision.begin(only_decodes=False)
    step = LayerStep.of(layer, begin(model, (3,)).layers[0])
    precision.end()
    size = native.loaded().elseq_layer_step_bytes(ctypes.byref(step._layer), hypotheses)
    output = hypotheses * layer.embed_dim * 4
    assert layer_step.working_bytes(layer, hypotheses, dtype == "int8") == size + output
