"""Models whose output is not a number, under every search."""

import copy
import math

import pytest
import torch
from fairseq import search
from fairseq.sequence_generator import SequenceGenerator as StockGenerator

from elseq.errors import UserError
from elseq.generation import SequenceGenerator
from elseq.numerics import check_overflow
from tests.tiny_models import assert_same_hypotheses, make_dictionary, make_models, make_sample, make_sources

DICTIONARY = make_dictionary(20)
KINDS = ("stock", "kv", "el")
LENGTHS = (3, 7, 1, 5)
DAMAGED = "{} of the model is not a number (NaN): the checkpoint is damaged, or its training had diverged; take another"


@pytest.fixture(scope="module")
def models():
    return {family: make_models(family, DICTIONARY) for family in ("transformer", "bart", "language_model")}


def generate(models, sample=None, prompts=None, dtype=None, **options):
    sample = sample or make_sample(DICTIONARY, make_sources(DICTIONARY, LENGTHS))
    options = {"beam_size": 4, "max_len_b": 12, **options}
    generator = SequenceGenerator(models, DICTIONARY, **options)
    extra = {} if prompts is None else {"prompt_tokens": prompts}
    return generator.generate(models, sample, **extra)


def sentence(models, *arguments, **options):
    with pytest.raises(UserError) as raised:
        generate(models, *arguments, **options)
    return str(raised.value)


def with_value(model, name, value, dtype=torch.float32):
    """A copy with one number changed."""
    changed = copy.deepcopy(model).to(dtype)
    changed.get_parameter(name).data.view(-1)[3] = value
    return changed


def strategy(name):
    return {
        "beam": None,
        "sampling": search.Sampling(DICTIONARY),
        "top-p": search.Sampling(DICTIONARY, sampling_topp=0.5),
        "groups": search.DiverseBeamSearch(DICTIONARY, 2, 0.5),
        "siblings": search.DiverseSiblingsSearch(DICTIONARY, 0.5),
    }[name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "parameter",
    ["encoder.layers.1.fc1.weight", "decoder.layers.0.encoder_attn.k_proj.weight", "decoder.layers.1.fc2.bias"],
)
def test_a_damaged_parameter_is_named(models, kind, dtype, parameter):
    model = with_value(models["transformer"][kind], parameter, math.nan, dtype)
    assert sentence([model]).startswith(DAMAGED.format(parameter))


@pytest.mark.parametrize("name", ["beam", "sampling", "top-p", "groups", "siblings"])
@pytest.mark.parametrize("options", [{}, {"beam_size": 2, "min_len": 8}, {"temperature": 0.5}], ids=str)
def test_under_every_search(models, name, options):
    parameter = "decoder.output_projection.weight"
    model = with_value(models["transformer"]["el"], parameter, math.nan)
    assert sentence([model], search_strategy=strategy(name), **options).startswith(DAMAGED.format(parameter))


def test_greedily(models):
    model = with_value(models["bart"]["kv"], "decoder.layers.0.self_attn.v_proj.weight", math.nan)
    assert "decoder.layers.0.self_attn.v_proj.weight of the model" in sentence([model], beam_size=1)


def test_only_some_words(models):
    """A word's embedding: the hypotheses that have it end in nothing, the others are all right."""
    model = copy.deepcopy(models["transformer"]["kv"])
    assert model.decoder.embed_tokens.weight is not model.decoder.output_projection.weight
    [[best, *_], *_] = generate([model])
    word = int(best["tokens"][1])
    model.decoder.embed_tokens.weight.data[word] = math.nan
    assert sentence([model]).startswith(DAMAGED.format("decoder.embed_tokens.weight"))


@pytest.mark.parametrize("kind", KINDS)
def test_of_several_models(models, kind):
    other = with_value(models["transformer"][kind], "decoder.layers.0.fc1.weight", math.nan)
    assert "decoder.layers.0.fc1.weight of model 2 of 2" in sentence([models["transformer"]["el"], other])
    language_model = with_value(models["language_model"][kind], "decoder.layers.0.fc1.weight", math.nan)
    assert "of model 2 of 2" in sentence([models["transformer"]["el"]], lm_model=language_model)


def with_overflow(model, layer, dtype=torch.float32):
    """A copy with finite weights whose sums are too large for the type."""
    changed = copy.deepcopy(model).to(dtype)
    changed.get_submodule(layer).fc1.bias.data.fill_(100.0)
    changed.get_submodule(layer).fc2.weight.data.fill_(torch.finfo(dtype).max / 100)
    return changed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("layer", ["encoder.layers.0", "decoder.layers.0", "decoder.layers.1"])
def test_the_layer_where_numbers_become_too_large_is_named(models, kind, dtype, layer):
    told = sentence([with_overflow(models["transformer"][kind], layer, dtype)])
    assert told.startswith(
        f"the output of the model is not a number (NaN), from the layer {layer}.fc2 on, whose numbers"
    )
    remedy = (
        "for float16: decode in float32 or bfloat16" if dtype == torch.float16 else "even for float32: take another"
    )
    assert remedy in told


@pytest.mark.parametrize("kind", KINDS)
def test_prompts(models, kind):
    rows = [[2], [2, 5, 6, 7], [2, 10, 4]]
    sample = make_sample(DICTIONARY, rows, left=False)
    prompts = sample["net_input"]["src_tokens"]
    assert generate([models["language_model"][kind]], sample, prompts)
    model = with_overflow(models["language_model"][kind], "decoder.layers.1")
    assert "from the layer decoder.layers.1.fc2 on" in sentence([model], sample, prompts)
    model = with_value(models["language_model"][kind], "decoder.layers.0.fc1.weight", math.nan)
    assert sentence([model], sample, prompts).startswith(DAMAGED.format("decoder.layers.0.fc1.weight"))


def test_a_weight_that_is_no_number(models):
    told = sentence([models["transformer"]["kv"]], lm_model=models["language_model"]["kv"], lm_weight=math.nan)
    assert told == (
        "the model's log-probabilities are not numbers (NaN), though the output of its layers is: check --temperature "
        "and --lm-weight"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_probability_of_nothing_is_a_number(models, kind):
    """A bias of -inf forbids a word, as -inf everywhere does in attention."""
    model = copy.deepcopy(models["transformer"][kind])
    projection = model.decoder.output_projection
    projection.bias = torch.nn.Parameter(torch.zeros(len(DICTIONARY)))
    projection.bias.data[7:12] = -math.inf
    for hypotheses in generate([model]):
        for hypothesis in hypotheses:
            assert hypothesis["score"].isfinite()
            assert not {*range(7, 12)} & {*hypothesis["tokens"].tolist()}


@pytest.mark.parametrize("beam", [1, 4])
def test_equal_scores_give_the_words_that_stock_gives(models, beam):
    """A model that has learned nothing at all."""
    options = {"beam_size": beam, "max_len_b": 12}
    for kind in KINDS:
        model = copy.deepcopy(models["transformer"][kind])
        model.decoder.output_projection.weight.data.zero_()
        if kind == "stock":
            sample = make_sample(DICTIONARY, make_sources(DICTIONARY, LENGTHS))
            expected = StockGenerator([model], DICTIONARY, **options).generate([model], sample)
        assert_same_hypotheses(generate([model], **options), expected)


def test_the_largest_parameter_is_named_where_numbers_overflow():
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    check_overflow([torch.ones(2)], "the layer", layer)
    with torch.no_grad():
        layer[1].weight[0, 1] = -1e30
    sentence = r"the numbers of the layer overflow; the parameter 1.weight has the largest of the model, 1e\+30: take"
    for number in ("inf", "nan"):
        with pytest.raises(UserError, match=sentence):
            check_overflow([torch.ones(2), torch.tensor([1.0, float(number)])], "the layer", layer)
