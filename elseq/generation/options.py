"""The options of a search that decide which hypotheses are found, and what values they take."""

from dataclasses import dataclass

from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.configs import GenerationConfig
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from elseq.bounds import check_bounds, of_python
from elseq.compat.settings import is_replaced
from elseq.errors import UserError
from elseq.generation.stopping import Stopping
from elseq.models.config import option
from elseq.options import CONSTRAINTS, FIRST, RULES, SEARCH_OPTIONS, Search, help_of

STOPPING_OPTIONS = ("early_stopping", "beam_patience")


# By the type of the default: `constraints` alone has none.
_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: " or ".join(RULES),
    type(None): f"{' or '.join(CONSTRAINTS)}, and the phrases after each text, behind tabs",
}


@dataclass
class StoppingConfig(FairseqDataclass):
    """When beam search ends; see `elseq.generation.stopping.Stopping`."""

    early_stopping: str = option(help_of(Search, "early_stopping"), FIRST)
    beam_patience: float = option(help_of(Search, "beam_patience"), 1.0)


@dataclass
class SearchConfig(GenerationConfig, StoppingConfig):
    """fairseq's options of generation, and ours."""


def search_configuration(options: dict) -> SearchConfig:
    """The options of generation, those given and the defaults of the others.

    Raises:
        UserError: an option that is not among `SEARCH_OPTIONS`, or a value that it does not take.
    """
    for name in options:
        if name not in SEARCH_OPTIONS:
            raise UserError(f"generate has no option {name!r}; it takes {', '.join(SEARCH_OPTIONS)}")
    cfg = OmegaConf.structured(SearchConfig)
    for name, value in options.items():
        default = cfg[name]
        try:
            if is_replaced(value):
                raise ValidationError("an interpolation, or the sign of a missing value")
            cfg[name] = of_python(value)
        except (OmegaConfBaseException, OverflowError) as error:
            raise UserError(f"{value!r:.60} is not possible: give {_KINDS[type(default)]}", name) from error
        check_bounds(name, cfg[name], default)
    Stopping(cfg.early_stopping, cfg.beam_patience)
    if not 1 <= cfg.nbest <= cfg.beam:
        raise UserError(f"{cfg.nbest} is not between 1 and the beam, {cfg.beam}; change either", "nbest")
    return cfg
