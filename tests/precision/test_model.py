"""Models under a precision: what a search finds, and what is left for others to read."""

import copy
import pickle
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from threading import Barrier, Event

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from elseq.errors import UserError
from elseq.generation import SequenceGenerator
from elseq.precision import model as precision_model
from elseq.precision import prepared, restore
from elseq.precision.floats import Float32Product
from elseq.precision.linear import DecodingEmbedding, DecodingLinear
from elseq.precision.model import PreparedModel
from elseq.precision.onednn import OneDNNProduct
from tests.precision.products import choose
from tests.tiny_models import (
    FAMILIES,
    assert_same_hypotheses,
    make_dictionary,
    make_elseq_model,
    make_models,
    make_sample,
    make_sources,
)

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


@pytest.fixture(params=[OneDNNProduct, Float32Product], ids=["oneDNN", "kernels"])
def always_packed(request, monkeypatch):
    choose(monkeypatch, request.param)
    return request.param


@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_weights_find_what_the_stock_generator_finds(family, method, always_packed):
    models = make_models(family, DICTIONARY)
    expected = search(models["stock"], family)
    assert_same_hypotheses(search(models[method], family), expected)


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
    assert layer.fc1._parameters["weight"].isnan().all()
    assert layer.encoder_attn.k_proj._parameters["weight"].isnan().any() == (
        method == "kv"
    )  # el multiplies by it in another order
    assert not model.encoder.embed_tokens._parameters["weight"].isnan().any()
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


@pytest.mark.parametrize("dtype", [None, "int8"])
@pytest.mark.parametrize("change", [lambda weight: weight, lambda weight: weight.data], ids=["parameter", "data"])
def test_a_training_between_searches(dtype, change, always_packed):
    """As with --eval-bleu: the next search decodes with the new weights. Optimizers of fairseq change `data`, which
    leaves the version of a parameter as it was."""
    model, other = (make_models("transformer", DICTIONARY)["kv"] for _ in range(2))
    for each in (model, other):
        each.decoder.decode_dtype = dtype
    search(model, "transformer")
    for each in (model, other):
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in each.parameters():
                change(parameter).add_(0.05 * torch.randn(parameter.shape))
    assert_same_hypotheses(search(model, "transformer"), search(other, "transformer"))
    assert not any(isinstance(module, DecodingLinear | DecodingEmbedding) for module in model.modules())


def released(dtype, family="bart", **options):
    """A model that has decoded and lost its weights, what it found, and one that never decoded."""
    model = make_models(family, DICTIONARY, **options)["kv"]
    model.decoder.decode_dtype = dtype
    fresh = copy.deepcopy(dict(model.named_parameters()))
    prepared(model, dtype).fresh_parameters = lambda: fresh
    model.make_generation_fast_()
    found = search(model, family)
    assert model.decoder.layers[0].fc1._parameters["weight"].isnan().all()
    return model, found, make_models(family, DICTIONARY, **options)["kv"]


COPIES = {
    "deepcopy": copy.deepcopy,
    "double": lambda model: model.double(),
    "double and back": lambda model: model.double().float(),
}


@pytest.mark.few_cases(4)
@pytest.mark.parametrize("dtype", [None, "int8"])
@pytest.mark.parametrize("copied", COPIES)
def test_copies_of_a_model_that_lost_its_weights(copied, dtype, always_packed):
    model, found, fresh = released(dtype, share_decoder_input_output_embed=True)
    other = COPIES[copied](model)
    assert all(
        weight.to(fresh.state_dict()[name]).equal(fresh.state_dict()[name])
        for name, weight in other.state_dict().items()
    )
    if copied == "double" and dtype == "int8":
        with pytest.raises(UserError, match="int8 is for a model in float32 on a CPU"):
            search(other, "bart")
        return
    assert_same_hypotheses(search(other, "bart"), found)
    assert_same_hypotheses(search(model, "bart"), found)


@pytest.mark.parametrize("dtype", [None, "int8"])
def test_models_that_share_modules(dtype, always_packed):
    """An ensemble of decoders with one encoder, and with one feed-forward layer."""
    found = []
    for shared in (False, True):
        models = [make_models("transformer", DICTIONARY, seed=seed)["kv"] for seed in (1, 2)]
        models[1].encoder = models[0].encoder if shared else copy.deepcopy(models[0].encoder)
        layer = models[0].decoder.layers[0].fc1
        models[1].decoder.layers[1].fc1 = layer if shared else copy.deepcopy(layer)
        for model in models:
            model.decoder.decode_dtype = dtype
            model.make_generation_fast_()
        generator = SequenceGenerator(models, DICTIONARY, beam_size=3, max_len_b=12)
        sample = make_sample(DICTIONARY, make_sources(DICTIONARY, [5, 9, 3, 7]))
        found += [generator.generate(None, sample) for _ in range(2)]
    for each in found[1:]:
        assert_same_hypotheses(each, found[0])


@pytest.mark.parametrize("dtype", [None, "int8"])
def test_a_weight_that_two_layers_share(dtype, always_packed):
    found = []
    for shared in (False, True):
        model = make_models("transformer", DICTIONARY)["kv"]
        first, second = (layer.fc1 for layer in model.decoder.layers)
        second.weight = first.weight if shared else torch.nn.Parameter(first.weight.detach().clone())
        model.decoder.decode_dtype = dtype
        model.make_generation_fast_()
        found += [search(model, "transformer") for _ in range(2)]
    for each in found[1:]:
        assert_same_hypotheses(each, found[0])


def test_methods_in_turn_ask_for_the_originals_once():
    """As --decode-attention auto may: el multiplies by weights that kv has quantized."""
    model, found, _ = released("int8")
    fresh, calls = prepared(model, "int8").fresh_parameters, []
    prepared(model, "int8").fresh_parameters = lambda: calls.append(1) or fresh()
    for method in ("el", "kv", "el", "kv"):
        model.decoder.decode_attention = method
        search(model, "bart")
    assert len(calls) == 1
    assert_same_hypotheses(search(model, "bart"), found)


@pytest.mark.parametrize("family", FAMILIES)
def test_methods_in_turn_where_nobody_has_the_originals(family):
    """As fairseq-generate does. A prompt is read by weights that el multiplies by in another order, too."""
    model = make_models(family, DICTIONARY)["kv"]
    model.decoder.decode_dtype = "int8"
    found = search(model, family)
    model.make_generation_fast_()
    for method in ("el", "kv", "el", "kv"):
        model.decoder.decode_attention = method
        last = search(model, family)
    assert_same_hypotheses(last, found)
    assert model.decoder.layers[0].fc1._parameters["weight"].isnan().all()


def test_a_table_that_is_an_embedding_as_well_is_packed_and_kept(always_packed, monkeypatch):
    """Where its rows cannot be read from the packed weight."""
    monkeypatch.setattr(always_packed, "embeds", lambda self, weight: False)
    model = make_models("bart", DICTIONARY, share_decoder_input_output_embed=True)["kv"]
    model.make_generation_fast_()
    search(model, "bart")
    assert isinstance(model.decoder.output_projection, DecodingLinear)
    assert not model.decoder.output_projection.decoding.is_released
    assert not model.decoder.embed_tokens.weight.isnan().any()


def test_int8_without_the_kernels(monkeypatch):
    """By the operations of torch, and without its product of integers: the same words."""
    found = []
    for hidden in ({}, {"native.library": lambda: None}, {"_torch_multiplies_int8": lambda: False}):
        for name, value in hidden.items():
            monkeypatch.setattr(f"elseq.precision.int8.{name}", value)
        model = make_models("bart", DICTIONARY, share_decoder_input_output_embed=True)["kv"]
        model.decoder.decode_dtype = "int8"
        found.append(search(model, "bart"))
    for each in found[1:]:
        assert_same_hypotheses(each, found[0])


def test_other_originals_are_refused():
    model, _, _ = released("int8")
    fresh = prepared(model, "int8").fresh_parameters()
    prepared(model, "int8").fresh_parameters = lambda: {name: 2 * weight for name, weight in fresh.items()}
    with pytest.raises(UserError, match="the checkpoint has other weights than before: load it again"):
        model.state_dict()


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


@pytest.mark.parametrize("dtype", [None, "int8"])
@pytest.mark.parametrize("method", ["kv", "el"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_bias_of_the_output_layer(family, method, dtype, always_packed):
    """It chooses the words: one that it raises by much comes in every place, one that it lowers in none."""
    model = make_models(family, DICTIONARY)[method]
    model.decoder.output_projection.bias = torch.nn.Parameter(torch.zeros(len(DICTIONARY)))
    model.decoder.decode_dtype = dtype
    before = [hypothesis["tokens"].tolist() for hypothesis in search(model, family)[0]]
    lowered = before[0][0]
    with torch.no_grad():
        model.decoder.output_projection.bias[lowered] = -100.0
        model.decoder.output_projection.bias[7] = 100.0
    model = copy.deepcopy(model)  # what was prepared had the bias of before
    for hypotheses in search(model, family):
        words = hypotheses[0]["tokens"].tolist()
        assert lowered not in words[:-1] and words[:-1] == [7] * 12


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
    assert model.decoder.embed_tokens._parameters["weight"].isnan().all()
    assert model.encoder.embed_tokens._parameters["weight"].isnan().all() == shared
    tokens = torch.tensor([[8, 9, 2]])
    other = make_models("bart", DICTIONARY, **options)["stock"]
    arguments = tokens, torch.tensor([3]), tokens
    torch.testing.assert_close(model(*arguments)[0], other(*arguments)[0])
    search(model, "bart")
    assert all(weights[name].equal(weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("is_read", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_table_is_held_once_if_its_rows_can_be_read(family, is_read, always_packed, monkeypatch):
    if not is_read:
        monkeypatch.setattr(always_packed, "embeds", lambda self, weight: False)
    models = make_models(family, DICTIONARY, share_decoder_input_output_embed=True, share_all_embeddings=False)
    model = models["kv"]
    expected = search(models["stock"], family)
    weight = model.decoder.embed_tokens.weight.detach().clone()
    model.make_generation_fast_()
    for _ in range(2):
        assert_same_hypotheses(search(model, family), expected)
    if not is_read:
        assert model.decoder.embed_tokens._parameters["weight"].equal(weight)
    assert model.decoder.embed_tokens.weight.equal(weight)
    assert_same_hypotheses(search(model, family), expected)


def test_memory_is_given_back_when_the_first_search_has_prepared_the_weights(always_packed, monkeypatch):
    calls = []
    monkeypatch.setattr(precision_model, "give_back_memory", lambda: calls.append(None))
    model = make_models("transformer", DICTIONARY)["kv"]
    for expected in (2, 2):  # before it, and after it
        search(model, "transformer")
        assert len(calls) == expected


@pytest.fixture
def hasty_threads():
    """Threads that take turns after some instructions."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def _search_in_threads(model) -> list:
    """What four threads that begin together find, two searches each."""
    together = Barrier(4)

    def searches(_):
        together.wait()
        return [search(model, "transformer") for _ in range(2)]

    with ThreadPoolExecutor(4) as pool:
        return [found for each in pool.map(searches, range(4)) for found in each]


def test_searches_of_one_model_in_several_threads(always_packed, hasty_threads):
    """It may be trained, so its layers are ordinary ones again after each."""
    made = [make_models("transformer", DICTIONARY) for _ in range(4)]
    expected, models = search(made[0]["stock"], "transformer"), [each["kv"] for each in made]
    for found in chain.from_iterable(map(_search_in_threads, models)):
        assert_same_hypotheses(found, expected, tolerance=1e-5)
    assert not any(isinstance(module, DecodingLinear) for model in models for module in model.modules())


def test_a_weight_that_another_search_reads_is_not_dropped(always_packed):
    """As `el` reads that of the key projection, beside a search that makes a product of it."""
    model = make_models("transformer", DICTIONARY)["kv"]
    model.make_generation_fast_()
    layer = model.decoder.layers[0].encoder_attn.k_proj
    both = prepared(model)
    both.begin(only_decodes=True)
    weight = layer.weight
    expected = weight.detach().clone()
    layer.product()
    assert weight.equal(expected)
    both.end()


def test_a_product_is_made_once(always_packed):
    """A search that asks for it while another makes it waits."""
    model = make_models("transformer", DICTIONARY)["kv"]
    model.make_generation_fast_()
    both = prepared(model)
    both.begin(only_decodes=True)
    layer, made, begins = model.decoder.layers[0].fc1, [], Event()
    make = layer.decoding.make

    def slowly(linear):
        begins.set()
        time.sleep(0.1)
        made.append(make(linear))
        return made[-1]

    layer.decoding.make = slowly
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(layer.product)
        begins.wait()
        assert [layer.product()] == [other.result()] == made
    both.end()


@pytest.mark.parametrize("dtype", [None, "int8"])
def test_first_searches_of_a_model_in_several_threads(dtype, always_packed, hasty_threads):
    """One of them makes a product and drops the weight of a layer while the others ask for them."""
    made = [make_models("transformer", DICTIONARY) for _ in range(5)]
    for models in made:
        models["kv"].make_generation_fast_()
        models["kv"].decoder.decode_dtype = dtype
    expected = search(made[0]["kv"], "transformer")
    for models in made[1:]:
        for found in [*_search_in_threads(models["kv"]), search(models["kv"], "transformer")]:
            assert_same_hypotheses(found, expected, tolerance=1e-5)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_a_model_made_in_inference_mode(family, always_packed):
    expected = search(make_models(family, DICTIONARY)["kv"], family)
    with torch.inference_mode():
        model = make_models(family, DICTIONARY)["kv"]
        assert_same_hypotheses(search(model, family), expected)
    assert_same_hypotheses(search(model, family), expected)


def test_a_pruned_layer(always_packed):
    """Its weight is computed from another in each call."""
    model = make_models("transformer", DICTIONARY)["kv"]
    plain = copy.deepcopy(model)
    prune.l1_unstructured(model.decoder.layers[0].fc1, "weight", amount=0.5)
    with torch.no_grad():
        plain.decoder.layers[0].fc1.weight.copy_(model.decoder.layers[0].fc1.weight)
    assert_same_hypotheses(search(model, "transformer"), search(plain, "transformer"))


def _prune(layer):
    prune.l1_unstructured(layer, "weight", amount=0.5)


def _prune_for_good(layer):
    _prune(layer)
    prune.remove(layer, "weight")


def _normalize(layer):
    nn.utils.parametrizations.weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(2)


def _prune_bias(layer):
    prune.l1_unstructured(layer, "bias", amount=0.5)


def _replace_bias(layer):
    layer.bias = nn.Parameter(torch.linspace(-9, 9, len(layer.bias)))


def _scatter_bias(layer):
    layer.bias = nn.Parameter(torch.linspace(-9, 9, 2 * len(layer.bias))[::2])


@pytest.mark.few_cases(12)
@pytest.mark.parametrize("only_decodes", [True, False])
@pytest.mark.parametrize("dtype", [None, "int8"])
@pytest.mark.parametrize(
    "change",
    [_prune, _prune_for_good, _normalize, _prune_bias, _replace_bias, _scatter_bias],
    ids=["prune", "prune for good", "normalize", "prune the bias", "replace the bias", "scatter the bias"],
)
def test_a_layer_that_is_changed_after_a_search(change, dtype, only_decodes, always_packed):
    family = "transformer"
    changed, expected = (make_models(family, DICTIONARY)["kv"] for _ in range(2))
    originals = copy.deepcopy(dict(changed.named_parameters()))
    for model in (changed, expected):
        model.decoder.decode_dtype = dtype
        prepared(model, dtype).fresh_parameters = lambda: originals
        if only_decodes:
            model.make_generation_fast_()
    before = search(changed, family)
    for model in (expected, changed):
        change(model.decoder.layers[-1].fc1)
    found = search(changed, family)
    assert_same_hypotheses(found, search(expected, family))
    assert_same_hypotheses(found, search(changed, family))
    with pytest.raises(AssertionError):
        assert_same_hypotheses(found, before)


def test_parameters_are_saved_as_tensors_alone(always_packed, tmp_path):
    model = make_models("transformer", DICTIONARY)["kv"]
    model.make_generation_fast_()
    search(model, "transformer")
    torch.save(model.state_dict(), tmp_path / "parameters.pt")
    found = torch.load(tmp_path / "parameters.pt", weights_only=True)
    for name, tensor in make_models("transformer", DICTIONARY)["kv"].state_dict().items():
        assert found[name].equal(tensor)


@pytest.mark.parametrize("name", ["relu", "gelu", "linear", "swish"])
def test_models_can_be_pickled(name):
    model = make_elseq_model("transformer", DICTIONARY, "kv", activation_fn=name)
    expected = search(model, "transformer")
    assert_same_hypotheses(search(pickle.loads(pickle.dumps(model)), "transformer"), expected)
