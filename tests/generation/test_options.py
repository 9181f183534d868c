"""Against fairseq's own command line."""

import numpy as np
import pytest
from fairseq import options
from fairseq.dataclass.configs import GenerationConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from elseq.errors import UserError, as_option
from elseq.generation.options import SEARCH_OPTIONS, STOPPING_OPTIONS, search_configuration

VALUES = {
    "beam": 7, "nbest": 3, "lenpen": 0.5, "unnormalized": True, "unkpen": -1.5, "temperature": 2.0,
    "no_repeat_ngram_size": 2, "min_len": 3, "max_len_a": 1.2, "max_len_b": 30, "match_source_len": True,
    "sampling": True, "sampling_topk": 4, "sampling_topp": 0.9,
    "diverse_beam_groups": 7, "diverse_beam_strength": 0.7, "diversity_rate": 0.3,
    "constraints": "unordered", "lm_weight": 0.2,
}  # fmt: skip


def test_the_same_as_on_the_command_line_of_fairseq():
    assert VALUES.keys() | set(STOPPING_OPTIONS) == set(SEARCH_OPTIONS)
    switches = [as_option(name) for name, value in VALUES.items() if value is True]
    values = [f"{as_option(name)}={value}" for name, value in VALUES.items() if value is not True]
    for given, arguments in (({}, []), (VALUES, [*switches, *values])):
        parsed = options.parse_args_and_arch(options.get_generation_parser(), ["data", "--path=model.pt", *arguments])
        expected = convert_namespace_to_omegaconf(parsed).generation
        found = search_configuration(given)
        for name in vars(GenerationConfig()):
            assert found[name] == expected[name], name


def test_numbers_of_numpy():
    given = {"beam": np.int64(3), "lenpen": np.float32(0.5), "sampling": np.True_}
    found = search_configuration(given)
    assert [found[name] for name in given] == [3, 0.5, True]


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"constraints": ["dog"]}, "constraints ['dog'] is not possible: give ordered or unordered, and the phrases"),
        ({"sampling": "maybe"}, "sampling 'maybe' is not possible: give True or False"),
        ({"lenpen": None}, "lenpen None is not possible: give a number"),
        ({"early_stopping": None}, "early_stopping None is not possible: give first or bound or never"),
        ({"bean": 3}, "generate has no option 'bean'; it takes beam, nbest, lenpen"),
        ({"early_stopping": "last"}, "early_stopping last is unknown; choose one of first, bound, never"),
        ({"beam_patience": -1.0}, "beam_patience -1.0 is not a number above 0 and of at most 1000"),
        ({"beam": "many"}, "beam 'many' is not possible: give a whole number"),
        ({"constraints": "${oc.env:HOME}"}, "constraints '${oc.env:HOME}' is not possible: give ordered or unordered"),
        ({"lenpen": "${oc.env:LENPEN}"}, "lenpen '${oc.env:LENPEN}' is not possible: give a number"),
        ({"early_stopping": "${"}, "early_stopping '${' is not possible: give first or bound or never"),
        ({"beam": "???"}, "beam '???' is not possible: give a whole number"),
        ({"lenpen": 10**400}, f"lenpen 1{'0' * 59} is not possible: give a number"),
        ({"lenpen": 400.0}, "lenpen 400.0 is not a number from -10 to 10; leave it out for the default, 1"),
        ({"nbest": 6}, "nbest 6 is not between 1 and the beam, 5; change either"),
        ({"nbest": 0}, "nbest 0 is not between 1 and the beam, 5; change either"),
    ],
)
def test_values_that_an_option_does_not_take(given, sentence):
    with pytest.raises(UserError) as raised:
        search_configuration(given)
    assert str(raised.value).startswith(sentence)
