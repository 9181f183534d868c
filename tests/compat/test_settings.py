"""Settings in each of the forms in which fairseq keeps them."""

from argparse import Namespace

import pytest
from fairseq.models.transformer import TransformerModel
from omegaconf import OmegaConf

from elseq.compat.settings import json_object, model_class, model_name, values
from elseq.errors import UserError


@pytest.mark.parametrize("settings", [Namespace(a=1), OmegaConf.create({"a": 1}), {"a": 1}])
def test_values(settings):
    assert dict(values(settings)) == {"a": 1}


def test_values_of_a_namespace_are_its_own():
    settings = Namespace(a=1)
    values(settings)["a"] = 2
    assert settings.a == 2


@pytest.mark.parametrize(
    "settings, name, kind",
    [
        (Namespace(arch="transformer_iwslt_de_en"), "transformer_iwslt_de_en", TransformerModel),
        (OmegaConf.create({"_name": "transformer"}), "transformer", TransformerModel),
        (OmegaConf.create({"_name": "transformer", "arch": "bart_large"}), "transformer", TransformerModel),
        (Namespace(arch="nobody_s"), "nobody_s", None),
        (Namespace(), None, None),
    ],
)
def test_model(settings, name, kind):
    assert model_name(settings) == name
    assert model_class(settings) is kind


def test_json_object():
    assert json_object('{"beam": 4}', "--option") == {"beam": 4}
    for text in ("", "beam=4", "{'beam': 4}", "[4]", "null", None, "[" * 100_000):
        with pytest.raises(UserError, match="^--option .* is no JSON object: give one such as '{\"NAME\": VALUE}'$"):
            json_object(text, "--option")
