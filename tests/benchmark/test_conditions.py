from argparse import Namespace

import torch

import elseq
from elseq.benchmark.conditions import Conditions, read_conditions

GIVEN = {"dtype": "bfloat16", "device": "cpu", "threads": 3, "repeats": 5}


def test_what_runs_and_results_are_told():
    conditions = Conditions(**read_conditions(Namespace(**GIVEN, output="folder")))
    assert conditions.conditions() == GIVEN
    environment = conditions.environment()
    assert GIVEN.items() <= environment.items()
    assert (environment["torch"], environment["elseq"]) == (torch.__version__, elseq.__version__)
    assert environment["fairseq"] == "0.12.3.1"


def test_as_many_threads_as_torch_has():
    assert read_conditions(Namespace(**GIVEN | {"threads": None}))["threads"] == torch.get_num_threads()
