"""elseq.load: text in, text out."""

import contextlib
import copy
import functools
import math
import pickle
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from functools import partial

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.sequence_generator import SequenceGenerator
from fairseq.sequence_scorer import SequenceScorer

import elseq
from elseq import encoded_texts, generator, native
from elseq.errors import UserError
from elseq.generation import captured_steps, cuda_graphs, kept_steps, steppers
from elseq.generation.options import search_configuration
from elseq.generator import Hypothesis
from elseq.precision.linear import DecodingLinear
from elseq.subwords.pieces import Sentencepiece
from tests import helpers
from tests.generating import SEARCH, stock, texts_of  # noqa: F401
from tests.subwords.test_pieces import train


def generated(data, path, *options):
    """The best hypotheses of fairseq-generate, in the order of the test set."""
    command = ["fairseq-generate", data, "--path", path, *options, "--cpu", "--num-workers=0"]
    best = re.findall(r"^H-(\d+)\t.*\t(.*)$", helpers.run_here(command).stdout, re.MULTILINE)
    return [text for _, text in sorted(best, key=lambda line: int(line[0]))]


@pytest.fixture(scope="module")
def translator(tiny_translation):
    return elseq.load(tiny_translation.checkpoint, attention="el", data=tiny_translation.data)


@pytest.fixture(scope="module")
def lines(tiny_translation):
    source = tiny_translation.raw / "test.src"
    return source.read_text(encoding="utf-8").splitlines()[:6]


@pytest.mark.parametrize("attention", ["auto", "kv", "stock"])
def test_every_method_says_the_same(tiny_translation, translator, lines, attention):
    other = elseq.load(tiny_translation.checkpoint, attention=attention, data=tiny_translation.data)
    assert other.generate(lines, beam=3) == translator.generate(lines, beam=3)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda translator: pickle.loads(pickle.dumps(translator))])
@pytest.mark.parametrize("dtype", [None, "int8"])
def test_copies(tiny_translation, lines, copied, dtype):
    """Also for another process, and of a translator that has been used."""
    translator = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data, dtype=dtype)
    before = copied(translator)
    found = translator.generate(lines, beam=3)
    assert copied(translator).generate(lines, beam=3) == before.generate(lines, beam=3) == found


@contextlib.contextmanager
def defaults(dtype="float32", device=None):
    """Of torch, as a program may set them."""
    torch.set_default_dtype(getattr(torch, dtype))
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [None, "int8"])
@pytest.mark.parametrize(
    "context", [torch.inference_mode, partial(defaults, "bfloat16"), partial(defaults, device="meta")]
)
def test_what_the_program_around_it_has_set(tiny_translation, lines, context, dtype):
    """`meta` stands for a GPU."""
    load = partial(elseq.load, tiny_translation.checkpoint, "kv", data=tiny_translation.data, dtype=dtype)

    def found(translator):
        return translator.generate(lines, beam=3, return_scores=True), translator.score(lines, lines)

    expected = found(load())
    with context():
        translator = load()
        assert found(translator) == expected
        copied = copy.deepcopy(translator)
    assert found(copied) == found(translator) == expected


def test_what_is_left_to_the_program_around_it(tiny_translation, lines):
    """Logging, and the start method of processes. There are no warnings, which may be errors there."""
    program = (
        "import elseq, logging, multiprocessing, sys; multiprocessing.set_start_method('spawn'); "
        "checkpoint, data, line = sys.argv[1:]; found = elseq.load(checkpoint, data=data).generate([line]); "
        "print(len(found), logging.root.level == logging.WARNING, logging.root.handlers)"
    )
    place = tiny_translation.checkpoint, tiny_translation.data
    ended = helpers.run(["python", "-W", "error", "-c", program, *place, lines[0]])
    assert (ended.stdout.decode(), ended.stderr.decode()) == ("1 True []\n", "")


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_search_that_is_interrupted_as_it_begins(tiny_translation, lines, monkeypatch, dtype):
    """The model is prepared for later searches, and only for these, as if it had not been."""
    translator = elseq.load(tiny_translation.checkpoint, "el", data=tiny_translation.data, dtype=dtype)
    expected = translator.generate(lines, beam=3, return_scores=True)
    layers = [module for module in translator.model.modules() if isinstance(module, DecodingLinear)]
    with monkeypatch.context() as patch:
        prepared = []

        def take(linear, *_):
            prepared.append(linear)
            if len(prepared) == len(layers) // 2:
                raise KeyboardInterrupt

        patch.setattr(DecodingLinear, "take", take)
        with pytest.raises(KeyboardInterrupt):
            translator.generate(lines)
    assert {layer.decoding.searches for layer in layers} == {0}
    assert translator.generate(lines, beam=3, return_scores=True) == expected


def test_order_and_blank_texts_are_kept(translator, lines):
    texts = [lines[0], "", *lines[1:], "  "]
    found = translator.generate(iter(texts), beam=2, max_tokens=20)
    assert found[1] == found[-1] == ""
    assert [found[0], *found[2:-1]] == [translator.generate([line], beam=2)[0] for line in lines]
    assert translator.generate([]) == []


def test_captured_steps_are_kept_during_a_call(translator, lines, monkeypatch):
    """And not beyond. They are captured as on a GPU, but for the graph."""
    expected, held = translator.generate(lines * 3), []
    monkeypatch.setattr(captured_steps, "CapturedWork", lambda device: HeldWork(held))
    monkeypatch.setattr(steppers, "can_capture", lambda decoder, max_length, positions: True)
    monkeypatch.setattr(kept_steps, "can_keep", lambda device: True)
    assert translator.generate(lines * 3, max_tokens=40) == expected
    assert len(held) > 3 and all(held)
    assert not cuda_graphs.held_bytes()
    held.clear()
    assert translator.generate(lines * 3, memory_budget="8M") == expected
    assert held and not any(held)


class HeldWork:
    """Work that is not captured, and what is held as it is done."""

    is_captured = has_failed = False

    def __init__(self, held):
        self.held = held

    def __call__(self, work):
        self.held.append(cuda_graphs.held_bytes())
        work()


def test_several_hypotheses(translator, lines):
    found = translator.generate(lines[:2], beam=3, nbest=2)
    assert [len(hypotheses) for hypotheses in found] == [2, 2]
    assert [hypotheses[0] for hypotheses in found] == translator.generate(lines[:2], beam=3)


@pytest.mark.few_cases(2)
@pytest.mark.parametrize("attention", ["kv", "el", "stock"])
def test_scores_of_stock_fairseq(tiny_translation, stock, attention):  # noqa: F811
    model = elseq.load(tiny_translation.checkpoint, attention, data=tiny_translation.data)
    texts = texts_of(tiny_translation)
    options = {**SEARCH, "nbest": 3, "max_tokens": 1 if attention == "stock" else 40}
    found = model.generate(texts, return_scores=True, **options)
    strings = model.generate(texts, **options)
    assert [[each.text for each in hypotheses] for hypotheses in found] == strings
    for index, (text, hypotheses) in enumerate(zip(texts, found, strict=True)):
        if not text.strip():
            assert hypotheses == [Hypothesis("", 0.0, (), ())]
            continue
        for hypothesis, reference in zip(hypotheses, stock.found[index], strict=True):
            assert list(hypothesis.tokens) == [stock.dictionary[token] for token in reference["tokens"].tolist()]
            assert hypothesis.score == pytest.approx(reference["score"].item(), abs=1e-4)
            assert list(hypothesis.log_probs) == pytest.approx(reference["positional_scores"].tolist(), abs=1e-4)
    best = model.generate(texts, return_scores=True, **options | {"nbest": 1})
    assert [each.text for each in best] == [hypotheses[0] for hypotheses in strings]
    assert [each.tokens for each in best] == [hypotheses[0].tokens for hypotheses in found]


def test_a_hypothesis_is_a_value(translator, lines):
    """It does not hold the memory of a batch, and two of the same are equal."""
    one, other = (translator.generate(lines[:1], return_scores=True)[0] for _ in range(2))
    assert one == other and hash(one) == hash(other)
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(FrozenInstanceError):
        one.score = 0.0


def test_the_type_of_the_parameters(tiny_translation, lines):
    model = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data, dtype=torch.float64)
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.float64}
    assert len(model.generate(lines)) == len(lines)


@pytest.mark.few_cases(2)
@pytest.mark.parametrize("attention", ["kv", "el", "stock"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_parameters_are_float32_unless_something_else_is_said(tiny_translation, lines, tmp_path, dtype, attention):
    """Those of a checkpoint in half precision, too, as in fairseq-generate without --fp16."""
    state = torch.load(tiny_translation.checkpoint)
    state["model"] = {name: tensor.to(dtype) for name, tensor in state["model"].items()}
    torch.save(state, tmp_path / "model.pt")
    wide = elseq.load(tmp_path / "model.pt", attention, data=tiny_translation.data)
    narrow = elseq.load(tmp_path / "model.pt", attention, data=tiny_translation.data, dtype=dtype)
    for model, kind in ((wide, torch.float32), (narrow, dtype)):
        assert {parameter.dtype for parameter in model.model.parameters()} == {kind}
    search = {"beam": 3, "no_repeat_ngram_size": 2, "min_len": 2}
    found, expected = (each.generate(lines, **search) for each in (narrow, wide))
    # the last digits decide now and then
    assert sum(one == other for one, other in zip(found, expected, strict=True)) >= len(lines) - 1


@pytest.mark.parametrize(
    "texts, options, sentence",
    [
        ("one text", {}, "was given one string"),
        ([3], {}, "text 0 is of type int"),
        (["a"], {"beams": 3}, "no option 'beams'"),
        (None, {}, "^generate takes a list of texts and was given None$"),
        ({"a": 1}, {}, "^generate takes a list of texts and was given {'a': 1}$"),
        (np.array("a"), {}, "^generate takes a list of texts and was given array\\('a', "),
        (["a", "b"], {"prefixes": "ab"}, "^generate takes a list of prefixes and was given one string; put it into a"),
        (["a"], {"prefixes": 5}, "^generate takes a list of prefixes and was given 5$"),
        (["a", "b"], {"prefixes": ["c", 2]}, "^prefix 1 is of type int; give strings$"),
        (["a", "b\ud800"], {}, r"^text 1 holds half a character \(the lone surrogate \\ud800\): decode it as UTF-8$"),
        (
            ["a"],
            {"memory_budget": ""},
            "^memory_budget '' is not a size in bytes above 0; give one such as 16G or 800M$",
        ),
        (["a", "b"], {"prefixes": [None, "c"]}, "^prefix 0 is of type NoneType; give strings$"),
        (["a"], {"source_lang": 5}, "^source_lang 5 is no string: give the code of a language, or one for each text$"),
        (["a"], {"target_lang": [["en"]]}, r"^target_lang \['en'\] is no string: give the code"),
        (["a"], {"source_lang": ""}, "^source_lang is for a multilingual model: leave it out$"),
        (["a"], {"beam": 0}, "^beam 0 is not a whole number above 0; leave it out for the default, 5$"),
        (["a"], {"lenpen": math.nan}, "^lenpen nan is not a finite number$"),
        (["a"], {"lenpen": -10.5}, "^lenpen -10.5 is not a number from -10 to 10; leave it out for the default, 1.0$"),
        (["a"], {"unkpen": math.inf}, "^unkpen inf is not a finite number$"),
        (["a"], {"temperature": 1e-7}, "^temperature 1e-07 is not a number from 1e-06 to 1e.06; "),
        (["a"], {"max_len_a": 1e300}, "^max_len_a 1e.300 is not a number from 0 to 1e.06; leave it out"),
        (["a"], {"max_len_b": 10**10}, "^max_len_b a whole number of 11 digits is too large; lower it$"),
        (["a"], {"beam": "five"}, "^beam 'five' is not possible: give a whole number$"),
        (["a"], {"beam": 2, "nbest": 3}, "^nbest 3 is not between 1 and the beam, 2; change either$"),
        (["a"], {"sampling_topk": 3}, "^sampling_topk requires sampling$"),
        (["a"], {"sampling_topp": 0.5}, "^sampling_topp requires sampling$"),
        (
            ["a"],
            {"sampling": True, "match_source_len": True},
            "^sampling and match_source_len exclude each other: give only one of them$",
        ),
        (["a"], {"sampling": True, "sampling_topk": 9999}, "^sampling_topk 9999 is more than the dictionary's"),
        (["a"], {"lenpen": math.nan}, "^lenpen nan is not a finite number$"),
        (["a"], {"lenpen": math.inf}, "^lenpen inf is not a finite number$"),
        (["a"], {"unkpen": -math.inf}, "^unkpen -inf is not a finite number$"),
        (["a"], {"temperature": math.nan}, "^temperature nan is not a finite number$"),
        (
            ["a"],
            {"temperature": 0},
            "^temperature 0.0 is not a number from 1e-06 to 1e.06; leave it out",
        ),
        (["a"], {"no_repeat_ngram_size": -3}, "^no_repeat_ngram_size -3 is not 0 or a number above it; leave it out"),
        (["a"], {"min_len": -1}, "^min_len -1 is not 0 or a number above it"),
        (["a"], {"max_len_a": -1}, "^max_len_a -1.0 is not a number from 0 to 1e.06; "),
        (["a"], {"sampling": True, "sampling_topk": 0}, "^sampling_topk 0 is not a whole number above 0"),
        (["a"], {"sampling": True, "sampling_topp": 1.5}, "^sampling_topp 1.5 is not a share above 0 and of at most 1"),
        (["a"], {"sampling": True, "sampling_topp": 0}, "^sampling_topp 0.0 is not a share"),
        (["a"], {"diverse_beam_groups": 0}, "^diverse_beam_groups 0 is not a whole number above 0"),
        (["a"], {"diverse_beam_strength": -1}, "^diverse_beam_strength -1.0 is not a number from 0 to 1e.06; "),
        (["a"], {"diversity_rate": -2}, "^diversity_rate -2.0 is not a number from 0 to 1e.06; "),
        (["a"], {"max_tokens": 0}, "^max_tokens 0 is not a whole number above 0$"),
        (["a"], {"max_tokens": "4096"}, "^max_tokens '4096' is not a whole number above 0$"),
        (["a"], {"max_tokens": True}, "^max_tokens True is not a whole number above 0$"),
        (["a"], {"truncate": "no"}, "^truncate 'no' is not possible: give True or False$"),
        (["a"], {"return_scores": 1}, "^return_scores 1 is not possible: give True or False$"),
        (["a"], {"progress": 0}, "^progress 0 is not possible: give True or False$"),
        (["a"], {"seed": True}, "^seed True is not possible: give a whole number$"),
        (["a"], {"max_tokens": None}, "^max_tokens None is not a whole number above 0$"),
        (
            ["a"],
            {"beam": 5, "diverse_beam_groups": 2},
            "^beam 5 cannot be divided into diverse_beam_groups 2: give a multiple of it$",
        ),
        (
            ["a"],
            {"constraints": "some"},
            "^constraints 'some' is not possible: give ordered or unordered, and the phrases after each text, ",
        ),
        (["a"], {"prefix_size": 1}, "no option 'prefix_size'"),
        (["a"], {"replace_unk": "@@ "}, "no option 'replace_unk'"),
        (["a"], {"print_alignment": "hard"}, "no option 'print_alignment'"),
        (["a " * 2000], {}, "text 0 has 2001 tokens"),
    ],
)
def test_bad_input(translator, texts, options, sentence):
    with pytest.raises(UserError, match=sentence):
        translator.generate(texts, **options)


def test_warnings_name_no_options_of_a_command(translator, caplog):
    assert all(translator.generate(["a", "w1 w2"], max_len_b=0))
    assert "the minimum length, 1, is more than the maximum length, 0; such hypotheses have 1 tokens" in caplog.text
    assert "--" not in caplog.text


def test_files_of_another_kind_of_subwords(tiny_translation):
    with pytest.raises(UserError, match="^bpe_codes .* does not go with bpe gpt2: leave out one$"):
        names = ("bpe_codes", "gpt2_encoder_json", "gpt2_vocab_bpe")
        elseq.load(tiny_translation.checkpoint, bpe="gpt2", **dict.fromkeys(names, __file__))


def test_a_minimum_above_the_maximum_for_fairseq_s_model(tiny_translation):
    translator = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data, attention="stock")
    with pytest.raises(UserError, match="^min_len 9 is more than a sentence may have by max_len_a, max_len_b and the"):
        translator.generate(["a"], min_len=9, max_len_b=3)


def test_numbers_that_mean_no(translator, lines):
    """fairseq's own defaults may be given."""
    none = {"sampling_topk": -1, "sampling_topp": -1.0, "diverse_beam_groups": -1, "diversity_rate": -1}
    assert translator.generate(lines, no_repeat_ngram_size=0, **none) == translator.generate(lines)


def test_a_long_text_can_be_cut(translator):
    assert len(translator.generate(["a " * 2000], truncate=True, max_len_b=5)) == 1


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"path": None}, "^path None is no path; give one$"),
        ({"data": 3}, "^data 3 is no path; give one$"),
        ({"attention": "fast"}, "^attention fast is unknown"),
        ({"source_lang": "xx", "target_lang": "tgt"}, "^source_lang xx does not name a dictionary, dict.xx.txt, in "),
        ({"source_lang": "xx", "target_lang": "tgt"}, ": give one of src, tgt$"),
        ({"target_lang": "yy"}, "^target_lang yy does not name a dictionary, dict.yy.txt, in "),
        ({"data": "/"}, "^data / holds no dictionary .dict.*.txt.; name another folder$"),
        ({"device": "gpu"}, "^device 'gpu' cannot be used; there is cpu"),
        ({"device": "cuda:99"}, "^device 'cuda:99' cannot be used; there is cpu"),
        (
            {"dtype": "float31"},
            "^dtype 'float31' cannot be used; give one of float32, float16, bfloat16, float64, int8$",
        ),
        ({"dtype": torch.int8}, "^dtype torch.int8 cannot be used"),
        ({"dtype": [1]}, r"^dtype \[1\] cannot be used"),
        ({"force_bos": "always"}, "^force_bos 'always' is not possible: give yes or no$"),
        ({"prepend_source_bos": [1]}, r"^prepend_source_bos \[1\] is not possible: give yes or no$"),
        ({"bpe": ["gpt2"]}, r"^bpe \['gpt2'\] is unknown; choose one of "),
        (
            {"apply_top_k_in": "${oc.env:HOME}"},
            r"^apply_top_k_in '\$\{oc.env:HOME\}' is not possible: give one without ",
        ),
        ({"apply_top_k": "???"}, r"^apply_top_k '\?\?\?' is not possible: give one without "),
        ({"apply_top_k": -1}, "^apply_top_k -1 is not possible: give 1 or more, or 0 for all$"),
        ({"apply_top_k": "4"}, "^apply_top_k 4 is not possible"),
        ({"apply_top_k": True}, "^apply_top_k True is not possible: give 1 or more, or 0 for all$"),
        ({"apply_ffn_top_k": False}, "^apply_ffn_top_k False is not possible"),
        ({"apply_top_k": 4, "apply_top_k_in": "middle"}, "^apply_top_k_in middle is unknown; choose one of encoder, "),
        ({"apply_top_k": 4, "apply_top_k_in": ["cross"]}, "^apply_top_k_in .'cross'. is not possible: give names with"),
        ({"apply_top_k_in": "cross"}, "^apply_top_k_in cross says where the k largest scores count, and there is no k"),
        ({"apply_ffn_top_k": 4, "attention": "stock"}, "^apply_ffn_top_k does not go with stock"),
        ({"source_window": 65}, "^source_window 65 is more than the encoder's 64 positions: give these or fewer$"),
        (
            {"source_window": 20, "source_window_overlap": 20},
            "^source_window_overlap 20 does not go with windows of 20",
        ),
        ({"source_window": "20"}, "^source_window 20 is not possible: give a number$"),
        ({"source_window": True}, "^source_window True is not possible: give a number$"),
        ({"source_window": 20, "source_window_overlap": False}, "^source_window_overlap False is not possible: give a"),
        ({"long_input": "yes"}, "^long_input 'yes' is not possible: give True or False$"),
        ({"long_input": 1}, "^long_input 1 is not possible: give True or False$"),
        ({"long_input": True, "apply_top_k": -1}, "^apply_top_k -1 is not possible"),
        ({"long_input": True, "attention": "stock"}, "^long_input does not go with stock"),
    ],
)
def test_what_cannot_be_loaded(tiny_translation, options, sentence):
    with pytest.raises(UserError, match=sentence):
        elseq.load(**{"path": tiny_translation.checkpoint, "data": tiny_translation.data, **options})


def test_a_method_that_the_model_does_not_have(tiny_translation, tmp_path):
    state = torch.load(tiny_translation.checkpoint)
    state["cfg"]["model"].no_cross_attention = state["cfg"]["model"].cross_self_attention = True
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UserError, match="^attention el cannot decode this model, because it uses joint .*; use stock$"):
        elseq.load(tmp_path / "model.pt", attention="el", data=tiny_translation.data)


@pytest.mark.parametrize("attention", ["kv", "el"])
def test_top_k(tiny_translation, translator, lines, attention):
    """As fairseq-generate applies it."""
    many = elseq.load(
        tiny_translation.checkpoint, attention, data=tiny_translation.data, apply_top_k=100, apply_ffn_top_k=64
    )
    assert many.generate(lines, beam=4) == translator.generate(lines, beam=4)
    few = {"apply_top_k": 2, "apply_top_k_in": "encoder,cross", "apply_ffn_top_k": 10}
    model = elseq.load(tiny_translation.checkpoint, attention, data=tiny_translation.data, **few)
    found = model.generate(lines, beam=4)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in few.items()]
    task = ["--task=elseq_translation", "--decode-attention", attention, "--user-dir", helpers.USER_DIR]
    expected = generated(tiny_translation.data, tiny_translation.checkpoint, "--beam=4", *options, *task)
    assert found == expected[: len(lines)]
    assert found != translator.generate(lines, beam=4)


@pytest.mark.skipif(native.library() is None, reason="not compiled, or no AVX2")
def test_int8_does_not_depend_on_the_batch(tiny_bart):
    """Not by a bit: what rounds to another number of int8 would be another one."""
    model = elseq.load(tiny_bart.checkpoint, "kv", data=tiny_bart.data, dtype="int8", device="cpu")
    texts = [" ".join(f"w{number % 20}" for number in range(first, 2 * first)) for first in range(1, 30)]
    together = model.generate(texts, beam=3, return_scores=True)
    assert together == model.generate(texts, beam=3, return_scores=True, max_tokens=30)


# --- sources of any length

LONG = ["w1 " * 150 + "w2", "w3 w4 w5", " ".join(f"w{number % 9}" for number in range(200))]  # of 64 positions


@pytest.mark.few_cases(4)
@pytest.mark.parametrize("family", ["translation", "bart"])
@pytest.mark.parametrize("attention", ["kv", "el"])
@pytest.mark.parametrize(
    "options",
    [
        {"long_input": True},
        {"long_input": True, "apply_top_k": 3},
        {"source_window": 20, "source_window_overlap": 3},
        {"source_window": 64},
    ],
    ids=str,
)
def test_sources_of_any_length(family, attention, options, request, tmp_path):
    """As fairseq-interactive decodes them, whatever stands in the batch."""
    trained = request.getfixturevalue(f"tiny_{family}")
    model = elseq.load(trained.checkpoint, attention, data=trained.data, **options)
    found = model.generate(LONG, beam=3)
    assert found == [model.generate([text], beam=3)[0] for text in LONG]
    (tmp_path / "input").write_text("\n".join(LONG) + "\n")
    command = ["fairseq-interactive", trained.data, "--path", trained.checkpoint, "--beam=3", "--max-tokens=4000"]
    command += ["--source-lang=src", "--target-lang=tgt", "--buffer-size=5", "--input", tmp_path / "input"]
    command += [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in options.items()
    ]
    task = ["--task=elseq_translation", "--decode-attention", attention, "--user-dir", helpers.USER_DIR]
    log = helpers.run_here([*command, *task, "--cpu"]).stdout
    assert found == re.findall(r"^D-\d+\t.*?\t(.*)$", log, re.MULTILINE)


def test_windows_matter_to_long_sources_only(tiny_translation):
    load = functools.partial(elseq.load, tiny_translation.checkpoint, "el", data=tiny_translation.data)
    plain, windows = load(), load(long_input=True)
    short = [text for text in LONG if len(text.split()) < 64]
    assert windows.generate(short, return_scores=True) == plain.generate(short, return_scores=True)
    with pytest.raises(
        UserError,
        match="^text 0 has 152 tokens and the model takes 64; shorten it or set truncate=True or load the "
        "model with long_input=True$",
    ):
        plain.generate(LONG)
    truncated = plain.generate(LONG, truncate=True, return_scores=True)
    assert windows.generate(LONG, return_scores=True)[2] != truncated[2]


def test_scores_of_long_sources(tiny_translation):
    model = elseq.load(tiny_translation.checkpoint, "kv", data=tiny_translation.data, long_input=True, apply_top_k=0)
    found = model.generate(LONG, return_scores=True, lenpen=0, beam=4)
    scores = model.score(LONG, [each.text for each in found])
    assert [each.score for each in scores] == pytest.approx([each.score for each in found], abs=1e-4)


def test_k_of_long_sources(tiny_translation):
    """It replaces that of the attention to the source, and leaves the self-attention as it is."""
    load = functools.partial(elseq.load, tiny_translation.checkpoint, "kv", data=tiny_translation.data, apply_top_k=3)
    targets = ["w1 w2 w3 w4 w5 w6 w7 w8"] * len(LONG)
    found, cross, everywhere = (
        load(**options).score(LONG, targets)
        for options in (
            {"long_input": True},
            {"long_input": True, "apply_top_k_in": "cross"},
            {"long_input": True, "apply_top_k_in": "encoder,decoder,cross"},
        )
    )
    assert found == cross and found != everywhere
    short = LONG[1:2], targets[:1]
    assert load().score(*short) == load(apply_top_k_in="encoder,decoder,cross").score(*short)


def test_a_language_model_has_no_windows(tiny_language_model):
    with pytest.raises(UserError, match="^long_input is for a model with an encoder: a language model has one row of"):
        elseq.load(tiny_language_model.checkpoint, data=tiny_language_model.data, long_input=True)


def test_a_source_that_does_not_fit_the_budget(tiny_translation):
    model = elseq.load(tiny_translation.checkpoint, "el", data=tiny_translation.data, long_input=True)
    with pytest.raises(UserError, match="^text 0 alone needs about [0-9.]+ MiB of memory and the budget is 1.0 MiB"):
        model.generate(["w1 " * 20000], memory_budget="1M")


def test_paths_may_begin_at_home(tiny_translation, translator, lines, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").symlink_to(tiny_translation.data)
    (tmp_path / "model.pt").symlink_to(tiny_translation.checkpoint)
    assert elseq.load("~/model.pt", data="~/data").generate(lines) == translator.generate(lines)


def test_a_checkpoint_that_is_missing_or_does_not_fit(tiny_translation, tmp_path):
    """In the words of fairseq-generate."""
    path, data = tmp_path / "model.pt", tiny_translation.data
    with pytest.raises(UserError) as raised:
        elseq.load(path, data=data)
    assert str(raised.value) == f"checkpoint {path} cannot be read (No such file or directory): check the path"
    state = torch.load(tiny_translation.checkpoint)
    del state["model"]["encoder.layers.1.fc1.weight"]
    torch.save(state, path)
    with pytest.raises(UserError) as raised:
        elseq.load(path, data=data)
    command = ["fairseq-generate", data, "--path", path, "--task=elseq_translation", "--cpu", "--num-workers=0"]
    result = helpers.run_here(command, check=False)
    assert result.stderr.endswith(f"elseq: error: {raised.value}\n")
    assert "--save-dir" not in str(raised.value)


def test_options_that_change_the_search(translator, lines):
    diverse = translator.generate(lines, beam=4, nbest=4, diverse_beam_groups=2)
    assert diverse != translator.generate(lines, beam=4, nbest=4)
    sampled = [translator.generate(lines, sampling=True, temperature=3, seed=seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


@pytest.mark.parametrize("attention", ["kv", "stock"])
def test_a_seed_is_for_one_call(attention, tiny_translation, lines):
    translator = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data, attention=attention)
    sample = partial(translator.generate, lines, sampling=True, temperature=3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    seeded = sample(seed=1)
    assert torch.get_rng_state().equal(before)
    unseeded = [sample() for _ in range(2)]
    assert unseeded[0] != unseeded[1] and not torch.get_rng_state().equal(before)
    torch.manual_seed(5)
    assert [sample() for _ in range(2)] == unseeded
    assert sample(seed=1) == seeded


def test_a_seed_is_for_sampling(translator, lines, monkeypatch):
    """A beam search seeds nothing, which with fairseq's would be torch's own numbers, and other threads draw these."""
    monkeypatch.setattr(encoded_texts, "seeded", None)
    assert translator.generate(lines, seed=1) == translator.generate(lines)


def test_seeds_in_several_threads(translator, lines):
    sample = partial(translator.generate, lines, sampling=True, temperature=3)
    seeds = [1, 2, None] * 6
    expected = {seed: sample(seed=seed) for seed in (1, 2)}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: sample(seed=seed), seeds))
    assert all(each == expected[seed] for each, seed in zip(found, seeds, strict=True) if seed is not None)


def test_what_one_batch_draws_depends_on_no_other(translator, lines):
    """So that a run which goes on later draws the same."""
    options = {"sampling": True, "temperature": 3, "seed": 1, "beam": 2}
    alone = [translator.generate([*[""] * number, line], **options)[-1] for number, line in enumerate(lines)]
    assert translator.generate(lines, max_tokens=1, **options) == alone


def test_a_memory_budget(translator, lines):
    assert translator.generate(lines, memory_budget="500K") == translator.generate(lines)
    with pytest.raises(UserError, match="^text 2 alone needs about .* and the budget is 2.0 KiB: raise it$"):
        longest = max(lines, key=len)
        translator.generate(["w1", "", longest], memory_budget=2048)


def test_a_batch_that_runs_out_of_memory_is_split(translator, lines, monkeypatch):
    expected = translator.generate(lines, beam=2, nbest=2)
    decode = type(translator).decode
    sizes = []

    def short(self, search, sources):
        sizes.append(len(sources))
        if len(sources) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return decode(self, search, sources)

    monkeypatch.setattr(type(translator), "decode", short)
    assert translator.generate(lines, beam=2, nbest=2) == expected
    assert sizes == [6, 3, 2, 1, 2, 1]


def test_half_a_subword_vocabulary(tiny_translation, tmp_path):
    data = shutil.copytree(tiny_translation.data, tmp_path / "data")
    (data / "vocab.bpe").write_text("")
    with pytest.raises(UserError, match="has vocab.bpe but no encoder.json; the subwords need both: copy it there$"):
        elseq.load(tiny_translation.checkpoint, data=data)


@pytest.mark.parametrize("attention", ["stock", "auto"])
def test_beams_of_several_sizes(tiny_bart, lines, attention, monkeypatch):
    expected = {}
    for beam in (1, 4, 2):
        expected[beam] = elseq.load(tiny_bart.checkpoint, attention=attention).generate(lines, beam=beam)
    model = elseq.load(tiny_bart.checkpoint, attention=attention)
    for beam in (4, 1, 2, 1):
        assert model.generate(lines, beam=beam) == expected[beam]
    if attention == "stock":
        # two repairs wrap it
        monkeypatch.setattr(SequenceGenerator, "generate", SequenceGenerator.generate.__wrapped__.__wrapped__)
        model.generate(lines, beam=4)
        with pytest.raises(RuntimeError):
            model.generate(lines, beam=1)


@pytest.mark.parametrize("attention", ["stock", "auto"])
def test_training_is_refused(tiny_translation, attention):
    model = elseq.load(tiny_translation.checkpoint, attention=attention).model
    assert model.eval() is model and model.train(False) is model
    with pytest.raises(
        UserError, match="^a model of elseq.load generates and cannot be trained: continue from its check"
    ):
        model.train()


@pytest.mark.parametrize("kind, count", [("subword_nmt", ""), ("fastbpe", " 1")])
def test_codes(tiny_translation, tmp_path, kind, count):
    pytest.importorskip("subword_nmt")
    data = shutil.copytree(tiny_translation.data, tmp_path / "data")
    for path in data.glob("dict.*.txt"):
        path.write_text(re.sub(r"^w1 ", "w1@@ ", path.read_text(), flags=re.MULTILINE))
    codes = tmp_path / "codes"
    codes.write_text("".join(f"{pair}{count}\n" for pair in ("w 1", "w 2</w>")))
    if kind == "subword_nmt":
        codes.write_text(f"#version: 0.2\n{codes.read_text()}")
    model = elseq.load(tiny_translation.checkpoint, data=data, bpe=kind, bpe_codes=codes)
    search = model.make_search(search_configuration({}))
    tokens, _ = model.encode("w1w2 w2", search, "text 0", False, "")
    dictionary = model.task.source_dictionary
    assert tokens.tolist() == [*map(dictionary.index, ("w1@@", "w2", "w2")), dictionary.eos()]
    assert model.text(tokens) == "w1w2 w2"


def test_codes_that_are_half_given(tiny_translation):
    load = functools.partial(elseq.load, tiny_translation.checkpoint, data=tiny_translation.data)
    with pytest.raises(UserError, match="^bpe_codes is missing: name the file of the codes of fastbpe$"):
        load(bpe="fastbpe")
    with pytest.raises(UserError, match="^bpe is missing: say whose codes they are, subword_nmt or fastbpe$"):
        load(bpe_codes="codes")
    with pytest.raises(
        UserError, match="^bpe 'nmt' is unknown; choose one of subword_nmt, fastbpe, sentencepiece, gpt2, hugging_face$"
    ):
        load(bpe="nmt", bpe_codes="codes")


def test_subwords_of_a_kind_that_elseq_does_not_have(tiny_translation, tmp_path, monkeypatch):
    """They are not taken for those of another kind in the folder."""
    state = torch.load(tiny_translation.checkpoint)
    state["cfg"]["bpe"] = {"_name": "byte_bpe"}
    torch.save(state, tmp_path / "model.pt")
    elseq.load(tmp_path / "model.pt", data=tiny_translation.data)  # for texts in pieces of the dictionary
    monkeypatch.setattr(generator, "find_subwords", lambda *_: object())
    sentence = (
        "model.pt was trained with --bpe byte_bpe, which elseq does not have: .* name the kind of the files by bpe$"
    )
    with pytest.raises(UserError, match=sentence):
        elseq.load(tmp_path / "model.pt", data=tiny_translation.data)


# --- what is forced


@pytest.mark.few_cases(2)
@pytest.mark.parametrize("attention", ["auto", "stock"])
@pytest.mark.parametrize("kind", ["translation", "bart"])
def test_prefixes(request, kind, attention):
    """As fairseq-generate --prefix-size has them, whose prefixes are those of the references."""
    trained = request.getfixturevalue(f"tiny_{kind}")
    size = 2 + (kind == "bart")  # its targets begin with <s>
    options = ["--task=elseq_translation", f"--decode-attention={attention}", f"--prefix-size={size}", "--beam=3"]
    expected = generated(trained.data, trained.checkpoint, *options, "--max-len-b=20")
    lines = (trained.raw / "test.src").read_text().splitlines()
    references = (trained.raw / "test.tgt").read_text().splitlines()
    prefixes = [" ".join(line.split()[:2]) for line in references]
    model = elseq.load(trained.checkpoint, attention, data=trained.data)
    found = model.generate(lines, prefixes=prefixes, beam=3, max_len_b=20)
    assert found == expected
    assert all(text.startswith(prefix) for text, prefix in zip(found, prefixes, strict=True))
    free = model.generate(lines, beam=3, max_len_b=20)
    assert found != free
    some = [prefix * (number % 2) for number, prefix in enumerate(prefixes)]
    mixed = [(expected if number % 2 else free)[number] for number in range(len(lines))]
    if attention != "stock":  # whose limit is that of the batch
        assert model.generate([*lines, ""], prefixes=[*some, "w1"], beam=3, max_len_b=20) == [*mixed, ""]


def test_prefixes_behind_a_symbol(tiny_bart):
    """Its targets begin with <s>, which counts, and which a prefix may have or not."""
    model = elseq.load(tiny_bart.checkpoint, "kv", data=tiny_bart.data)
    lines, prefixes, options = ["w1 w2", "w3", "w5"], ["<s> w1", "w2 w3", ""], {"beam": 2, "max_len_b": 6}
    alone = [model.generate([line], prefixes=[each], **options)[0] for line, each in zip(lines, prefixes, strict=True)]
    assert model.generate(lines, prefixes=prefixes, **options) == alone
    assert alone[0] == model.generate(lines[:1], prefixes=["w1"], **options)[0]
    assert model.generate(["w1"], prefixes=["w1 w2"], max_len_b=3)[0].endswith("w1 w2")
    with pytest.raises(UserError, match="^prefix 0 has 3 tokens and its output may have 2: shorten it$"):
        model.generate(["w1"], prefixes=["w1 w2 w3"], max_len_b=3)
    longest = model.task.max_positions()[1] - 2
    filled = model.generate(["w1"], prefixes=[" ".join(["w1"] * longest)], max_len_b=10_000)
    assert filled[0].split().count("w1") == longest
    with pytest.raises(UserError, match=f"^prefix 0 has {longest + 1} tokens and its output may have {longest}: "):
        model.generate(["w1"], prefixes=[" ".join(["w1"] * (longest + 1))], max_len_b=10_000)


def test_prefixes_that_cannot_be(tiny_translation, translator, tiny_language_model):
    with pytest.raises(UserError, match="^prefixes has 2 texts for 1 sources: give one for each$"):
        translator.generate(["w1"], prefixes=["w1", "w2"])
    with pytest.raises(UserError, match="^prefix 1 has 4 tokens and its output may have 3: shorten it$"):
        translator.generate(["w1", "w2"], prefixes=["w1 w1 w1", "w1 w1 w1 w1"], max_len_b=3)
    # There is room for as many words as the output may have.
    assert translator.generate(["w1"], prefixes=["w1 w1 w1"], max_len_b=3) == ["w1 w1 w1"]
    model = elseq.load(tiny_language_model.checkpoint, data=tiny_language_model.data)
    with pytest.raises(UserError, match="^prefixes are for models with an encoder: add them to the prompts of a"):
        model.generate(["w1"], prefixes=["w1"])


@pytest.mark.few_cases(2)
@pytest.mark.parametrize("attention", ["auto", "stock"])
@pytest.mark.parametrize("order", ["ordered", "unordered"])
def test_constraints(tiny_translation, attention, order, tmp_path):
    """As fairseq-interactive has them, in the same lines."""
    lines = (tiny_translation.raw / "test.src").read_text().splitlines()[:8]
    phrases = ["w3", "w7 w8\tw3", "", "w1\tw2 w2", "w19 w1", "w4", "w5\tw6\tw7", ""]
    texts = [f"{line}\t{phrase}" if phrase else line for line, phrase in zip(lines, phrases, strict=True)]
    (tmp_path / "texts").write_text("".join(f"{text}\n" for text in texts))
    files = [
        "--path",
        tiny_translation.checkpoint,
        "--input",
        tmp_path / "texts",
        "--buffer-size=8",
        "--max-tokens=999",
    ]
    options = [
        "--task=translation",
        "-s=src",
        "-t=tgt",
        f"--constraints={order}",
        "--beam=4",
        "--max-len-b=30",
        "--cpu",
    ]
    log = helpers.run_here(["fairseq-interactive", tiny_translation.data, *files, *options, "--cpu"]).stdout
    expected = re.findall(r"^H-\d+\t.*\t(.*)$", log, re.MULTILINE)
    model = elseq.load(tiny_translation.checkpoint, attention, data=tiny_translation.data)
    found = model.generate([*texts, ""], constraints=order, beam=4, max_len_b=30)
    assert found == [*expected, ""]
    assert all(phrase in text for line, text in zip(phrases, expected, strict=True) for phrase in line.split("\t"))
    assert model.generate(texts, beam=4, max_len_b=30) != expected


def test_constraints_of_a_language_model(tiny_language_model):
    model = elseq.load(tiny_language_model.checkpoint, data=tiny_language_model.data)
    with pytest.raises(UserError, match="^constraints ordered is for models with an encoder: leave it out$"):
        model.generate(["w1"], constraints="ordered")


# --- fusion with a language model


@pytest.mark.few_cases(2)
@pytest.mark.parametrize("attention, beam", [("auto", 3), ("el", 1), ("stock", 3)])
def test_fusion(tiny_translation, fused, attention, beam):
    """As fairseq-generate has it."""
    data, path = fused
    options = ["--task=translation", f"--beam={beam}", "--max-len-b=20", "--lm-path", path, "--lm-weight=0.5"]
    expected = generated(data, tiny_translation.checkpoint, *options)
    lines = (tiny_translation.raw / "test.src").read_text().splitlines()
    model = elseq.load(tiny_translation.checkpoint, attention, data=data, lm_path=path)
    assert model.generate(lines, beam=beam, max_len_b=20, lm_weight=0.5) == expected
    free = elseq.load(tiny_translation.checkpoint, attention, data=data).generate(lines, beam=beam, max_len_b=20)
    assert model.generate(lines, beam=beam, max_len_b=20) == free != expected
    assert model.make_search(search_configuration({})).max_len == 40  # the language model's positions


def test_fusion_that_cannot_be(tiny_translation, translator, tiny_language_model):
    with pytest.raises(UserError, match="^lm_weight 0.5 needs a language model, and none is loaded: name one$"):
        translator.generate(["w1"], lm_weight=0.5)
    with pytest.raises(UserError, match="^lm_path .*.pt is no language model: give one$"):
        elseq.load(tiny_translation.checkpoint, data=tiny_translation.data, lm_path=tiny_translation.checkpoint)
    other = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data, lm_path=tiny_language_model.checkpoint)
    with pytest.raises(UserError, match="^lm_path names a language model with a dictionary of its own .32 words"):
        other.generate(["w1"], lm_weight=0.5)


# --- ensembles


@pytest.fixture(scope="module")
def other_translation(translation_data, tmp_path_factory):
    save_dir = tmp_path_factory.mktemp("other")
    return helpers.train("transformer", translation_data, save_dir, "--seed=2", "--max-update=60")


@pytest.mark.few_cases(2)
@pytest.mark.parametrize("attention, beam", [("auto", 3), ("el", 1), ("stock", 3)])
def test_an_ensemble(tiny_translation, other_translation, attention, beam):
    """As fairseq-generate has it."""
    paths = f"{tiny_translation.checkpoint}:{other_translation}"
    expected = generated(tiny_translation.data, paths, "--task=translation", f"--beam={beam}", "--max-len-b=20")
    lines = (tiny_translation.raw / "test.src").read_text().splitlines()
    ensemble = elseq.load(paths, attention, data=tiny_translation.data)
    assert ensemble.generate(lines, beam=beam, max_len_b=20) == expected
    alone = [elseq.load(path, data=tiny_translation.data) for path in paths.split(":")]
    assert all(model.generate(lines, beam=beam, max_len_b=20) != expected for model in alone)
    if attention != "stock":
        assert ensemble.generate(lines, beam=beam, max_len_b=20, memory_budget="400K") == expected


def test_what_is_no_ensemble(tiny_translation, tiny_language_model, tiny_bart, tmp_path):
    first = tmp_path / "first"
    first.mkdir()
    shutil.copy(tiny_translation.checkpoint, first / "model.pt")
    for name in ("dict.src.txt", "dict.tgt.txt"):
        shutil.copy(tiny_translation.data / name, first)
    other = shutil.copytree(first, tmp_path / "other")
    for path in other.glob("dict.*.txt"):
        path.write_text(path.read_text().replace("w1 ", "v1 "))
    sentence = f"^{other}/model.pt and {first}/model.pt are no ensemble: {{}}; give one of them$"
    words = (first / "dict.src.txt").read_text().splitlines()
    place = [word.partition(" ")[0] for word in words].index("w1") + 1
    difference = f"word {place} of {other}/dict.src.txt is 'v1', and of {first}/dict.src.txt 'w1'"
    with pytest.raises(UserError, match=sentence.format(difference)):
        elseq.load(f"{first}:{other}")
    shutil.copy(first / "dict.src.txt", other)
    (other / "dict.tgt.txt").write_text((first / "dict.tgt.txt").read_text() + "more 1\n")
    size = len((first / "dict.tgt.txt").read_text().splitlines())
    difference = f"{other}/dict.tgt.txt has {size + 1} words, and {first}/dict.tgt.txt {size}"
    with pytest.raises(UserError, match=sentence.format(difference)):
        elseq.load(f"{first}:{other}")
    for trained, reason in (
        (tiny_language_model, "one is a language model"),
        (tiny_bart, "their texts have different symbols"),
    ):
        with pytest.raises(UserError, match=f"are no ensemble: {reason}; give one of them$"):
            elseq.load(f"{first}:{trained.checkpoint}")


@pytest.mark.parametrize(
    "kind, setting, value",
    [
        ("tiny_translation", "source_end", "w1"),
        ("tiny_translation", "decoder_start", "w1"),
        ("tiny_language_model", "add_bos_token", True),
    ],
)
def test_models_of_other_symbols_are_no_ensemble(kind, setting, value, tmp_path, request):
    trained, changed = request.getfixturevalue(kind), tmp_path / "model.pt"
    state = torch.load(trained.checkpoint)
    state["cfg"]["task"][setting] = value
    torch.save(state, changed)
    for paths in (f"{trained.checkpoint}:{changed}", f"{changed}:{trained.checkpoint}"):
        with pytest.raises(UserError, match="are no ensemble: their texts have different symbols; give one of them$"):
            elseq.load(paths, data=trained.data)
    elseq.load(f"{changed}:{changed}", data=trained.data)


def test_the_end_symbol_is_the_default_start(tiny_translation, lines, tmp_path):
    state = torch.load(tiny_translation.checkpoint)
    state["cfg"]["task"]["decoder_start"] = "</s>"
    torch.save(state, tmp_path / "model.pt")
    ensemble = elseq.load(f"{tiny_translation.checkpoint}:{tmp_path / 'model.pt'}", data=tiny_translation.data)
    alone = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data)
    assert ensemble.generate(lines) == alone.generate(lines)


def test_many_names_of_checkpoints(tiny_translation, tmp_path):
    """Together they are longer than a name of a file may be."""
    paths = ":".join(f"checkpoint{number}.pt" for number in range(20))
    with pytest.raises(UserError, match="^checkpoint checkpoint0.pt cannot be read"):
        elseq.load(paths)


@pytest.mark.parametrize("option", ["path", "data", "source_lang", "bpe_codes"])
def test_a_name_that_is_too_long_for_a_file(option, tiny_translation):
    given = {"path": tiny_translation.checkpoint, "data": tiny_translation.data, "bpe": "fastbpe", option: "x" * 300}
    if option != "bpe_codes":
        del given["bpe"]
    with pytest.raises(UserError, match="x{300}"):
        elseq.load(**given)


@pytest.mark.parametrize("word, expected", [("▁in", " in"), ("in", "in")])
def test_white_space_before_a_continuation(tiny_language_model, word, expected, tmp_path):
    """sentencepiece takes it from the start of a text, and a continuation is none."""
    model = elseq.load(tiny_language_model.checkpoint, data=tiny_language_model.data)
    model.bpe = Sentencepiece(train(tmp_path / "a.model"))
    model.task.dictionary.symbols[5] = word
    assert model.text(torch.tensor([5, 2])) == expected


@pytest.fixture(params=["tiny_translation", "tiny_bart", "tiny_language_model"])
def trained(request):
    return request.getfixturevalue(request.param)


@pytest.mark.few_cases(4)
@pytest.mark.parametrize("attention", ["auto", "kv", "el", "stock"])
def test_the_score_of_what_is_generated(trained, lines, attention):
    """That of the search, with the symbols that the task puts before lines, prompts and targets."""
    model = elseq.load(trained.checkpoint, attention, data=trained.data)
    # fairseq's own search shortens the outputs of a batch, and has the prompt in its hypotheses
    options = {"beam": 3, "lenpen": 0, "max_len_b": 12, "max_tokens": 1 if attention == "stock" else 4096}
    found = model.generate(lines, return_scores=True, **options)
    if attention == "stock" and not hasattr(model.model, "encoder"):
        other = elseq.load(trained.checkpoint, "kv", data=trained.data)
        found = other.generate(lines, return_scores=True, **options)
    for max_tokens in (1, 4096):
        scored = model.score(lines, [each.text for each in found], max_tokens=max_tokens)
        for one, other in zip(scored, found, strict=True):
            assert (one.text, one.tokens) == (other.text, other.tokens)
            assert one.score == pytest.approx(other.score, abs=1e-4)
            assert list(one.log_probs) == pytest.approx(list(other.log_probs), abs=1e-4)
            assert one.score == pytest.approx(math.fsum(one.log_probs), abs=1e-4)


@pytest.mark.parametrize("attention", ["kv", "el", "stock"])
def test_scores_of_references(tiny_translation, attention):
    """By fairseq's SequenceScorer, sentence by sentence; also of an empty target and of an unknown word."""
    [reference], _, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(tiny_translation.checkpoint)], {"data": str(tiny_translation.data), "task": "translation"}
    )
    sources, targets = (
        (tiny_translation.raw / f"test.{side}").read_text(encoding="utf-8").splitlines() for side in ("src", "tgt")
    )
    sources, targets = [*sources, sources[0], ""], [*targets, "", "w1 nothing w2"]
    model = elseq.load(tiny_translation.checkpoint, attention, data=tiny_translation.data)
    found = model.score(iter(sources), iter(targets), max_tokens=50)
    end = task.target_dictionary.eos()
    for source, target, hypothesis in zip(sources, targets, found, strict=True):
        tokens, words = (
            dictionary.encode_line(line, add_if_not_exist=False).long()[None]
            for dictionary, line in ((task.source_dictionary, source), (task.target_dictionary, target))
        )
        before = torch.cat((torch.tensor([[end]]), words[:, :-1]), dim=1)
        net_input = {"src_tokens": tokens, "src_lengths": torch.tensor([tokens.size(1)]), "prev_output_tokens": before}
        sample = {"net_input": net_input, "target": words}
        [[expected]] = SequenceScorer(task.target_dictionary).generate([reference.eval()], sample)
        assert hypothesis.text == target
        assert list(hypothesis.tokens) == [task.target_dictionary[word] for word in words[0].tolist()]
        assert list(hypothesis.log_probs) == pytest.approx(expected["positional_scores"].tolist(), abs=1e-4)
        assert hypothesis.score == pytest.approx(expected["score"].item() * words.numel(), abs=1e-4)
    assert model.score([], []) == []


@pytest.mark.parametrize("attention", ["kv", "stock"])
def test_texts_without_a_prompt(tiny_language_model, attention):
    """A language model alone: the chain rule."""
    model = elseq.load(tiny_language_model.checkpoint, attention, data=tiny_language_model.data)
    text = (tiny_language_model.raw / "test.lm").read_text(encoding="utf-8").split("\n")[0]
    words = text.split()
    [whole] = model.score([""], [text])
    starts = [" ".join(words[:length]) for length in range(len(words))]
    rests = [" ".join(words[length:]) for length in range(len(words))]
    for length, rest in enumerate(model.score(starts, rests)):
        assert list(rest.log_probs) == pytest.approx(list(whole.log_probs[length:]), abs=1e-4)


def test_languages_before_targets(tiny_translation, lines):
    """As of mBART; in a text without subwords the symbol may be there already."""
    model = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data)
    model.task.cfg.source_start, model.task.cfg.target_start = "w3", "w7"
    found = model.generate(lines, beam=2, lenpen=0, return_scores=True)
    assert all(each.tokens[0] == "w7" for each in found)
    for texts in ([each.text for each in found], [" ".join(each.tokens[1:-1]) for each in found]):
        for one, other in zip(model.score(lines, texts), found, strict=True):
            assert one.tokens == other.tokens
            assert one.score == pytest.approx(other.score, abs=1e-4)


@pytest.mark.parametrize(
    "sources, targets, options, sentence",
    [
        ("w1", ["w2"], {}, "^score takes a list of sources and was given one string; put it into a list$"),
        (["w1"], "w2", {}, "^score takes a list of targets and was given one string; put it into a list$"),
        (["w1"], None, {}, "^score takes a list of targets and was given None$"),
        (["w1"], [2], {}, "^target 0 is of type int; give strings$"),
        (["w1", None], ["w2", "w3"], {}, "^source 1 is of type NoneType; give strings$"),
        (["w1"], ["w2", "w3"], {}, "^there are 1 sources and 2 targets; give one for each$"),
        (["w1"], ["w2"], {"truncate": 0}, "^truncate 0 is not possible: give True or False$"),
        (["w1"], ["w2"], {"max_tokens": 0}, "^max_tokens 0 is not a whole number above 0$"),
        (["w1", "w1 " * 64], ["w2"] * 2, {}, "^source 1 has 65 tokens and the model takes 64; shorten it or set trunc"),
        (["w1"] * 2, ["w2", "w2 " * 64], {}, "^target 1 has 65 tokens and the model generates 64; shorten it$"),
    ],
)
def test_what_cannot_be_scored(translator, sources, targets, options, sentence):
    with pytest.raises(UserError, match=sentence):
        translator.score(sources, targets, **options)


def test_long_texts_to_score(tiny_translation, tiny_language_model):
    """As long as the model has positions, and sources that are cut."""
    model = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data)
    [whole, cut] = model.score(["w1 " * 63, "w1 " * 99], ["w2 " * 63] * 2, truncate=True)
    assert len(whole.tokens) == 64
    assert cut.score == pytest.approx(whole.score, abs=1e-4)
    model = elseq.load(tiny_language_model.checkpoint, data=tiny_language_model.data)
    [whole, cut] = model.score(["w1 " * 59, "w1 " * 99], ["w2 " * 4] * 2, truncate=True)
    assert len(whole.tokens) == 5
    assert cut.score == pytest.approx(whole.score, abs=1e-4)
    with pytest.raises(UserError, match="^source 0 has 61 tokens and the model takes 60; shorten it or set truncate=T"):
        model.score(["w1 " * 60], ["w2 " * 4])


def test_a_batch_to_score_that_runs_out_of_memory_is_split(translator, lines, monkeypatch):
    expected = translator.score(lines, lines)
    score, sizes = type(translator)._score, []

    def short(self, pairs):
        sizes.append(len(pairs))
        if len(pairs) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return score(self, pairs)

    monkeypatch.setattr(type(translator), "_score", short)
    for one, other in zip(translator.score(lines, lines), expected, strict=True):
        assert one.text == other.text and one.score == pytest.approx(other.score, abs=1e-4)
    assert sizes == [6, 3, 2, 1, 2, 1]


def test_a_memory_budget_for_scores(translator, lines, monkeypatch):
    expected = translator.score(lines, lines)
    score, sizes = type(translator)._score, []
    monkeypatch.setattr(type(translator), "_score", lambda self, pairs: sizes.append(len(pairs)) or score(self, pairs))
    for one, other in zip(translator.score(lines, lines, memory_budget="100K"), expected, strict=True):
        assert one.text == other.text and one.score == pytest.approx(other.score, abs=1e-4)
    assert len(sizes) > 1 and max(sizes) > 1
    assert translator.score([], [], memory_budget="100K") == []
    with pytest.raises(UserError, match="^pair 1 alone needs about .* and the budget is 2.0 KiB: raise it$"):
        longest = max(lines, key=len)
        translator.score(["w1", longest], ["w1", longest], memory_budget=2048)


@pytest.mark.parametrize(
    "text, words", [(" in", "▁in"), ("in", "in"), ("ver", "v er"), ("", ""), (" in the", "▁in ▁the")]
)
def test_continuations_to_score(tiny_language_model, text, words, tmp_path):
    """ " in" begins a word, and "in" goes on with one."""
    model = elseq.load(tiny_language_model.checkpoint, data=tiny_language_model.data)
    model.bpe = Sentencepiece(train(tmp_path / "a.model"))
    assert model.bpe.encode_continuation(text).split() == words.split()
    assert model.score(["the river"], [text])[0].text == text
