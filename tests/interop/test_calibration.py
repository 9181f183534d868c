"""Layers that are converted one after the other, in whole models."""

import copy

import pytest
import torch

from elseq.attention import Attention
from elseq.interop.calibration import convert_layers
from elseq.interop.head_sharing import Projections, aligned
from tests.tiny_models import make_dictionary, make_models, make_sources

DICTIONARY = make_dictionary(30)
MODELS = {
    "transformer": ("transformer", {}),
    "pre-norm": ("transformer", {"encoder_normalize_before": True, "decoder_normalize_before": True}),
    "tied": ("transformer", {"share_all_embeddings": True}),
    "scaled": ("transformer", {"scale_attn": True, "scale_heads": True, "scale_resids": True}),
    "bart": ("bart", {}),
    "language model": ("language_model", {}),
    "tied language model": ("language_model", {"share_decoder_input_output_embed": True}),
}
PLACES = ("encoder", "decoder", "cross")


def make(name, dtype=torch.float64, **options):
    family, own = MODELS[name]
    model = make_models(family, DICTIONARY, **own, **options)["kv"].to(dtype)
    return model.requires_grad_(False)


def texts_for(model, number=12):
    lengths = [3 + index % 7 for index in range(number)]
    found = []
    sources, targets = (make_sources(DICTIONARY, lengths, seed=seed) for seed in (1, 2))
    for source, target in zip(sources, targets, strict=True):
        source, target = (torch.tensor([row]) for row in (source, target))
        text = {"src_tokens": source, "src_lengths": torch.tensor([source.numel()])}
        found.append(text | {"prev_output_tokens": target.roll(1, 1)} if hasattr(model, "encoder") else text)
    return found


def outputs(model, texts):
    return torch.cat([model(**text)[0].flatten(0, 1) for text in texts])


@pytest.mark.few_cases(4)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_heads_in_another_order_and_basis_leave_the_model_as_it_is(name, dtype, tolerance):
    model = make(name, dtype)
    texts, before = texts_for(model), copy.deepcopy(model.state_dict())
    expected = outputs(model, texts)
    converted = []

    def convert(name, attention, seen):
        order = torch.tensor([2, 0, 3, 1])
        projections, moments = Projections.of(attention).reordered(order), seen.moments(attention).reordered(order)
        aligned(projections, moments, 2).give_to(attention)
        converted.append(name)

    convert_layers(model, texts, PLACES, convert)
    found = outputs(model, texts)
    assert (found - expected).norm() < tolerance * expected.norm()
    sides = ["decoder"] if "language" in name else ["encoder", "decoder"]
    assert len(converted) == 2 * (1 if len(sides) == 1 else 3)
    after = model.state_dict()
    for each in converted:
        assert isinstance(model.get_submodule(each), Attention)
        assert not torch.allclose(after[f"{each}.q_proj.weight"], before[f"{each}.q_proj.weight"])
    assert all(torch.equal(after[key], before[key]) for key in before if "attn." not in key)


@pytest.mark.few_cases(3)
@pytest.mark.parametrize("name", MODELS)
def test_layers_see_what_the_converted_layers_before_them_compute(name):
    """And what is wanted of an attention that is added to the hidden states leads back to those of the model before."""
    model = make(name)
    texts = texts_for(model)
    original = copy.deepcopy(model)
    wanted_outputs = outputs(original, texts)
    seen_by = {}

    def convert(name, attention, seen):
        seen_by[name] = seen
        attention.out_proj.weight *= 0.9
        calls = []
        handle = attention.register_forward_pre_hook(lambda _, arguments: calls.append(arguments[0]))
        outputs(model, texts)
        handle.remove()
        for call, query in zip(seen.calls, calls, strict=True):
            torch.testing.assert_close(call.arguments[0], query)

    convert_layers(model, texts, PLACES, convert)
    assert not torch.allclose(outputs(model, texts), wanted_outputs)
    if name == "scaled":
        return
    # With all others converted, a last attention that returns what is wanted makes up for them.
    last = list(seen_by)[-1]
    answers = iter(seen_by[last].wanted)
    model.get_submodule(last).forward = lambda *_, **__: (next(answers), None)
    torch.testing.assert_close(outputs(model, texts), wanted_outputs)


def test_only_the_places_that_are_named():
    model = make("transformer")
    names = []
    convert_layers(model, texts_for(model), ["cross"], lambda name, *_: names.append(name))
    assert names == ["decoder.layers.0.encoder_attn", "decoder.layers.1.encoder_attn"]
