"""Pegasus against transformers: logits, hypotheses, tokens, and the way back."""

import json

import pytest
import sentencepiece
import torch

from elseq.errors import UserError
from elseq.interop.hugging_face.sentencepieces import read_model
from tests.interop.hugging_face.making import (
    LINES,
    SIZES,
    TEXT,
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
    save_with_settings,
)
from tests.interop.hugging_face.test_sentencepieces import train

transformers = pytest.importorskip("transformers")
converters = pytest.importorskip("transformers.convert_slow_tokenizer")

ODD = ["a</s>b", "the <unk> dog", "<mask_1> the <mask_2>", "<unk_7> dog", "<pad> ", "two\nlines", " the "]
SYMBOLS = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


def make_tokenizer(folder, **options):
    """transformers' own, of the content of the folder's model."""
    folder.mkdir(parents=True)
    path = train(folder / "spiece.model", **SYMBOLS, **options)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = [(processor.id_to_piece(number), processor.get_score(number)) for number in range(len(processor))]
    content = converters.PegasusConverter.convert_from_spm(vocab=pieces)
    charsmap = read_model(path).charsmap or None
    return transformers.PegasusTokenizer(**content, _spm_precompiled_charsmap=charsmap)


def make(folder, seed=2, rule="nmt_nfkc", **options):
    tokenizer = make_tokenizer(folder, normalization_rule_name=rule)
    symbols = {"vocab_size": len(tokenizer) + 3, "bos_token_id": 0}  # as in the files of Google's models
    old = {"static_position_embeddings": True, "normalize_before": True, "add_final_layer_norm": True}
    fixed = {"activation_function": "relu", "scale_embedding": True}
    config = transformers.PegasusConfig(**(SIZES | symbols | fixed | old | options))
    torch.manual_seed(seed)
    model = transformers.PegasusForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.model.shared.weight[0] = 0
        end = model.lm_head.weight[1]
        model.model.decoder.layer_norm.bias += 4 * end / end.norm() ** 2
    return save_with_settings(model, folder, length_penalty=0.8), tokenizer


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pegasus")
    model, tokenizer = make(folder / "theirs")
    convert(folder / "theirs", folder / "ours")
    return model, tokenizer, folder


def fairseq_rows(size):
    """fairseq's row of each of transformers' numbers: <pad> is 1 there, </s> 2, <unk> 3, and <s> nothing."""
    first = {0: 1, 1: 2, 105: 3}
    others = iter(range(4, size + 1))
    return torch.tensor([first[number] if number in first else next(others) for number in range(size)])


@pytest.mark.parametrize("attention", ["kv", "el", "stock"])
def test_logits(pair, attention):
    theirs, _, folder = pair
    rows = fairseq_rows(theirs.config.vocab_size)
    texts = random_texts(range(105, len(rows)), [1])
    found = assert_same_logits(theirs, load(folder / "ours", attention), texts, texts, rows)
    assert found.softmax(dim=-1)[:, 0].max() == 0  # <s>, which a Pegasus has not


@pytest.mark.few_cases(2)
@pytest.mark.parametrize("attention", ["kv", "el"])
@pytest.mark.parametrize("settings", ["greedy", "its own settings"])
def test_same_hypotheses(pair, attention, settings):
    lines = [TEXT[start : start + 20 + 3 * start] for start in range(25)]
    assert assert_same_hypotheses(*pair, attention, lines, settings) < 59


@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
def test_tokens(tmp_path, rule):
    _, tokenizer = make(tmp_path / "theirs", rule=rule)
    convert(tmp_path / "theirs", tmp_path / "ours")
    assert_same_ids(load(tmp_path / "ours"), tokenizer, fairseq_rows(len(tokenizer) + 3), (*LINES, *ODD))


def test_round_trip(pair, tmp_path):
    theirs, tokenizer, folder = pair
    again = back(folder / "ours", tmp_path / "again")
    assert_same_model(theirs, folder / "theirs", again)
    assert_same_tokenizer(again, tokenizer, (*LINES, *ODD))


@pytest.mark.parametrize(
    "file, options, sentence",
    [
        (
            "config.json",
            {"normalize_before": False},
            "has normalize_before: False, which fairseq's",
        ),
        ("config.json", {"decoder_start_token_id": 5}, "decoder_start_token_id: 5, and the family's models begin to"),
        ("tokenizer_config.json", {"offset": "many"}, "has offset: 'many', where a whole number from 2 to 1000"),
        ("tokenizer_config.json", {"unk_token": "[UNK]"}, r"spiece.model has no piece '\[UNK\]'"),
    ],
)
def test_other_configurations(tmp_path, file, options, sentence):
    make(tmp_path / "theirs")
    if not (tmp_path / "theirs" / file).exists():
        (tmp_path / "theirs" / file).write_text(json.dumps({}))
    change(tmp_path / "theirs" / file, **options)
    with pytest.raises(UserError, match=sentence):
        convert(tmp_path / "theirs", tmp_path / "ours")
