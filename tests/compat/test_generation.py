import copy
import itertools
import math
import re
from argparse import Namespace

import pytest
import torch
from fairseq import scoring, search, utils
from fairseq.data import Dictionary
from fairseq.sequence_generator import SequenceGenerator, SequenceGeneratorWithAlignment
from fairseq.tasks import FairseqTask
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq.token_generation_constraints import pack_constraints

from elseq.compat.generation import replace_unk
from elseq.errors import UserError
from tests import helpers
from tests.tiny_models import assert_same_hypotheses, make_dictionary, make_models, make_sample, make_sources


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


def test_bleu_is_that_of_what_is_printed(without):
    dictionary = make_dictionary(9)
    texts = torch.IntTensor([0, 4, 5, 6, 2]), torch.IntTensor([0, 4, 5, 7, 2])

    def lengths():
        scorer = scoring.build_scorer("bleu", dictionary)
        scorer.add(*texts)
        return scorer.stat.reflen, scorer.stat.predlen, scorer.stat.match1

    assert lengths() == (3, 3, 2)
    without(scoring, "build_scorer")
    assert lengths() == (4, 4, 3)


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
        (b"a A\nb\n", "is no alignment dictionary: give two words per line in UTF-8"),
        (b"a \xf6\n", "is no alignment dictionary: give two words per line in UTF-8"),
    ],
)
def test_dictionary_of_replace_unk_that_cannot_be_used(tmp_path, content, sentence):
    path = tmp_path / "dictionary"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        utils.load_align_dict(str(path))
    assert str(raised.value) == f"--replace-unk {path} {sentence}"


STOCK_DIVERSE, STOCK_ALLOWED, STOCK_SAMPLING = (
    getattr(search, name).__base__ for name in ("DiverseBeamSearch", "PrefixConstrainedBeamSearch", "Sampling")
)


def diverse_steps(numbers, kind=search.DiverseBeamSearch, steps=3):
    """What diverse beam search chooses for two sentences with these numbers; the first is finished after two steps."""
    generator = torch.Generator().manual_seed(1)
    chooser = kind(Dictionary(), num_groups=2, diversity_strength=0.5)
    chosen = []
    for step in range(steps):
        rows = [0, 1] if step < 2 else [1]
        if step == 2:
            chooser.prune_sentences(torch.tensor([1]))
        log_probabilities = torch.rand(2, 4, 9, generator=generator).log_softmax(-1)[rows]
        scores = torch.zeros(2, 4, step)[rows]
        kept = None if numbers is None else torch.tensor(numbers)[rows]
        chosen.append(chooser.step(step, log_probabilities, scores, original_batch_idxs=kept))
    return chosen


def test_diverse_groups_do_not_depend_on_the_sentence_numbers():
    for there, here in zip(diverse_steps([0, 1]), diverse_steps([17, 5]), strict=True):
        for tensor, other in zip(there, here, strict=True):
            torch.testing.assert_close(tensor, other)
    with pytest.raises(IndexError):
        diverse_steps([17, 5], STOCK_DIVERSE)


def test_diverse_groups_choose_as_fairseq_until_something_ends():
    """Without end symbols among the candidates; fairseq's own order of hypotheses, and ours behind it."""
    generator = torch.Generator().manual_seed(1)
    choosers = [kind(Dictionary(), 3, 0.8, 0.3) for kind in (STOCK_DIVERSE, search.DiverseBeamSearch)]
    totals = torch.zeros(2, 6, 0)
    for step in range(4):
        log_probabilities = torch.rand(2, 6, 30, generator=generator).mul(5).log_softmax(-1)
        log_probabilities[:, :, Dictionary().eos()] = -math.inf
        there, here = (
            chooser.step(step, log_probabilities.clone(), totals, original_batch_idxs=torch.arange(2))
            for chooser in choosers
        )
        for tensor, other in zip(there, here, strict=True):
            torch.testing.assert_close(tensor, other[:, :6])
        totals = torch.cat((totals, there[0].unsqueeze(2)), dim=2)


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
        ({"beam": 0}, "--beam 0 is not a whole number above 0; leave it out for the default, 5"),
        ({"lenpen": math.nan}, "--lenpen nan is not a finite number"),
        ({"unkpen": -math.inf}, "--unkpen -inf is not a finite number"),
        ({"max_len_a": math.inf}, "--max-len-a inf is not a finite number"),
        ({"sampling": True, "sampling_topp": math.nan}, "--sampling-topp nan is not a finite number"),
        (
            {"diverse_beam_groups": 2, "diverse_beam_strength": math.nan},
            "--diverse-beam-strength nan is not a finite number",
        ),
        ({"lenpen": 400.0}, "--lenpen 400.0 is not a number from -10 to 10; leave it out for the default, 1.0"),
        ({"temperature": 0}, "--temperature 0 is not a number from 1e-06 to 1e+06; leave it out for the default, 1.0"),
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


@pytest.mark.parametrize(
    "strategy",
    [
        lambda dictionary: search.BeamSearch(dictionary),
        lambda dictionary: search.DiverseBeamSearch(dictionary, 2, 0.5),
        lambda dictionary: search.Sampling(dictionary, 3),
        lambda dictionary: search.Sampling(dictionary, -1, 0.8),
    ],
)
def test_searches_can_be_scripted(strategy):
    """Those that can be without elseq."""
    scripted, plain = torch.jit.script(strategy(make_dictionary(20))), strategy(make_dictionary(20))
    generator = torch.Generator().manual_seed(1)
    totals = torch.zeros(2, 4, 0)
    for step in range(3):
        log_probabilities = torch.rand(2, 4, 24, generator=generator).mul(5).log_softmax(-1)
        results = []
        for chooser in (scripted, plain):
            torch.manual_seed(step)
            results.append(chooser.step(step, log_probabilities.clone(), totals, None, torch.arange(2)))
        for tensor, other in zip(*results, strict=True):
            torch.testing.assert_close(tensor, other)
        totals = torch.cat((totals, -torch.rand(2, 4, 1, generator=generator)), dim=2)


@pytest.mark.parametrize("options", [{}, {"sampling_topk": 3}, {"sampling_topp": 0.5}], ids=str)
@pytest.mark.parametrize("step", [0, 1])
def test_nothing_left_to_draw(options, step):
    log_probabilities = torch.rand(2, 2, 9).log_softmax(-1)
    log_probabilities[1] = -math.inf
    totals = torch.tensor([[[-1.0], [-2.0]], [[-3.0], [-4.0]]])[:, :, :step]
    dictionary = Dictionary()
    scores, words, _ = search.Sampling(dictionary, **options).step(step, log_probabilities.clone(), totals)
    assert words[1].tolist() == [dictionary.eos()] * 2
    torch.testing.assert_close(scores[1], totals[1, :, 0] if step else torch.zeros(2))
    with pytest.raises(RuntimeError):
        STOCK_SAMPLING(dictionary, **options).step(step, log_probabilities.clone(), totals)


def test_what_is_left_is_drawn_as_before():
    log_probabilities = torch.rand(3, 4, 30).log_softmax(-1)
    results = []
    for kind in (STOCK_SAMPLING, search.Sampling):
        torch.manual_seed(1)
        results.append(kind(Dictionary()).step(1, log_probabilities.clone(), torch.zeros(3, 4, 1)))
    for tensor, other in zip(*results, strict=True):
        assert torch.equal(tensor, other)


def test_as_many_candidates_among_allowed_words_as_in_beam_search():
    """So that hypotheses that end are replaced."""
    dictionary = make_dictionary(20)
    log_probabilities, totals = torch.rand(2, 4, 24).log_softmax(-1), -torch.rand(2, 4, 1)
    tokens, numbers = torch.full((8, 2), 5), torch.arange(2)

    def candidates(kind):
        chooser = kind(dictionary, lambda sentence, words: range(24))
        return chooser.step(1, log_probabilities.clone(), totals, tokens, numbers)

    expected = search.BeamSearch(dictionary).step(1, log_probabilities.clone(), totals)
    for tensor, other in zip(candidates(search.PrefixConstrainedBeamSearch), expected, strict=True):
        assert torch.equal(tensor, other)
    assert candidates(STOCK_ALLOWED)[0].shape == (2, 4)


@pytest.fixture(scope="module")
def models():
    return {family: make_models(family, make_dictionary(20))["stock"] for family in ("transformer", "bart")}


def generate(model, beam_size=4, **options):
    dictionary = make_dictionary(20)
    sample = make_sample(dictionary, make_sources(dictionary, (3, 7, 1, 5)))
    kind = SequenceGenerator
    if options.pop("align", False):
        kind = SequenceGeneratorWithAlignment
    constraints = options.pop("constraints", None)
    generator = kind([model], dictionary, beam_size=beam_size, **{"max_len_b": 12, **options})
    return generator.generate([model], sample, constraints=constraints)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("family", ["transformer", "bart"])
def test_output_that_is_not_a_number(models, family, align, without):
    damaged = copy.deepcopy(models[family])
    damaged.decoder.layers[0].fc1.weight.data[2, 3] = math.nan
    with pytest.raises(UserError, match=r"decoder\.layers\.0\.fc1\.weight of the model is not a number \(NaN\)"):
        generate(damaged, align=align)
    large = copy.deepcopy(models[family])
    large.decoder.layers[0].fc1.bias.data.fill_(100.0)
    large.decoder.layers[0].fc2.weight.data.fill_(1e38)
    with pytest.raises(UserError, match=r"from the layer decoder\.layers\.0\.fc2 on"):
        generate(large, align=align)
    without(SequenceGeneratorWithAlignment if align else SequenceGenerator, "generate")
    with pytest.raises(AssertionError, match=r"12 < 12"):
        generate(damaged, align=align)


def test_output_that_is_not_a_number_is_never_drawn(models):
    damaged = copy.deepcopy(models["transformer"])
    damaged.decoder.layers[0].fc1.weight.data[2, 3] = math.nan
    with pytest.raises(UserError, match="not a number"):
        generate(damaged, search_strategy=search.Sampling(make_dictionary(20)))


@pytest.mark.parametrize(
    "options, sentence",
    [
        (
            {"min_len": 9, "max_len_b": 5},
            "--min-len 9 is more than a sentence may have by --max-len-a, --max-len-b and the model's positions: lower "
            "it, or raise those",
        ),
        (
            {
                "search_strategy": search.LexicallyConstrainedBeamSearch(make_dictionary(20), "ordered"),
                "constraints": pack_constraints([[torch.arange(5, 12)]] * 4),
                "max_len_b": 5,
            },
            "the search options or constraints leave a sentence no hypothesis that ends in time: relax them, or raise "
            "--max-len-b",
        ),
    ],
)
def test_assertions_of_the_search(models, options, sentence, without):
    with pytest.raises(UserError) as raised:
        generate(models["transformer"], **options)
    assert str(raised.value) == sentence
    without(SequenceGenerator, "generate")
    with pytest.raises(AssertionError):
        generate(models["transformer"], **options)


def test_alignments_of_fewer_hypotheses_than_the_beam(models, without):
    def find(align):
        words = [[torch.tensor([5])], [torch.arange(6, 10)], [], [torch.arange(7, 15)]]
        constrained = search.LexicallyConstrainedBeamSearch(make_dictionary(20), "ordered")
        return generate(
            models["transformer"], search_strategy=constrained, constraints=pack_constraints(words), align=align
        )

    plain, aligned = find(False), find(True)
    assert min(map(len, plain)) < max(map(len, plain)) == 4
    assert_same_hypotheses(aligned, plain)
    for hypothesis in itertools.chain(*aligned):
        assert len(hypothesis["alignment"]) == len(hypothesis["tokens"]) - 1
    without(SequenceGeneratorWithAlignment, "_prepare_batch_for_alignment")
    with pytest.raises(IndexError):
        find(True)


def test_assertions_of_a_model_stay(models, monkeypatch):
    def broken(*args, **kwargs):
        raise AssertionError("not fairseq's search")

    monkeypatch.setattr(models["transformer"].encoder, "forward", broken)
    with pytest.raises(AssertionError, match="not fairseq's search"):
        generate(models["transformer"])


def test_a_generator_with_a_smaller_beam_after_a_larger_one(models, without):
    expected = generate(copy.deepcopy(models["bart"]), beam_size=1)
    generate(models["bart"], beam_size=4)
    assert_same_hypotheses(generate(models["bart"], beam_size=1), expected)
    without(SequenceGenerator, "generate")
    generate(models["bart"], beam_size=4)
    with pytest.raises((AssertionError, RuntimeError)):  # other words, or a shape that does not fit
        assert_same_hypotheses(generate(models["bart"], beam_size=1), expected)


def test_the_generator_can_be_scripted(models):
    torch.jit.script(SequenceGenerator([models["transformer"]], make_dictionary(20), beam_size=2))


@pytest.mark.parametrize("options", ["--min-len=9 --max-len-b=5", "--max-len-b=0", "--match-source-len --min-len=30"])
def test_minimum_above_the_maximum_under_stock(tiny_translation, options):
    command = ["fairseq-generate", tiny_translation.data, "--path", tiny_translation.checkpoint, "--cpu"]
    result = helpers.run_here([*command, "--num-workers=0", *options.split()], check=False)
    sentence = (
        r"elseq: error: --min-len \d+ is more than a sentence may have by --max-len-a, --max-len-b and the model.*"
    )
    assert result.returncode == 1 and re.fullmatch(sentence, result.stderr.splitlines()[-1])
