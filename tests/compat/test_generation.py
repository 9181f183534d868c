import re
from argparse import Namespace

import pytest
import torch
from fairseq import search, utils
from fairseq.data import Dictionary
from fairseq.tasks import FairseqTask
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from elseq.compat.generation import replace_unk
from elseq.errors import UserError
from tests import helpers
from tests.tiny_models import make_dictionary, make_models


@pytest.mark.parametrize(
    "hypothesis, alignment, expected",
    [
        ("x <unk> y", [(0, 0), (2, 1), (1, 2)], "x c y"),
        ("<unk> <unk>", [(1, 0)], "b <unk>"),
        ("<unk>", [(3, 0)], "<unk>"),  # the end of the sentence
        ("<unk>", [(-1, 0)], "<unk>"),
        ("<unk> <unk>", [2, 0], "c A"),
        ("<unk>", torch.tensor([1]), "b"),
        ("<unk>", [], "<unk>"),
        ("<unk>", torch.empty(0), "<unk>"),
        ("", [], ""),
        ("x", [(0, 0)], "x"),
    ],
)
def test_unknown_words_take_their_source_word(hypothesis, alignment, expected):
    assert replace_unk(hypothesis, "a b c", alignment, {"a": "A"}, "<unk>") == expected
    assert utils.replace_unk is replace_unk


def test_replace_unk_without_a_dictionary(without, tmp_path):
    (tmp_path / "dictionary").write_text("a A\n")
    assert utils.load_align_dict(str(tmp_path / "dictionary")) == {"a": "A"}
    assert utils.load_align_dict("@@ ") == {}
    without(utils, "load_align_dict")
    with pytest.raises(FileNotFoundError):
        utils.load_align_dict("@@ ")


@pytest.mark.parametrize(
    "content, sentence",
    [
        (None, "cannot be read (No such file or directory): check the path"),
        (b"a A\nb\n", "is no alignment dictionary: give two words a line, in UTF-8"),
        (b"a \xf6\n", "is no alignment dictionary: give two words a line, in UTF-8"),
    ],
)
def test_dictionary_of_replace_unk_that_cannot_be_used(tmp_path, content, sentence):
    path = tmp_path / "dictionary"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        utils.load_align_dict(str(path))
    assert str(raised.value) == f"--replace-unk {path} {sentence}"


def diverse_steps(numbers, steps=3):
    """What diverse beam search chooses for two sentences with these numbers; the second is finished after one step."""
    generator = torch.Generator().manual_seed(1)
    chooser = search.DiverseBeamSearch(Dictionary(), num_groups=2, diversity_strength=0.5)
    chosen = []
    for step in range(steps):
        rows = [0, 1] if step < 2 else [1]
        log_probabilities = torch.rand(2, 4, 9, generator=generator).log_softmax(-1)[rows]
        scores = torch.zeros(2, 4, step)[rows]
        kept = None if numbers is None else torch.tensor(numbers)[rows]
        chosen.append(chooser.step(step, log_probabilities, scores, original_batch_idxs=kept))
    return chosen


def test_diverse_groups_do_not_depend_on_the_sentence_numbers(without):
    for there, here in zip(diverse_steps([0, 1]), diverse_steps([17, 5]), strict=True):
        for tensor, other in zip(there, here, strict=True):
            torch.testing.assert_close(tensor, other)
    without(search.DiverseBeamSearch, "step")
    with pytest.raises(IndexError):
        diverse_steps([17, 5])


@pytest.fixture(scope="module")
def build_generator():
    """Of a stock task, which knows nothing of elseq."""
    dictionary = make_dictionary(20)
    task = TranslationTask(TranslationConfig(), dictionary, dictionary)
    model = make_models("transformer", dictionary)["stock"]
    return lambda **options: task.build_generator([model], Namespace(**options))


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"sampling_topk": 3}, "--sampling-topk requires --sampling"),
        ({"sampling_topp": 0.5}, "--sampling-topp requires --sampling"),
        (
            {"sampling": True, "sampling_topk": 25},
            "--sampling-topk 25 is more than the dictionary's 24 words: lower it",
        ),
        (
            {"sampling": True, "diverse_beam_groups": 5},
            "--sampling and --diverse-beam-groups exclude each other: give only one of them",
        ),
        (
            {"sampling": True, "constraints": "ordered"},
            "--sampling and --constraints exclude each other: give only one of them",
        ),
        (
            {"diverse_beam_groups": 2, "beam": 5},
            "--beam 5 cannot be divided into --diverse-beam-groups 2: give a multiple of it",
        ),
        ({"beam": 0}, "--beam 0 is no number of hypotheses; give 1 or more"),
        ({"temperature": 0}, "--temperature must be greater than 0"),
        ({"print_step": True}, "--print-step is for models that refine their output iteratively: leave it out"),
        (
            {"retain_iter_history": True, "score_reference": True},
            "--retain-iter-history is for models that refine their output iteratively: leave it out",
        ),
    ],
    ids=str,
)
def test_search_options_that_do_not_go_together(build_generator, options, sentence, without):
    with pytest.raises(UserError) as raised:
        build_generator(**options)
    assert str(raised.value) == sentence
    without(FairseqTask, "build_generator")
    try:
        build_generator(**options)  # in fairseq some mistakes are noticed only later
    except Exception as error:
        assert not isinstance(error, UserError)


@pytest.mark.parametrize(
    "options, strategy",
    [
        ({}, search.BeamSearch),
        ({"beam": 6, "diverse_beam_groups": 3}, search.DiverseBeamSearch),
        ({"sampling": True, "sampling_topk": 24}, search.Sampling),
        ({"constraints": "unordered"}, search.LexicallyConstrainedBeamSearch),
    ],
    ids=str,
)
def test_search_options_that_do(build_generator, options, strategy):
    assert type(build_generator(**options).search) is strategy


def test_constraints_of_which_there_are_none(without):
    constrained = search.LexicallyConstrainedBeamSearch(Dictionary(), "ordered")
    constrained.init_constraints(torch.zeros(2, 1, dtype=torch.long), 3)
    with pytest.raises(UserError, match="--constraints needs lines with constraints"):
        constrained.init_constraints(None, 3)
    without(search.LexicallyConstrainedBeamSearch, "init_constraints")
    with pytest.raises(TypeError):
        constrained.init_constraints(None, 3)


@pytest.mark.parametrize("options", ["--min-len=9 --max-len-b=5", "--max-len-b=0", "--match-source-len --min-len=30"])
def test_minimum_above_the_maximum_under_stock(tiny_translation, options):
    command = ["fairseq-generate", tiny_translation.data, "--path", tiny_translation.checkpoint, "--cpu"]
    result = helpers.run_here([*command, "--num-workers=0", *options.split()], check=False)
    sentence = (
        r"elseq: error: --min-len \d+ is more than a sentence may have by --max-len-a, --max-len-b and the model.*"
    )
    assert result.returncode == 1 and re.fullmatch(sentence, result.stderr.splitlines()[-1])
