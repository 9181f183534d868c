"""Options of both libraries against the libraries themselves."""

import pytest
import torch

from elseq.errors import UserError
from elseq.interop.hugging_face import options
from elseq.interop.hugging_face.families import FAMILIES
from elseq.models.layers import Activation

transformers = pytest.importorskip("transformers")

DEFAULTS = {"width": 8, "inner": None, "rate": 0.1, "tied": True, "eos_token_id": 2, "pad_token_id": None}


@pytest.mark.parametrize("name", options.ACTIVATIONS)
def test_activations(name):
    theirs = transformers.activations.ACT2FN
    if name not in theirs:
        pytest.skip("a name of older versions")
    x = torch.linspace(-4, 4, 101)
    torch.testing.assert_close(Activation(options.activation(name))(x.clone()), theirs[name](x), rtol=0, atol=1e-3)


@pytest.mark.parametrize("ours", options.HUGGING_FACE_ACTIVATIONS)
def test_activations_back(ours):
    theirs = transformers.activations.ACT2FN[options.HUGGING_FACE_ACTIVATIONS[ours]]
    x = torch.linspace(-4, 4, 101)
    torch.testing.assert_close(theirs(x), Activation(ours)(x.clone()), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_complete_as_transformers(name):
    """The other name of an option stands over it, and what is missing has transformers' default."""
    family = FAMILIES[name]
    kind = getattr(transformers, family.model_class).config_class
    given = {option: 24 for option in family.aliases} | {"eos_token_id": 7}
    given |= {original: 12 for original in family.aliases.values()}
    theirs = kind(**given)
    config = options.complete(given, family.defaults, family.aliases)
    for option in family.defaults.keys() - {"bos_token_id", "pad_token_id", "decoder_start_token_id"}:
        assert config[option] == getattr(theirs, option), option


@pytest.mark.parametrize(
    "option, value",
    [
        *(("width", value) for value in (0, -1, 1.0, True, None, "8")),
        *(("inner", value) for value in (0, 1.5, "8")),
        *(("rate", value) for value in (-0.1, 1.1, float("nan"), float("inf"), "0", None)),
        *(("tied", value) for value in (1, None, "true")),
        *(("eos_token_id", value) for value in (None, [2], 2.0)),
        ("pad_token_id", "1"),
    ],
)
def test_values_of_a_wrong_type(option, value):
    with pytest.raises(UserError, match=f"config.json has {option}: .*, where .* is needed"):
        options.complete({option: value}, DEFAULTS, {})


def test_values_of_the_right_type():
    given = {"width": 1, "inner": 4, "rate": 1, "tied": False, "eos_token_id": 0, "pad_token_id": None, "other": []}
    assert options.complete(given, DEFAULTS, {}) == given
    assert options.complete({}, DEFAULTS, {}) == DEFAULTS
    with pytest.raises(UserError, match="has a quantization_config"):
        options.complete({"quantization_config": {"bits": 4}}, DEFAULTS, {})


def test_said_by_its_other_name():
    aliases = {"hidden_size": "width"}
    config = options.complete({"hidden_size": 4}, DEFAULTS, aliases)
    assert options.said({"hidden_size": 4}, config, "width", aliases) == "hidden_size: 4"
    assert options.said({}, config, "width", aliases) == "width: 4"
    with pytest.raises(UserError, match="config.json has hidden_size: 'x', where a whole number above 0 is needed"):
        options.complete({"hidden_size": "x"}, DEFAULTS, aliases)


def test_left_out():
    tensors = {name: torch.zeros(1, dtype=torch.float16) for name in "abcdefg"}
    assert options.what_is_left_out({"dtype": "float16"}, tensors, []) == []
    [unknown, kinds] = options.what_is_left_out({"torch_dtype": "float32"}, tensors, list("abcdef"))
    assert unknown.endswith("are left out: a, b, c, d and 2 more")
    assert kinds == "the weights stay in float16, where config.json has 'float32'"


def test_features():
    options.check_features({"used": False}, {"used": False, "missing": True})
    options.check_features({"per_layer_config": {}}, {})
    for config in ({"used": True}, {"per_layer_config": {"1": {}}}):
        with pytest.raises(UserError, match="which fairseq's model does not have"):
            options.check_features(config, {"used": False})


def test_long_values_are_cut():
    assert len(options.shown("x" * 10_000)) < 70
    with pytest.raises(UserError, match="activation_function: 'x+...x+'; fairseq has gelu, "):
        options.activation("x" * 10_000)
