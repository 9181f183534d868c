"""Reading and checking the configurations of all families."""

import reprlib
import sys

from torch import Tensor

from elseq.errors import UserError, as_option

# Hugging Face's names of the activation functions that fairseq has, and fairseq's names.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_accurate",
    "gelu_fast": "gelu_accurate",
    "gelu_pytorch_tanh": "gelu_accurate",
    "gelu_python_tanh": "gelu_accurate",
    "gelu_accurate": "gelu_accurate",
    "gelu_python": "gelu",
    "relu": "relu",
    "tanh": "tanh",
    "linear": "linear",
    "silu": "swish",
    "swish": "swish",
}
# Back: the first name of each, and fairseq's old name for the second.
HUGGING_FACE_ACTIVATIONS = {theirs: ours for ours, theirs in reversed(ACTIVATIONS.items())} | {"gelu_fast": "gelu_new"}
_LISTED = 4  # names in a note
# Options of all families that no fairseq model has: sizes of single layers, and other configuration files.
_FEATURES = {"per_layer_config": None, "configuration_files": None}
# Options of fairseq's Transformers that none of Hugging Face's models has.
_NONE_HAS = {
    "no_token_positional_embeddings": False,
    "adaptive_input": False,
    "adaptive_softmax_cutoff": None,
    "decoder_layers_to_keep": None,
    "quant_noise_pq": 0,
    "scale_fc": False,
    "scale_attn": False,
    "scale_heads": False,
    "scale_resids": False,
}


def complete(config: dict, defaults: dict, aliases: dict[str, str]) -> dict:
    """config.json as transformers reads it: with defaults, and with the names of the class.

    Args:
        config: the content of the file.
        defaults: the defaults of the options that matter.
        aliases: {alias: name of the option}. As in transformers, the alias takes precedence.

    Raises:
        UserError: an option of a wrong type, or quantized weights.
    """
    if config.get("quantization_config"):
        raise UserError("config.json has a quantization_config: give the model that was quantized, not its small copy")
    spelt = {name: alias for alias, name in aliases.items() if alias in config}
    complete = defaults | config | {name: config[alias] for name, alias in spelt.items()}
    for name, default in defaults.items():
        wanted = _wanted(name, complete[name], default)
        if wanted is not None:
            value = shown(complete[name])
            raise UserError(f"config.json has {spelt.get(name, name)}: {value}, where {wanted} is needed")
    return complete


def _wanted(name: str, value, default) -> str | None:
    """The kind of value that an option must have, or None if it has one."""
    if name.endswith("_token_id"):
        is_right = type(value) is int or (value is None and name != "eos_token_id")
        return None if is_right else "a whole number"
    if type(default) is bool:
        return None if type(value) is bool else "true or false"
    if type(default) is int or (default is None and value is not None):
        return None if type(value) is int and value >= 1 else "a whole number above 0"
    if type(default) is float:
        if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
            return "a finite number"
        return None if 0 <= value <= 1 else "a number from 0 to 1"
    return None


def said(given: dict, config: dict, name: str, aliases: dict[str, str]) -> str:
    """An option as config.json has it.

    Args:
        given, config: config.json as it is, and complete.
        name: the option's.
        aliases: as of `complete`.
    """
    names = (alias for alias, its_name in aliases.items() if its_name == name and alias in given)
    return f"{next(names, name)}: {config[name]}"


def what_is_left_out(config: dict, tensors: dict[str, Tensor], unknown: list[str]) -> list[str]:
    """
    Args:
        config: complete.
        tensors: the weights.
        unknown: the names of tensors without a place in the model.

    Returns:
        Notes on these, and on options, that the converted model does not have.
    """
    notes = []
    if unknown:
        more = f" and {len(unknown) - _LISTED} more" if len(unknown) > _LISTED else ""
        names = ", ".join(unknown[:_LISTED])
        notes.append(f"tensors that no output of the model depends on are left out: {names}{more}")
    kinds = {str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items() if name not in unknown}
    kind = config.get("dtype") or config.get("torch_dtype")  # the name since transformers 5, and that of before
    if isinstance(kind, str) and kinds != {kind}:
        notes.append(f"the weights stay in {' and '.join(sorted(kinds))}, where config.json has {shown(kind)}")
    return notes


def shown(value) -> str:
    """A value of a file, as a sentence can have it."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


def check_features(config: dict, required: dict) -> None:
    """
    Raises:
        UserError: a feature that fairseq's model does not have. One that is missing is not used.
    """
    for name, value in (required | _FEATURES).items():
        if config.get(name, value) != value and (value is not None or config[name]):
            raise UserError(f"config.json has {name}: {shown(config[name])}, which fairseq's model does not have")


def check_heads(config: dict, width: str, heads: str) -> None:
    """
    Raises:
        UserError: a width, named as in config.json, that is not a multiple of the number of heads.
    """
    if config[width] % config[heads]:
        raise UserError(f"config.json has {width}: {config[width]}, which {heads}: {config[heads]} does not divide")


def activation(name: str) -> str:
    """fairseq's name.

    Raises:
        UserError: one that fairseq does not have.
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UserError(f"config.json has activation_function: {shown(name)}; fairseq has {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def check_expressible(configuration: dict, required: dict, model: str) -> None:
    """
    Args:
        configuration: of a fairseq model.
        required: the options of fairseq that describe Hugging Face's model, beside those that none of its models has.
        model: the name of Hugging Face's model.

    Raises:
        UserError: the configuration has other options.
    """
    for name, value in (required | _NONE_HAS).items():
        # None, 0, "" and False all stand for an option that was not given
        if (configuration.get(name) or None) != (value or None):
            option = f"{as_option(name)} {configuration.get(name)}"
            raise UserError(f"Hugging Face's {model} cannot be this model, which has {option}, where it has {value}")
    if configuration["activation_fn"] not in HUGGING_FACE_ACTIVATIONS:
        raise UserError(f"Hugging Face's {model} does not have the activation {configuration['activation_fn']}")
