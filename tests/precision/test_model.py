"""Models under a precision: what a search finds, and what is left for others to read."""

import copy

import pytest
import torch

from elseq.errors import UserError
from elseq.generation import SequenceGenerator
from elseq.precision import packed, prepared, restore
from elseq.precision.model import PreparedModel
from tests.tiny_models import FAMILIES, assert_same_hypotheses, make_dictionary, make_models, make_sample, make_sources

DICTIONARY = make_dictionary(60)
ENCODER_DECODERS = [family for family in FAMILIES if family != "language_model"]


def search(model, family, beam=3):
    generator = SequenceGenerator([model], DICTIONARY, beam_size=beam, max_len_b=12)
    rows = make_sources(DICTIONARY, [5, 9, 3, 7])
    if family == "language_model":
        prompts = torch.tensor([row[:3] for row in rows])
        sample = {"net_input": {"src_tokens": prompts, "src_lengths": torch.full((4,), 3)}}
        return generator.generate(None, sample, prompt_tokens=prompts)
    return generator.generate(None, make_sample(DICTIONARY, rows))


@pytest.fixture
def always_packed(monkeypatch):
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no packed products")
    monkeypatch.setattr(packed, "pays", lambda dtype: True)


@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_weights_find_what_the_stock_generator_finds(family, method, always_packed):
    models = make_models(family, DICTIONARY)
    expected = search(models["stock"], family)
    assert_same_hypotheses(search(models[method], family), expected)
    assert any(layer.product is not None for layer in models[method].__dict__["prepared"]._layers)


@pytest.mark.parametrize("dtype", [None, "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_after_a_search_the_model_is_what_it_was(family, dtype, always_packed):
    model = make_models(family, DICTIONARY)["kv"]
    before = copy.deepcopy(model.state_dict())
    model.decoder.decode_dtype = dtype
    search(model, family)
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(before[name].equal(after[name]) for name in before)
    tokens = torch.tensor([[2, 8, 9]])
    arguments = (tokens,) if family == "language_model" else (tokens, torch.tensor([3]), tokens)
    other = make_models(family, DICTIONARY)["kv"]
    assert model(*arguments)[0].equal(other(*arguments)[0])


@pytest.mark.parametrize("method", ["kv", "el"])
def test_a_model_that_only_decodes_holds_no_weight_twice(method, always_packed):
    models = make_models("bart", DICTIONARY)
    model = models[method]
    expected = search(models["stock"], "bart")
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.make_generation_fast_()
    for _ in range(2):
        assert_same_hypotheses(search(model, "bart"), expected)
    layer = model.decoder.layers[0]
    assert layer.fc1.weight.isnan().all()
    assert layer.encoder_attn.k_proj.weight.isnan().any() == (method == "kv")  # el multiplies by it in another order
    assert not model.encoder.embed_tokens.weight.isnan().any()
    assert all(weights[name].equal(weight) for name, weight in model.state_dict().items())
    assert_same_hypotheses(search(model, "bart"), expected)


def test_scoring_between_searches(always_packed):
    models = make_models("transformer", DICTIONARY)
    model = models["kv"]
    model.make_generation_fast_()
    found = search(model, "transformer")
    tokens = torch.tensor([[8, 9, 2]])
    scores = model(tokens, torch.tensor([3]), tokens)[0]
    torch.testing.assert_close(scores, models["stock"](tokens, torch.tensor([3]), tokens)[0])
    assert_same_hypotheses(search(model, "transformer"), found)


def test_a_training_between_searches(always_packed):
    """As with --eval-bleu: the next search decodes with the new weights."""
    models = make_models("transformer", DICTIONARY)
    model, stock = models["kv"], models["stock"]
    search(model, "transformer")
    for each in (model, stock):
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in each.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    assert_same_hypotheses(search(model, "transformer"), search(stock, "transformer"))


def test_int8_gets_its_originals_from_whoever_has_them():
    model = make_models("bart", DICTIONARY)["kv"]
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    fresh = copy.deepcopy(dict(model.named_parameters()))
    model.decoder.decode_dtype = "int8"
    model.make_generation_fast_()
    found = search(model, "bart")
    with pytest.raises(UserError, match="load the checkpoint again"):
        restore(model)
    prepared(model, "int8").fresh_parameters = lambda: fresh
    assert all(weights[name].equal(weight) for name, weight in model.state_dict().items())
    assert_same_hypotheses(search(model, "bart"), found)


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_is_near(family):
    models = make_models(family, DICTIONARY)
    tokens = torch.tensor([[2, 8, 9, 15, 20]])
    arguments = (tokens,) if family == "language_model" else (tokens, torch.tensor([5]), tokens)
    model = models["kv"]
    with torch.no_grad():
        expected = model(*arguments)[0]
        precision = PreparedModel(model, "int8")
        precision.begin()
        found = model(*arguments)[0]
        precision.end()
    assert not found.equal(expected)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_int8_does_not_depend_on_the_batch():
    model = make_models("transformer", DICTIONARY)["kv"]
    model.decoder.decode_dtype = "int8"
    generator = SequenceGenerator([model], DICTIONARY, beam_size=3, max_len_b=12)
    rows = make_sources(DICTIONARY, [6] * 5)
    together = generator.generate(None, make_sample(DICTIONARY, rows))
    alone = [generator.generate(None, make_sample(DICTIONARY, [row]))[0] for row in rows]
    assert_same_hypotheses(together, alone)


def test_nan_is_explained_from_the_original_weights(always_packed):
    model = make_models("bart", DICTIONARY)["kv"]
    model.make_generation_fast_()
    with torch.no_grad():
        model.decoder.layers[1].fc2.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="decoder.layers.1.fc2.weight"):
        search(model, "bart")


@pytest.mark.parametrize("shared", [True, False])
def test_an_embedding_and_the_output_projection_share_an_int8_table(shared):
    options = {"share_all_embeddings": shared, "share_decoder_input_output_embed": True}
    model = make_models("bart", DICTIONARY, **options)["kv"]
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    fresh = copy.deepcopy(dict(model.named_parameters()))
    model.decoder.decode_dtype = "int8"
    kept = search(model, "bart")
    model.make_generation_fast_()
    prepared(model, "int8").fresh_parameters = lambda: fresh
    assert_same_hypotheses(search(model, "bart"), kept)
    assert model.decoder.embed_tokens.weight.isnan().all()
    assert model.encoder.embed_tokens.weight.isnan().all() == shared
    tokens = torch.tensor([[8, 9, 2]])
    other = make_models("bart", DICTIONARY, **options)["stock"]
    arguments = tokens, torch.tensor([3]), tokens
    torch.testing.assert_close(model(*arguments)[0], other(*arguments)[0])
    search(model, "bart")
    assert all(weights[name].equal(weight) for name, weight in model.state_dict().items())
