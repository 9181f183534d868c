"""What both models' configurations are read and checked by."""

import sys

from elseq.errors import UserError

# Hugging Face's names of the activation functions that fairseq has, and fairseq's names.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_accurate",
    "gelu_fast": "gelu_accurate",
    "gelu_pytorch_tanh": "gelu_accurate",
    "relu": "relu",
    "tanh": "tanh",
    "linear": "linear",
}
# Back: the first name of each, and fairseq's old name for the second.
HUGGING_FACE_ACTIVATIONS = {theirs: ours for ours, theirs in reversed(ACTIVATIONS.items())} | {"gelu_fast": "gelu_new"}
# Options of fairseq's Transformers that neither of Hugging Face's models has.
_NEITHER_HAS = {
    "no_token_positional_embeddings": False,
    "adaptive_input": False,
    "adaptive_softmax_cutoff": None,
    "decoder_layers_to_keep": None,
    "scale_fc": False,
    "scale_attn": False,
    "scale_heads": False,
    "scale_resids": False,
}


def complete(config: dict, defaults: dict) -> dict:
    """config.json, with what transformers takes where one of the options that matter is missing.

    Raises:
        UserError: an option of a wrong type, or quantized weights.
    """
    if config.get("quantization_config"):
        raise UserError("config.json has a quantization_config: give the model that was quantized, not its small copy")
    complete = defaults | config
    for name, default in defaults.items():
        value = complete[name]
        is_size = type(default) is int and not name.endswith("_token_id")
        is_symbol = name == "eos_token_id" or (name in ("bos_token_id", "pad_token_id") and value is not None)
        wanted = None
        if is_size and (type(value) is not int or value < 1):
            wanted = "a whole number above 0"
        elif is_symbol and type(value) is not int:
            wanted = "a whole number"
        elif type(default) is float and (type(value) not in (int, float) or not abs(value) <= sys.float_info.max):
            wanted = "a finite number"
        if wanted is not None:
            raise UserError(f"config.json has {name}: {value!r}, where {wanted} is needed")
    return complete


def check_features(config: dict, required: dict) -> None:
    """
    Raises:
        UserError: a feature that fairseq's model does not have. One that is missing is not used.
    """
    for name, value in required.items():
        if config.get(name, value) != value:
            raise UserError(f"config.json has {name}: {config[name]!r}, which fairseq's model does not have")


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
        raise UserError(f"config.json has activation_function: {name!r}; fairseq has {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def check_expressible(configuration: dict, required: dict, model: str) -> None:
    """
    Args:
        configuration: of a fairseq model.
        required: what Hugging Face's model is, in the options of fairseq, beside what neither model has.
        model: its name.

    Raises:
        UserError: the model is another.
    """
    for name, value in (required | _NEITHER_HAS).items():
        # None, 0, "" and False all stand for an option that was not given
        if (configuration.get(name) or None) != (value or None):
            option = f"--{name.replace('_', '-')} {configuration.get(name)}"
            raise UserError(f"Hugging Face's {model} cannot be this model, which has {option}, where it has {value}")
    if configuration["activation_fn"] not in HUGGING_FACE_ACTIVATIONS:
        raise UserError(f"Hugging Face's {model} does not have the activation {configuration['activation_fn']}")
