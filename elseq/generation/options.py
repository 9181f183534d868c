"""The options of fairseq-generate that decide which hypotheses are found, and what values they take."""

from fairseq.dataclass.configs import GenerationConfig
from omegaconf import OmegaConf
from omegaconf.errors import ValidationError

from elseq.bounds import check_bounds
from elseq.errors import UserError

# The others are about its files and its output.
SEARCH_OPTIONS = (
    "beam", "nbest", "lenpen", "unnormalized", "unkpen", "temperature", "no_repeat_ngram_size",
    "min_len", "max_len_a", "max_len_b", "match_source_len",
    "sampling", "sampling_topk", "sampling_topp",
    "diverse_beam_groups", "diverse_beam_strength", "diversity_rate",
)  # fmt: skip


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
        check_bounds(name, cfg[name], default)
    if not 1 <= cfg.nbest <= cfg.beam:
        raise UserError(f"{cfg.nbest} is not between 1 and the beam, {cfg.beam}; change either", "nbest")
    return cfg
