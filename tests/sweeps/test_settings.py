import pytest
from omegaconf import OmegaConf

from elseq.errors import UserError
from elseq.sweeps.settings import search_options

NAMES = ("beam", "lenpen", "max_len_b")


@pytest.mark.parametrize(
    ("configuration", "expected"),
    [
        ({}, {}),
        ({"beam": 3, "lenpen": None, "batch": 8}, {"beam": 3}),
        ({"task": {"eval_bleu_args": '{"beam": 4, "lenpen": 0.6}'}}, {"beam": 4, "lenpen": 0.6}),
        ({"beam": 3, "task": {"eval_bleu_args": '{"beam": 4, "lenpen": 0.6}'}}, {"beam": 3, "lenpen": 0.6}),
        ({"max_len_b": 9, "task": {"eval_bleu_args": None}}, {"max_len_b": 9}),
    ],
)
def test_what_is_set_wins_over_the_group(configuration, expected):
    assert search_options(OmegaConf.create(configuration), NAMES) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"beam": 4, "iter": 3}', "^iter of the group decoding is no setting here: take another decoding, or none$"),
        ("{beam: 4}", "task.eval_bleu_args"),
        ("[4]", "task.eval_bleu_args"),
    ],
)
def test_groups_that_cannot_be_used(text, sentence):
    with pytest.raises(UserError, match=sentence):
        search_options(OmegaConf.create({"task": {"eval_bleu_args": text}}), NAMES)
