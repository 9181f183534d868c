"""The options of fairseq-generate that decide which hypotheses are found, and what values they take."""

import math
from collections.abc import Callable

from fairseq.dataclass.configs import GenerationConfig
from omegaconf import OmegaConf
from omegaconf.errors import ValidationError

from elseq.errors import UserError

# The others are about its files and its output.
SEARCH_OPTIONS = (
    "beam", "nbest", "lenpen", "unnormalized", "unkpen", "temperature", "no_repeat_ngram_size",
    "min_len", "max_len_a", "max_len_b", "match_source_len",
    "sampling", "sampling_topk", "sampling_topp",
    "diverse_beam_groups", "diverse_beam_strength", "diversity_rate",
)  # fmt: skip
Bounds = tuple[Callable[[float], bool], str]
_ABOVE_0: Bounds = (lambda value: value > 0, "a number above 0")
_FROM_0: Bounds = (lambda value: value >= 0, "0 or a number above it")
# Beside fairseq's default, which often is a number that means "no".
_BOUNDS: dict[str, Bounds] = {
    "beam": _ABOVE_0,
    "temperature": _ABOVE_0,
    "no_repeat_ngram_size": _FROM_0,
    "min_len": _FROM_0,
    "max_len_a": _FROM_0,
    "sampling_topk": _ABOVE_0,
    "sampling_topp": (lambda value: 0 < value <= 1, "a share above 0 and of at most 1"),
    "diverse_beam_groups": _ABOVE_0,
    "diverse_beam_strength": _FROM_0,
    "diversity_rate": _FROM_0,
}


def search_configuration(options: dict) -> GenerationConfig:
    """fairseq's options of generation, those given and the defaults of the others.

    Raises:
        UserError: an option that is not among `SEARCH_OPTIONS`, or a value that it does not take.
    """
    for name in options:
        if name not in SEARCH_OPTIONS:
            raise UserError(f"generate has no option {name!r}; it takes {', '.join(SEARCH_OPTIONS)}")
    cfg = OmegaConf.structured(GenerationConfig)
    for name, value in options.items():
        default = cfg[name]
        try:
            cfg[name] = value
        except ValidationError as error:
            raise UserError(f"{value!r} cannot be used: {str(error).splitlines()[0]}", name) from error
        _check_bounds(name, cfg[name], default)
    if not 1 <= cfg.nbest <= cfg.beam:
        raise UserError(f"{cfg.nbest} is not between 1 and the beam, {cfg.beam}; change either", "nbest")
    return cfg


def _check_bounds(name: str, value, default) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{value} is not a finite number", name)
    is_possible, words = _BOUNDS.get(name, (lambda value: True, ""))
    if value != default and not is_possible(value):
        raise UserError(f"{value} is not {words}; leave it out for the default, {default}", name)
