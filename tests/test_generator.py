"""elseq.load: text in, text out."""

import pytest
import torch

import elseq
from elseq.errors import UserError


@pytest.fixture(scope="module")
def translator(tiny_translation):
    return elseq.load(tiny_translation.checkpoint, attention="el", data=tiny_translation.data)


@pytest.fixture(scope="module")
def lines(tiny_translation):
    source = tiny_translation.raw / "test.src"
    return source.read_text(encoding="utf-8").splitlines()[:6]


@pytest.mark.parametrize("attention", ["auto", "kv", "stock"])
def test_every_evaluation_says_the_same(tiny_translation, translator, lines, attention):
    other = elseq.load(tiny_translation.checkpoint, attention=attention, data=tiny_translation.data)
    assert other.generate(lines, beam=3) == translator.generate(lines, beam=3)


def test_order_and_blank_texts_are_kept(translator, lines):
    texts = [lines[0], "", *lines[1:], "  "]
    found = translator.generate(iter(texts), beam=2, max_tokens=20)
    assert found[1] == found[-1] == ""
    assert [found[0], *found[2:-1]] == [translator.generate([line], beam=2)[0] for line in lines]
    assert translator.generate([]) == []


def test_several_hypotheses(translator, lines):
    found = translator.generate(lines[:2], beam=3, nbest=2)
    assert [len(hypotheses) for hypotheses in found] == [2, 2]
    assert [hypotheses[0] for hypotheses in found] == translator.generate(lines[:2], beam=3)


def test_the_type_of_the_parameters(tiny_translation, lines):
    model = elseq.load(tiny_translation.checkpoint, data=tiny_translation.data, dtype=torch.float64)
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.float64}
    assert len(model.generate(lines)) == len(lines)


@pytest.mark.parametrize(
    "texts, options, sentence",
    [
        ("one text", {}, "was given one string"),
        ([3], {}, "text 0 is of type int"),
        (["a"], {"beams": 3}, "no option 'beams'"),
        (["a"], {"beam": 0}, "--beam 0 is no number"),
        (["a " * 2000], {}, "text 0 has 2001 tokens"),
    ],
)
def test_bad_input(translator, texts, options, sentence):
    with pytest.raises(UserError, match=sentence):
        translator.generate(texts, **options)


def test_a_long_text_can_be_cut(translator):
    assert len(translator.generate(["a " * 2000], truncate=True, max_len_b=5)) == 1


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"attention": "fast"}, "attention fast is unknown"),
        ({"languages": ("xx", "yy")}, "does not name two dictionaries"),
        ({"data": "/"}, "no dictionary"),
    ],
)
def test_what_cannot_be_loaded(tiny_translation, options, sentence):
    with pytest.raises(UserError, match=sentence):
        elseq.load(tiny_translation.checkpoint, **{"data": tiny_translation.data, **options})
