"""Converts multi-head attention to grouped-query attention with fewer key/value heads (2305.13245).

Query head h of H reads key/value head h // (H / G): a group is H / G consecutive heads. Letters: H heads, G key/value
heads, K width of a head, D width of the projected vectors.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from elseq.attention import Attention
from elseq.attention.module import split_joint_projections
from elseq.errors import UserError
from elseq.interop import PLACES, SIMILAR
from elseq.interop.calibration import Texts, convert_layers
from elseq.interop.head_sharing import (
    Moments,
    Projections,
    aligned,
    balanced,
    fit_values,
    fitted,
    pool,
    similar_order,
    similarities,
)
from elseq.models.config import divisors
from elseq.numerics import check_overflow

_LAYERS = {
    "encoder": r"(encoder\.layers\.\d+\.self_attn)\.k_proj\.weight",
    "decoder": r"(decoder\.layers\.\d+\.self_attn)\.k_proj\.weight",
    "cross": r"(decoder\.layers\.\d+\.encoder_attn)\.k_proj\.weight",
}


def upgrade_projections(model: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's tensors with separate query, key and value projections, as in fairseq since 0.9."""
    model = dict(model)
    for name in [name for name in model if name.endswith(".in_proj_weight")]:
        split_joint_projections(model, name.removesuffix(".in_proj_weight"))
    return model


def places_of(model: dict[str, Tensor]) -> list[str]:
    """The places, of `PLACES`, in which a model has attention."""
    return [place for place in PLACES if _attentions(model, place)]


def pool_heads(
    model: dict[str, Tensor],
    configuration: dict,
    num_kv_heads: int,
    places: Sequence[str],
    method: str = "mean",
    seed: int = 1,
) -> tuple[dict[str, Tensor], dict]:
    """Pool the key and value heads of each group into one.

    Args:
        model: tensors by their names; in `places`, `k_proj.weight` and `v_proj.weight` [H K, D] and, if the model has
            them, their biases [H K].
        configuration: configuration of an elseq model, from `models.stock.elseq_configuration`.
        num_kv_heads: G, which divides H. If it equals H, nothing changes.
        places: some of `PLACES`.
        method: mean of a group's heads (2305.13245, section 2.1), its first head, or random weights: the three methods
            of figure 4 there, from the best to the worst.
        seed: seed of the random weights.

    Returns:
        The tensors, with [G K, D] and [G K] in `places` and the others unchanged, and the configuration with G.

    Raises:
        UserError: the model lacks a place, its keys and values are already grouped there, or G does not divide H.
    """
    check_heads(model, configuration, num_kv_heads, places)
    pooled = dict(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for place in places:
            heads = _heads_in(configuration, place)
            for attention in _attentions(model, place) if num_kv_heads < heads else []:
                fresh = _fresh_projections(model, attention, heads, num_kv_heads) if method == "random" else {}
                for name in _projections(model, attention):
                    by_head = model[name].unflatten(0, (heads, -1))
                    new = fresh[name] if fresh else pool(by_head, num_kv_heads, method).flatten(0, 1)
                    pooled[name] = new.to(model[name].dtype)
    return pooled, _with_kv_heads(configuration, num_kv_heads, places)


def fit_heads(
    model: dict[str, Tensor],
    configuration: dict,
    num_kv_heads: int | Mapping[str, int],
    places: Sequence[str],
    method: str,
    grouping: str,
    network,
    texts: Sequence[dict],
) -> tuple[dict[str, Tensor], dict]:
    """`pool_heads` by the outputs of the heads on calibration text.

    Args:
        model, configuration, places: as for `pool_heads`.
        num_kv_heads: G of all attention layers in `places`, or of each by its name, from `kv_heads_within`.
        method: mean, first, aligned or fitted.
        grouping: which heads share: neighbours, or similar ones (2406.14963).
        network: an elseq model with the parameters of `model`, in float32 or float64. It is converted, too.
        texts: the input of the network for each text, a batch of one; see `calibration.convert_layers`.

    Returns:
        As `pool_heads`. The query and output projections in `places` change as well.

    Raises:
        UserError: as `pool_heads`, or the numbers of a layer overflow.
    """
    names = {name: place for place in places for name in _attentions(model, place)}
    numbers = num_kv_heads if isinstance(num_kv_heads, Mapping) else dict.fromkeys(names, num_kv_heads)
    for place in places:
        for number in {numbers[name] for name in names if names[name] == place} or {1}:
            _check(model, place, _heads_in(configuration, place), number)
    converted = dict(model)

    def convert(name: str, attention: Attention, seen: Texts) -> None:
        if numbers[name] == attention.num_heads:
            return
        _share(network, name, seen, _moments(network, name, seen), numbers[name], method, grouping)
        new = {f"{name}.{part}": parameter.detach() for part, parameter in attention.named_parameters()}
        new = {part: parameter.to(model[part].dtype) for part, parameter in new.items()}
        check_overflow(new.values(), name, network)
        converted.update(new)

    convert_layers(network, texts, places, convert)
    for place in places:
        found = kv_heads_of(converted, configuration, place)
        if len(found) == 1:
            configuration = _with_kv_heads(configuration, *found, [place])
        else:
            configuration = configuration | {f"{place}_kv_heads_by_layer": ",".join(map(str, found))}
    return converted, configuration


def kv_heads_within(
    budget: float,
    places: Sequence[str],
    method: str,
    grouping: str,
    network,
    texts: Sequence[dict],
    loss: Callable[[], float],
) -> dict[str, int]:
    """The numbers of key/value heads that reduce the decoding state to a share of its size, at the least loss.

    The cost of a number in a layer is the loss of the model with only that layer converted. The costs of several layers
    are assumed to add up. The numbers with the least sum within the budget are found exactly: this is a multiple-choice
    knapsack problem, solved by dynamic programming over the layers.

    Args:
        budget: the share, of the keys and values of a position in all layers of `places`.
        places, method, grouping, network, texts: as for `fit_heads`. The network stays as it is.
        loss: returns the loss of the network on the calibration text.

    Returns:
        G of each attention layer, by its name.

    Raises:
        UserError: one key/value head in every layer is more than the budget, or the numbers of a layer overflow.
    """
    parameters = network.state_dict()
    attentions = {name: network.get_submodule(name) for place in places for name in _attentions(parameters, place)}
    widths = {name: attention.head_dim for name, attention in attentions.items()}
    costs = {
        name: {number: 0.0 for number in range(1, attention.num_heads + 1) if attention.num_heads % number == 0}
        for name, attention in attentions.items()
    }
    cheapest_numbers(costs, widths, budget)  # before they are measured: whether any are within the budget
    whole = loss()

    def measure(name: str, attention: Attention, seen: Texts) -> None:
        before, moments = Projections.of(attention), _moments(network, name, seen)
        for number in costs[name].keys() - {attention.num_heads}:
            _share(network, name, seen, moments, number, method, grouping)
            costs[name][number] = loss() - whole
            before.give_to(attention)

    convert_layers(network, texts, places, measure)
    return cheapest_numbers(costs, widths, budget)


def cheapest_numbers(
    costs: Mapping[str, Mapping[int, float]], widths: Mapping[str, int], budget: float
) -> dict[str, int]:
    """See `kv_heads_within`.

    Args:
        costs: of each layer the cost of each number of key/value heads, the largest of which it has now.
        widths: K of each layer.
        budget: the share.
    """
    total = sum(max(numbers) * widths[name] for name, numbers in costs.items())
    least = sum(min(numbers) * widths[name] for name, numbers in costs.items()) / total
    if budget < least:
        raise UserError(
            f"{budget:g} is less than {least:.3g}, which one key/value head in every layer needs: give that or more",
            "--state-budget",
        )
    best = {0: (0.0, {})}  # of the layers so far: for each size of their state the least cost, and the numbers
    for name, numbers in costs.items():
        extended = {}
        for size, (cost, chosen) in best.items():
            for number, more in numbers.items():
                new = size + number * widths[name]
                if new not in extended or cost + more < extended[new][0]:
                    extended[new] = cost + more, chosen | {name: number}
        best = extended
    # A quotient that the budget is to be is exactly that, which a product with the budget need not be.
    _, _, chosen = min((cost, size, chosen) for size, (cost, chosen) in best.items() if size / total <= budget)
    return chosen


def _moments(network, name: str, seen: Texts) -> Moments:
    """
    Raises:
        UserError: the inputs or outputs of the layer overflow.
    """
    moments = seen.moments(network.get_submodule(name))
    check_overflow((moments.queries, moments.keys, moments.values, *seen.wanted), name, network)
    return moments


def _share(network, name: str, seen: Texts, moments: Moments, num_kv_heads: int, method: str, grouping: str) -> None:
    """Let a layer have fewer key/value heads.

    Raises:
        UserError: its new parameters overflow.
    """
    attention = network.get_submodule(name)
    projections = Projections.of(attention)
    if grouping == SIMILAR:
        order = similar_order(similarities(moments), num_kv_heads)
        projections, moments = projections.reordered(order), moments.reordered(order)
    if method == "fitted":
        fit = fitted(projections, moments, num_kv_heads)
        fit.projections.give_to(attention)  # attention distributions are those of the new keys from here on
        check_overflow(attention.parameters(), name, network)
        projections = balanced(fit_values(fit, seen.attended(attention, fit.components)))
    else:
        if method == "aligned":
            projections = aligned(projections, moments, num_kv_heads)
        projections = projections.merged(num_kv_heads, method)
    projections.give_to(attention)
    check_overflow(attention.parameters(), name, network)


def _with_kv_heads(configuration: dict, num_kv_heads: int, places: Sequence[str]) -> dict:
    is_language_model = "cross_num_kv_heads" not in configuration
    return configuration | {
        "num_kv_heads" if is_language_model else f"{place}_num_kv_heads": num_kv_heads for place in places
    }


def check_heads(model: dict[str, Tensor], configuration: dict, num_kv_heads: int, places: Sequence[str]) -> None:
    """
    Raises:
        UserError: as `pool_heads`.
    """
    for place in places:
        _check(model, place, _heads_in(configuration, place), num_kv_heads)


def _heads_in(configuration: dict, place: str) -> int | None:
    # A language model's configuration has no encoder; the check reports that.
    return configuration.get("encoder_attention_heads" if place == "encoder" else "decoder_attention_heads")


def kv_heads_of(model: dict[str, Tensor], configuration: dict, place: str) -> list[int]:
    """G of each attention layer in a place, or of all if they are equal."""
    heads, found = _heads_in(configuration, place), []
    for attention in sorted(_attentions(model, place), key=lambda name: int(name.split(".")[2])):
        query, key = (model[f"{attention}.{kind}_proj.weight"].size(0) for kind in "qk")
        found.append(key * heads // query)
    return found if len(set(found)) > 1 else found[:1]


def count_parameters(model: dict[str, Tensor]) -> int:
    """Number of parameters. Tied ones count once, even if a half-precision checkpoint stores them separately."""
    total, tied = 0, []
    for name, tensor in model.items():
        if name.endswith((".version", "._float_tensor")):  # buffers
            continue
        if ".layers." not in name and tensor.dim() > 1:
            if any(tensor.shape == other.shape and torch.equal(tensor, other) for other in tied):
                continue
            tied.append(tensor)
        total += tensor.numel()
    return total


def state_bytes(model: dict[str, Tensor], place: str) -> int:
    """Bytes of the keys and values of one position in all layers, in the type of the model."""
    names = [f"{attention}.{kind}_proj.weight" for attention in _attentions(model, place) for kind in "kv"]
    return sum(model[name].size(0) * model[name].element_size() for name in names)


def _attentions(model: dict[str, Tensor], place: str) -> list[str]:
    return [found[1] for found in (re.fullmatch(_LAYERS[place], name) for name in model) if found]


def _projections(model: dict[str, Tensor], attention: str) -> list[str]:
    names = [f"{attention}.{kind}_proj.{part}" for kind in "kv" for part in ("weight", "bias")]
    return [name for name in names if name in model]


def _check(model: dict[str, Tensor], place: str, heads: int, num_kv_heads: int) -> None:
    attentions = _attentions(model, place)
    if not attentions:
        others = " and ".join(PLACES[other] for other in places_of(model)) or "none that elseq knows"
        raise UserError(f"the model has no {PLACES[place]} to pool: of attention it has {others}")
    for attention in attentions:
        for kind in "qv":
            if f"{attention}.{kind}_proj.weight" not in model:
                raise UserError(f"the model lacks {attention}.{kind}_proj.weight: use the file that the training saved")
        query, key = (model[f"{attention}.{kind}_proj.weight"].size(0) for kind in "qk")
        if key != query:
            raise UserError(
                f"the {PLACES[place]} of the model is grouped already, {key * heads // query} key/value heads for "
                f"{heads} heads: give the multi-head checkpoint that it was made from"
            )
    if num_kv_heads < 1 or heads % num_kv_heads:
        raise UserError(
            f"{num_kv_heads} key/value heads do not divide the {heads} heads of its {PLACES[place]}: "
            f"give one of {divisors(heads)}"
        )


def _fresh_projections(model: dict[str, Tensor], attention: str, heads: int, num_kv_heads: int) -> dict[str, Tensor]:
    """Initial key and value weights of a new layer of the same size."""
    query, key, value = (model[f"{attention}.{kind}_proj.weight"] for kind in "qkv")
    layer = Attention(
        query.size(1),
        heads,
        num_kv_heads,
        kdim=key.size(1),
        vdim=value.size(1),
        bias=f"{attention}.k_proj.bias" in model,
        head_dim=query.size(0) // heads,
    )
    return {f"{attention}.{name}": parameter.detach() for name, parameter in layer.named_parameters()}
