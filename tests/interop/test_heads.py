"""Pooling of key and value heads, against a loop over heads."""

import itertools
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from fairseq import models
from omegaconf import OmegaConf

from elseq.attention import Attention
from elseq.compat.settings import model_class
from elseq.errors import UserError
from elseq.interop.heads import (
    cheapest_numbers,
    count_parameters,
    fit_heads,
    kv_heads_of,
    kv_heads_within,
    places_of,
    pool_heads,
    state_bytes,
    upgrade_projections,
)
from elseq.models.stock import elseq_configuration, stock_configuration
from tests.tiny_models import make_dictionary

HEADS, WIDTH = 4, 16
SIZES = {"layers": 2, "embed_dim": WIDTH, "ffn_embed_dim": 24, "attention_heads": HEADS}
ENCODER_DECODER = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in SIZES.items()}
LANGUAGE_MODEL = {f"decoder_{name}": size for name, size in SIZES.items()} | {
    "decoder_input_dim": WIDTH,
    "decoder_output_dim": WIDTH,
    "tokens_per_sample": 32,
    "max_target_positions": None,
    "add_bos_token": False,
    "tpu": False,
}
FAMILIES = ("transformer", "bart_base", "transformer_lm", "elseq_transformer")
TASK = SimpleNamespace(source_dictionary=make_dictionary(20), target_dictionary=make_dictionary(20))


def configuration_of(family, **options):
    """As a checkpoint has it."""
    if family == "transformer_lm":
        return OmegaConf.create({"model": {"_name": family, **LANGUAGE_MODEL, **options}}).model
    if family == "elseq_transformer":
        return OmegaConf.create({"model": {"_name": family, **ENCODER_DECODER, **options}}).model
    return Namespace(**{"arch": family, **ENCODER_DECODER, **options})


def make(family, **options):
    """A model's tensors, all of them random, and the configuration as ours."""
    cfg = configuration_of(family, **options)
    torch.manual_seed(1)
    args = stock_configuration(cfg)
    args.task = None
    model = model_class(cfg).build_model(args, TASK).state_dict()
    for name, tensor in model.items():
        if name.endswith("bias"):
            tensor.normal_()
    return model, elseq_configuration(cfg)


def build(configuration):
    return models.build_model(OmegaConf.create({"model": configuration}).model, TASK)


def naive(tensor, kv_heads, method):
    """[H K, ...] to [G K, ...], a head at a time."""
    width = len(tensor) // HEADS
    rows = []
    for kv_head in range(kv_heads):
        group = [head for head in range(HEADS) if head // (HEADS // kv_heads) == kv_head]
        for row in range(width):
            members = [tensor[head * width + row] for head in group]
            rows.append(members[0] if method == "first" else sum(members) / len(members))
    return torch.stack(rows)


def is_pooled(name, places):
    place = "cross" if ".encoder_attn." in name else name.partition(".")[0]
    return place in places and (".k_proj." in name or ".v_proj." in name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["mean", "first"])
@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("biases", [True, False])
def test_against_a_loop_over_heads(family, method, kv_heads, biases):
    model, configuration = make(family)
    if not biases:
        model = {name: tensor for name, tensor in model.items() if not name.endswith("_proj.bias")}
    before = {name: tensor.clone() for name, tensor in model.items()}
    places = [place for place in places_of(model) if place != "encoder"]
    pooled, grouped = pool_heads(model, configuration, kv_heads, places, method)
    assert pooled.keys() == model.keys()
    changed = 0
    for name, tensor in pooled.items():
        if is_pooled(name, places):
            torch.testing.assert_close(tensor, naive(model[name], kv_heads, method))
            changed += 1
        else:
            assert tensor is model[name]
        torch.testing.assert_close(model[name], before[name], rtol=0, atol=0)
    assert changed == len(places) * 2 * 2 * (2 if biases else 1)  # layers, key and value, weight and bias
    if biases:
        build(grouped).load_state_dict(pooled, strict=True)


def test_every_place():
    model, configuration = make("bart_base")
    pooled, grouped = pool_heads(model, configuration, 2, ["encoder"])
    assert {name for name in model if pooled[name] is not model[name]} == {
        name for name in model if is_pooled(name, ["encoder"])
    }
    pooled, grouped = pool_heads(pooled, grouped, 1, ["decoder", "cross"])
    assert [grouped[f"{place}_num_kv_heads"] for place in ("encoder", "decoder", "cross")] == [2, 1, 1]
    assert grouped["num_kv_heads"] is None
    build(grouped).load_state_dict(pooled, strict=True)


@pytest.mark.parametrize("method", ["mean", "first", "random"])
@pytest.mark.parametrize("family", ["transformer", "bart_base", "transformer_lm"])
def test_as_many_as_heads_change_nothing(family, method):
    """And our model with so many has the parameters of the stock one, in the same order."""
    model, configuration = make(family)
    same, grouped = pool_heads(model, configuration, HEADS, places_of(model), method)
    assert all(same[name] is model[name] for name in model)
    ours = build(grouped).state_dict()
    assert [(name, tensor.shape) for name, tensor in ours.items()] == [
        (name, tensor.shape) for name, tensor in model.items()
    ]


def test_random_weights_are_those_of_a_new_layer():
    model, configuration = make("transformer")
    torch.manual_seed(5)
    expected = Attention(WIDTH, HEADS, 2, self_attention=True)
    state = torch.random.get_rng_state()
    pooled, _ = pool_heads(model, configuration, 2, ["decoder"], "random", seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name in ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"):
        assert torch.equal(pooled[f"decoder.layers.0.self_attn.{name}"], expected.state_dict()[name])
        assert not torch.equal(pooled[f"decoder.layers.1.self_attn.{name}"], expected.state_dict()[name])
    other, _ = pool_heads(model, configuration, 2, ["decoder"], "random", seed=6)
    name = "decoder.layers.0.self_attn.k_proj.weight"
    assert not torch.equal(other[name], pooled[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["mean", "first", "random"])
def test_precision_is_kept(dtype, method):
    """And the mean is rounded once."""
    model, configuration = make("transformer")
    model = {name: tensor.to(dtype) for name, tensor in model.items()}
    pooled, _ = pool_heads(model, configuration, 1, ["cross"], method)
    assert {tensor.dtype for tensor in pooled.values()} == {dtype}
    if method == "mean":
        name = "decoder.layers.1.encoder_attn.v_proj.weight"
        assert torch.equal(pooled[name], naive(model[name].double(), 1, "mean").float().to(dtype))


def test_heads_of_any_width():
    model, configuration = make("elseq_transformer", head_dim=6)
    name = "decoder.layers.0.self_attn.k_proj.weight"
    assert model[name].shape == (HEADS * 6, WIDTH)
    for method in ("mean", "first", "random"):
        pooled, grouped = pool_heads(model, configuration, 2, ["decoder"], method)
        assert pooled[name].shape == (2 * 6, WIDTH)
        build(grouped).load_state_dict(pooled, strict=True)


def test_projections_of_old_checkpoints():
    model, _ = make("transformer")
    old = dict(model)
    for attention in {name.rsplit(".", 2)[0] for name in model if name.endswith("k_proj.weight")}:
        for part in ("weight", "bias"):
            old[f"{attention}.in_proj_{part}"] = torch.cat(
                [old.pop(f"{attention}.{kind}_proj.{part}") for kind in "qkv"]
            )
    names = set(old)
    upgraded = upgrade_projections(old)
    assert set(old) == names
    assert upgraded.keys() == model.keys()
    assert all(torch.equal(upgraded[name], model[name]) for name in model)


@pytest.mark.parametrize(
    "family, options",
    [
        ("transformer", {}),
        ("transformer", {"share_all_embeddings": True}),
        ("transformer", {"share_decoder_input_output_embed": True}),
        ("bart_base", {"encoder_attention_heads": 2}),
        ("transformer_lm", {}),
    ],
)
@pytest.mark.parametrize("half", [False, True])
def test_sizes(family, options, half):
    options = {"share_all_embeddings": False, **options} if family != "transformer_lm" else options
    model, configuration = make(family, **options)
    if half:  # in which fairseq's checkpoints hold tied embeddings apart
        model = {name: tensor.half() for name, tensor in model.items()}
    pooled, grouped = pool_heads(model, configuration, 2, ["decoder"])
    for tensors, cfg in ((model, configuration), (pooled, grouped)):
        assert count_parameters(tensors) == sum(parameter.numel() for parameter in build(cfg).parameters())
    number = 2 if half else 4
    assert state_bytes(model, "decoder") == 2 * 2 * WIDTH * number  # layers, key and value
    assert state_bytes(pooled, "decoder") == 2 * 2 * (WIDTH // 2) * number
    assert state_bytes(pooled, "cross") == (0 if family == "transformer_lm" else 2 * 2 * WIDTH * number)


@pytest.mark.parametrize("number", [3, 8, 0, -1])
def test_numbers_that_do_not_divide(number):
    model, configuration = make("transformer")
    sentence = f"{number} key/value heads do not divide the 4 heads of its cross-attention: give one of 1, 2, 4"
    with pytest.raises(UserError, match=sentence):
        pool_heads(model, configuration, number, ["cross"])


def test_grouped_already():
    model, configuration = make("elseq_transformer", num_kv_heads=2, encoder_num_kv_heads=HEADS)
    for number in (1, 2, 4):
        with pytest.raises(UserError, match="cross-attention of the model is grouped already, 2 key/value heads for 4"):
            pool_heads(model, configuration, number, ["cross"])
    pooled, grouped = pool_heads(model, configuration, 1, ["encoder"])
    build(grouped).load_state_dict(pooled, strict=True)


def test_attention_that_is_not_there():
    model, configuration = make("transformer_lm")
    with pytest.raises(UserError, match="no cross-attention to pool: of attention it has decoder self-attention"):
        pool_heads(model, configuration, 2, ["decoder", "cross"])
    with pytest.raises(UserError, match="of attention it has none that elseq knows"):
        pool_heads({}, configuration, 2, ["decoder"])


@pytest.mark.parametrize("places", [["encoder"], ["decoder", "encoder"], ["cross"]])
def test_a_language_model_has_one_kind_of_attention(places):
    model, configuration = make("transformer_lm")
    with pytest.raises(UserError, match="the model has no (encoder self-attention|cross-attention) to pool"):
        pool_heads(model, configuration, 2, places)


# --- by calibration text


def texts_for(model, number=20):
    """Batches of one text."""
    generator = torch.Generator().manual_seed(3)
    for length in range(3, 3 + number):
        source, target = torch.randint(4, 24, (2, 1, 3 + length % 9), generator=generator)
        text = {"src_tokens": source, "src_lengths": torch.tensor([source.numel()])}
        yield text | {"prev_output_tokens": target} if hasattr(model, "encoder") else text


def distance(model, expected, texts):
    return sum(float((model(**text)[0] - output).square().sum()) for text, output in zip(texts, expected, strict=True))


@pytest.mark.few_cases(2)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("grouping", ["neighbours", "similar"])
@pytest.mark.parametrize("kv_heads", [1, 2])
@torch.no_grad()
def test_fitted_heads_lose_least(family, grouping, kv_heads):
    """And the tensors are those of the network, which the model of the configuration loads."""
    model, configuration = make(family)
    places = [place for place in places_of(model) if place != "encoder"]
    network = build(configuration).eval()
    network.load_state_dict(model)
    texts = list(texts_for(network))
    expected = [network(**text)[0] for text in texts]
    found = {}
    for method in ("mean", "first", "aligned", "fitted"):
        network = build(configuration).eval()
        network.load_state_dict(model)
        tensors, grouped = fit_heads(model, configuration, kv_heads, places, method, grouping, network, texts)
        found[method] = distance(network, expected, texts)
        loaded = build(grouped).eval()
        loaded.load_state_dict(tensors, strict=True)
        assert distance(loaded, [network(**text)[0] for text in texts], texts) < 1e-6
        assert all(tensors[name] is model[name] for name in model if "attn." not in name)
        if method in ("mean", "first") and grouping == "neighbours":
            pooled, same = pool_heads(model, configuration, kv_heads, places, method)
            assert same == grouped
            for name, tensor in pooled.items():
                torch.testing.assert_close(tensors[name], tensor)
    assert found["fitted"] < min(found["aligned"], found["mean"], found["first"])


def test_fitted_precision_is_kept():
    model, configuration = make("transformer")
    network = build(configuration).eval()
    network.load_state_dict(model)
    half = {name: tensor.half() for name, tensor in model.items()}
    tensors, _ = fit_heads(half, configuration, 1, ["cross"], "fitted", "neighbours", network, list(texts_for(network)))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


@pytest.mark.parametrize("family", ["transformer", "transformer_lm"])
@torch.no_grad()
def test_numbers_of_heads_within_a_budget(family):
    model, configuration = make(family)
    places = [place for place in places_of(model) if place != "encoder"]
    network = build(configuration).eval()
    network.load_state_dict(model)
    texts = list(texts_for(network))
    expected = [network(**text)[0] for text in texts]
    how = (places, "fitted", "neighbours", network, texts)
    with pytest.raises(UserError, match="--state-budget 0.2 is less than 0.25"):
        kv_heads_within(0.2, *how, lambda: pytest.fail("nothing is to be measured"))
    numbers = kv_heads_within(0.6, *how, lambda: distance(network, expected, texts))
    assert all(torch.equal(tensor, model[name]) for name, tensor in network.state_dict().items())
    tensors, grouped = fit_heads(model, configuration, numbers, *how)
    for place in places:
        kept = kv_heads_of(tensors, grouped, place)
        assert set(kept) <= {1, 2, 4}
    share = sum(state_bytes(tensors, place) for place in places) / sum(state_bytes(model, place) for place in places)
    assert 0.25 <= share <= 0.6
    loaded = build(grouped)
    loaded.load_state_dict(tensors, strict=True)
    attentions = {name: module.num_kv_heads for name, module in loaded.named_modules() if isinstance(module, Attention)}
    assert {name: attentions[name] for name in numbers} == numbers


def test_cheapest_numbers():
    costs = {"a": {4: 0.0, 2: 1.0, 1: 9.0}, "b": {4: 0.0, 2: 2.0, 1: 2.5}, "c": {4: 0.0, 2: 5.0, 1: 20.0}}
    widths = dict.fromkeys(costs, 8)
    assert cheapest_numbers(costs, widths, 1) == {"a": 4, "b": 4, "c": 4}
    assert cheapest_numbers(costs, widths, 0.9) == {"a": 2, "b": 4, "c": 4}  # 0.5 for each head; b to 1 costs 0.83
    assert cheapest_numbers(costs, widths, 0.6) == {"a": 2, "b": 1, "c": 4}
    assert cheapest_numbers(costs, widths, 0.25) == {"a": 1, "b": 1, "c": 1}
    with pytest.raises(
        UserError, match="--state-budget 0.2 is less than 0.25, which one key/value head in every layer"
    ):
        cheapest_numbers(costs, widths, 0.2)


@pytest.mark.parametrize("seed", range(20))
def test_cheapest_numbers_against_all(seed):
    """With costs that are not convex and may be less than those of all heads, in layers of several widths."""
    generator = torch.Generator().manual_seed(seed)
    costs, widths = {}, {}
    for layer, heads in enumerate((4, 8, 6, 4)):
        numbers = [number for number in range(1, heads + 1) if heads % number == 0]
        drawn = torch.randn(len(numbers), generator=generator, dtype=torch.float64).add(1).tolist()
        costs[f"layer {layer}"] = dict(zip(numbers, drawn, strict=True)) | {heads: 0.0}
        widths[f"layer {layer}"] = (8, 8, 5, 12)[layer]
    every = [dict(zip(costs, chosen, strict=True)) for chosen in itertools.product(*costs.values())]

    def share(chosen):
        return sum(number * widths[name] for name, number in chosen.items()) / sum(
            max(numbers) * widths[name] for name, numbers in costs.items()
        )

    def cost(chosen):
        return sum(costs[name][number] for name, number in chosen.items())

    for budget in (0.25, 0.3, 0.5, 0.75, 1, *(share(chosen) for chosen in every[::7])):
        found = cheapest_numbers(costs, widths, budget)
        assert share(found) <= budget
        assert cost(found) == pytest.approx(min(cost(chosen) for chosen in every if share(chosen) <= budget))


def test_the_budget_is_met_without_overshooting():
    costs = {"a": {4: 0.0, 2: 0.3, 1: 0.4}, "b": {4: 0.0, 2: 0.3, 1: 0.4}}
    assert cheapest_numbers(costs, {"a": 8, "b": 8}, 0.5) == {"a": 2, "b": 2}


def test_numbers_that_cost_the_same():
    """Fewer are better."""
    costs = {"a": {4: 0.0, 2: 0.0, 1: 0.0}, "b": {4: 0.0, 2: 0.0, 1: 1.0}}
    assert cheapest_numbers(costs, {"a": 8, "b": 8}, 0.9) == {"a": 1, "b": 2}
