"""Files of Hugging Face's library that cannot be used end in one sentence."""

import json

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from elseq.errors import UserError
from elseq.subwords.tokens import read_tokens


@pytest.fixture
def path(tmp_path):
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1, "</s>": 2, "<mask>": 3}, unk_token="a"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_words_by_the_rule(path):
    assert read_tokens(path).words == {0: "0", 1: "1", 2: "</s>", 3: "<mask>"}
    path.with_name("encoder.json").write_text(json.dumps({"a": 7}))
    path.with_name("fairseq_symbols.json").write_text(json.dumps({"<pad>": "b"}))
    assert read_tokens(path).words == {0: "7", 1: "<pad>", 2: "</s>", 3: "<mask>"}


def test_nothing_is_cut_or_filled_up(path):
    content = json.loads(path.read_text())
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1}
    content["padding"] = padding | {"pad_type_id": 0, "pad_token": "b"}
    content["truncation"] = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(content))
    assert read_tokens(path).encode("b") == "1"


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("", "tokenizer.json is not JSON"),
        ("[]", "tokenizer.json holds no JSON object"),
        ("{}", "tokenizer.json is no tokenizer of Hugging Face's library"),
        ('{"model": {"type": "Python"}}', "tokenizer.json is no tokenizer of Hugging Face's library"),
        ("[" * 100_000, "tokenizer.json is nested too deeply"),
        ('{"model": ' + '{"a":' * 900 + "1" + "}" * 901, "tokenizer.json is no"),
    ],
)
def test_files_that_cannot_be_used(path, content, sentence):
    path.write_text(content)
    with pytest.raises(UserError, match=sentence) as error:
        read_tokens(path)
    assert "\n" not in str(error.value)


def test_half_a_character(path):
    with pytest.raises(UserError, match=r"holds half a character \(the lone surrogate \\ud800\): decode it"):
        read_tokens(path).encode("a \ud800")


def test_digests(path):
    first = read_tokens(path).digest()
    path.with_name("encoder.json").write_text(json.dumps({"a": 7}))
    assert read_tokens(path).digest() != first


REPLACING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
BY_EXPRESSION = {"type": "Replace", "pattern": {"Regex": "a"}, "content": "aa"}


@pytest.mark.parametrize("step", [REPLACING, BY_EXPRESSION, {"type": "ByteLevel"}], ids=["text", "expression", "bytes"])
@pytest.mark.parametrize("part", ["normalizer", "decoder"])
def test_texts_that_grow_without_end(path, step, part):
    """One letter would become a thousand millions, and more."""
    if step["type"] == "ByteLevel":
        step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    inner = f"{part}s"
    content = json.loads(path.read_text())
    for times, grows in ((5, False), (60, True)):
        nested = {"type": "Sequence", inner: [{"type": "Sequence", inner: [step] * times}]}
        path.write_text(json.dumps(content | {part: nested}))
        if grows:
            with pytest.raises(UserError, match="tokenizer.json makes texts many times longer"):
                read_tokens(path)
        else:
            read_tokens(path)


def test_a_step_that_does_not_grow(path):
    content = json.loads(path.read_text())
    step = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    path.write_text(json.dumps(content | {"normalizer": {"type": "Sequence", "normalizers": [step] * 60}}))
    read_tokens(path)
