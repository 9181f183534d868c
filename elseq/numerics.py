"""Finds the parameter or layer from which a model's NaN comes, or its overflow."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from elseq.errors import UserError


def explain_nan(models: Sequence[nn.Module], net_input: dict, rows: Iterable[tuple[int, Tensor]]) -> UserError:
    """The error for models whose log-probabilities are NaN. It names the damaged parameter or the first such layer.

    Args:
        models: fairseq models: those of an ensemble, and the language model for fusion. None of them is decoding.
        net_input: their input batch.
        rows: for each hypothesis its sentence and the tokens so far, int64 [L].
    """
    names = (
        ["the model"]
        if len(models) == 1
        else [f"model {number} of {len(models)}" for number in range(1, len(models) + 1)]
    )
    for which, model in zip(names, models, strict=True):
        damage = _damaged_parameter(model)
        if damage is not None:
            return UserError(
                f"{damage} of {which} is not a number (NaN): the checkpoint is damaged, or its training had diverged; "
                "take another one"
            )
    with torch.no_grad():
        for sentence, tokens in rows:
            for which, model in zip(names, models, strict=True):
                layer = _first_overflow(model, net_input, sentence, tokens)
                if layer is not None:
                    return UserError(f"the output of {which} is not a number (NaN), {_reason(model, layer)}")
    return UserError(
        "the model's log-probabilities are not numbers (NaN), though the output of its layers is: check --temperature "
        "and --lm-weight",
        others=["--temperature", "--lm-weight"],
    )


def check_finite(tensors: dict[str, Tensor], where: str) -> None:
    """
    Raises:
        UserError: a tensor has NaN or infinity.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            what = "NaN" if bool(torch.isnan(tensor).any()) else "infinite numbers"
            raise UserError(f"{name} in {where} has {what}: the model was damaged in training or in copying")


def check_overflow(tensors: Iterable[Tensor], where: str, model: nn.Module) -> None:
    """
    Args:
        tensors: what a part of the model computes.
        where: name of the part.
        model: the whole model.

    Raises:
        UserError: a tensor with a number that is not finite, though the parameters are. It names the largest of these.
    """
    if all(bool(tensor.isfinite().all()) for tensor in tensors):
        return
    sizes = {name: float(parameter.detach().abs().max()) for name, parameter in model.named_parameters()}
    largest = max(sizes, key=sizes.get)
    raise UserError(
        f"the numbers of {where} overflow; the parameter {largest} has the largest of the model, {sizes[largest]:.3g}: "
        "take another checkpoint"
    )


def _damaged_parameter(model: nn.Module) -> str | None:
    return next((name for name, parameter in model.named_parameters() if bool(parameter.isnan().any())), None)


def _reason(model: nn.Module, layer: str) -> str:
    dtype = next(model.parameters()).dtype
    name = str(dtype).removeprefix("torch.")
    if dtype == torch.float16:
        return f"from the layer {layer} on, whose numbers are too large for {name}: decode in float32 or bfloat16"
    return f"from the layer {layer} on, whose numbers are too large even for {name}: take another checkpoint"


def _first_overflow(model: nn.Module, net_input: dict, sentence: int, tokens: Tensor) -> str | None:
    """The first module whose output is not finite, in one forward pass over the whole hypothesis."""
    found: list[str] = []

    def look(name: str):
        def hook(module, inputs, output):
            if not found and not all(bool(tensor.isfinite().all()) for tensor in _tensors(output)):
                found.append(name or type(module).__name__)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    try:
        _read(model, net_input, sentence, tokens.unsqueeze(0))
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _read(model: nn.Module, net_input: dict, sentence: int, tokens: Tensor) -> None:
    if not hasattr(model, "encoder"):
        model(tokens)
        return
    source = {name: value[sentence : sentence + 1] for name, value in net_input.items() if torch.is_tensor(value)}
    model.decoder(tokens, encoder_out=model.encoder.forward_torchscript(source))


def _tensors(output) -> Iterable[Tensor]:
    """The floating-point tensors in the output of a module."""
    if torch.is_tensor(output):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)
