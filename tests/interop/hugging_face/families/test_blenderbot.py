"""Blenderbot against transformers: logits, hypotheses, tokens, and the way back."""

from types import SimpleNamespace

import pytest
import tokenizers
import torch

from elseq.cli import conversions as command
from elseq.errors import UserError
from tests.interop.hugging_face.making import (
    LINES,
    PIECES,
    SIZES,
    assert_same_hypotheses,
    assert_same_ids,
    assert_same_logits,
    assert_same_model,
    assert_same_tokenizer,
    back,
    change,
    convert,
    load,
    random_texts,
    save_tokenizer,
    save_with_settings,
)

transformers = pytest.importorskip("transformers")

NAMES = ["<pad>", "<s>", "</s>", "<unk>", *PIECES, "<mask>"]
LINES = [*LINES, "a</s>b", "the <unk> dog", " <mask> in", "<pad> "]
TEXT = "the inner circle thinks there are three ways in the thin air"
SOURCES = [TEXT[start : start + 5 + 2 * start] for start in range(20)]


def make(folder, with_file=True, **options):
    """With the tokenizer.json of the models on the Hub, which ends a text, or without one."""
    folder.mkdir(parents=True)
    save_tokenizer(folder, NAMES)
    tokenizer = transformers.BlenderbotTokenizer.from_pretrained(folder)
    tokenizer._tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    if with_file:
        tokenizer.save_pretrained(folder)
    fixed = {"vocab_size": len(NAMES), "scale_embedding": True, "encoder_no_repeat_ngram_size": 0}
    old = {"normalize_before": True, "add_final_layer_norm": True, "normalize_embedding": False}
    config = transformers.BlenderbotConfig(**(SIZES | fixed | old | options))
    torch.manual_seed(2)
    model = transformers.BlenderbotForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        end = model.lm_head.weight[2]
        model.model.decoder.layer_norm.bias += 3 * end / end.norm() ** 2
    return save_with_settings(model, folder, length_penalty=0.65), tokenizer


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blenderbot")
    model, tokenizer = make(folder / "theirs")
    convert(folder / "theirs", folder / "ours")
    return model, tokenizer, folder


def fairseq_rows(size):
    """fairseq has <s> before <pad>."""
    return torch.tensor([1, 0, *range(2, size)])


@pytest.mark.parametrize("attention", ["kv", "el", "stock"])
def test_logits(pair, attention):
    theirs, _, folder = pair
    rows = fairseq_rows(theirs.config.vocab_size)
    texts = random_texts(range(4, len(rows)), [2])
    assert_same_logits(theirs, load(folder / "ours", attention), texts, texts, rows)


@pytest.mark.few_cases(2)
@pytest.mark.parametrize("attention", ["kv", "el"])
@pytest.mark.parametrize("settings", ["greedy", "its own settings"])
def test_same_hypotheses(pair, attention, settings):
    assert_same_hypotheses(*pair, attention, SOURCES, settings)


def test_ctranslate2(pair, tmp_path):
    """It starts from <s>, too."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    _, _, folder = pair
    args = {"model": str(folder / "ours"), "output": tmp_path / "model", "data": None, "overwrite": False}
    command.convert_to_ctranslate2(SimpleNamespace(**args, quantization=None))
    loaded = load(folder / "ours")
    options = {"beam": 1, "min_len": 7, "max_len_b": 58, "no_repeat_ngram_size": 2}
    expected = [found.tokens[:-1] for found in loaded.generate(SOURCES, return_scores=True, **options)]
    found = ctranslate2.Translator(str(tmp_path / "model"), intra_threads=1).translate_batch(
        [loaded.bpe.encode(line).split() for line in SOURCES],
        beam_size=1,
        min_decoding_length=7,
        max_decoding_length=58,
        no_repeat_ngram_size=2,
    )
    assert [tuple(result.hypotheses[0]) for result in found] == expected
    assert len(set(expected)) > 3


@pytest.mark.parametrize("with_file", [True, False])
def test_tokens(tmp_path, with_file):
    _, tokenizer = make(tmp_path / "theirs", with_file)
    convert(tmp_path / "theirs", tmp_path / "ours")
    assert_same_ids(load(tmp_path / "ours"), tokenizer, fairseq_rows(len(tokenizer)), LINES)


def test_round_trip(pair, tmp_path):
    theirs, tokenizer, folder = pair
    again = back(folder / "ours", tmp_path / "again")
    assert_same_model(theirs, folder / "theirs", again)
    assert_same_tokenizer(again, tokenizer, LINES)


@pytest.mark.parametrize("start", [1, 2])
def test_start_of_the_settings(tmp_path, start):
    make(tmp_path / "theirs")
    change(tmp_path / "theirs" / "generation_config.json", decoder_start_token_id=start)
    converted = convert(tmp_path / "theirs", tmp_path / "ours")
    assert ("--decoder-start=<s>" in converted.task_arguments) == (start == 1)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"normalize_before": False}, "has normalize_before: False, which fairseq's model does not have"),
        ({"decoder_start_token_id": 5}, "decoder_start_token_id: 5, and the family's models begin to decode with bos"),
    ],
)
def test_other_configurations(tmp_path, options, sentence):
    make(tmp_path / "theirs")
    change(tmp_path / "theirs" / "config.json", **options)
    with pytest.raises(UserError, match=sentence):
        convert(tmp_path / "theirs", tmp_path / "ours")
