"""Blenderbot-small against transformers: logits, hypotheses, tokens, texts, and the way back."""

import json
import random
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, processors

from elseq.cli import conversions as command
from elseq.errors import UserError
from tests.interop.hugging_face.families.test_blenderbot import TEXT, fairseq_rows
from tests.interop.hugging_face.making import (
    LINES,
    SETTINGS,
    SIZES,
    assert_same_hypotheses,
    assert_same_ids,
    assert_same_logits,
    assert_same_model,
    assert_same_tensors,
    assert_same_tokenizer,
    back,
    change,
    convert,
    ids,
    load,
    random_texts,
    save_with_settings,
)

transformers = pytest.importorskip("transformers")

SYMBOLS = ["__null__", "__start__", "__end__", "__unk__"]
ODD = [
    "Don't stop. Now, (in)there!",
    "the inner\ncircle\n\nthinks'\n . \nthere\r\nare",
    "'thin'.air', in...there?!",
    "__start__ the __unk__dog __END__ __newln__ __null__",
    "the@@ in@@n in@@",
    "ΟΔΟΣ ΣΑΣ. Σ ΑΣ'Σ İn THE ẞ",
    "a\x1cb the\x85in\u2003there\u00a0air",
    "thereafter innerthe thinner",
    "\n the \n",
    "日本 the日",
]


def learned(text, number=45):
    """The merges of byte-pair encoding, the most frequent pair first."""
    words = Counter((*word[:-1], f"{word[-1]}</w>") for word in text.split())
    merges = []
    while len(merges) < number:
        pairs = Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = Counter({joined(word, best): count for word, count in words.items()})
    return merges


def joined(word, pair):
    pieces = list(word)
    for at in reversed(range(len(pieces) - 1)):
        if tuple(pieces[at : at + 2]) == pair:
            pieces[at : at + 2] = ["".join(pair)]
    return tuple(pieces)


MERGES = learned(TEXT)


def names():
    """As ParlAI's dictionary: of what merges make, some never remained in a text, and are not in it."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?()'_"
    made = [left + right for left, right in MERGES]
    pieces = [piece.removesuffix("</w>") if piece.endswith("</w>") else f"{piece}@@" for piece in made]
    return [*SYMBOLS, "__newln__", *letters, *(f"{letter}@@" for letter in letters), *pieces[1::2], *pieces[:6:2]]


def save_tokenizer(folder, **config):
    folder.mkdir(parents=True, exist_ok=True)
    rows = {name: row for row, name in enumerate(dict.fromkeys(names()))}
    (folder / "vocab.json").write_text(json.dumps(rows))
    lines = [" ".join(merge) for merge in MERGES]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return transformers.BlenderbotSmallTokenizer.from_pretrained(folder)


def make(folder, **options):
    tokenizer = save_tokenizer(folder)
    old = {"normalize_before": False, "normalize_embedding": True, "do_blenderbot_90_layernorm": True}
    fixed = {"vocab_size": len(tokenizer), "scale_embedding": True}
    config = transformers.BlenderbotSmallConfig(**(SIZES | fixed | old | options))
    torch.manual_seed(2)
    model = transformers.BlenderbotSmallForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        end = model.lm_head.weight[2]
        model.model.decoder.layers[-1].final_layer_norm.bias += 3 * end / end.norm() ** 2
    return save_with_settings(model, folder, length_penalty=0.65), tokenizer


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blenderbot-small")
    model, tokenizer = make(folder / "theirs")
    convert(folder / "theirs", folder / "ours")
    return model, tokenizer, folder


@pytest.mark.parametrize("attention", ["kv", "el"])
def test_logits(pair, attention):
    theirs, _, folder = pair
    rows = fairseq_rows(theirs.config.vocab_size)
    texts = random_texts(range(4, len(rows)))
    assert_same_logits(theirs, load(folder / "ours", attention), texts, texts, rows)


@pytest.mark.few_cases(2)
@pytest.mark.parametrize("attention", ["kv", "el"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_same_hypotheses(pair, attention, settings):
    lines = [f"{TEXT[start % 20 :][: 5 + 2 * start]} {start}" for start in range(50)]
    assert assert_same_hypotheses(*pair, attention, lines, settings) < 59


def test_fairseqs_commands(pair, tmp_path):
    """fairseq-interactive, by the options that from-hf prints, finds what elseq.load finds."""
    from tests import helpers

    _, _, folder = pair
    converted = convert(folder / "theirs", tmp_path / "ours")
    assert converted.notes == []
    options = ["--path", tmp_path / "ours" / "model.pt", "--task=elseq_translation", *converted.task_arguments]
    assert "--append-source-eos=no" in options
    options += ["--bpe=hugging_face", "--tokenizer-json", tmp_path / "ours" / "tokenizer.json", "--beam=2"]
    fairseq = ["fairseq-interactive", tmp_path / "ours", "--user-dir", helpers.USER_DIR, "--cpu", *options]
    log = helpers.run_here([*fairseq, "--max-len-b=8"], input=b"the thin air\n").stdout
    [text] = load(folder / "ours").generate(["the thin air"], beam=2, max_len_b=8)
    assert f"\t{text}\n" in log


# --- the tokenizer


def test_tokens(pair):
    _, tokenizer, folder = pair
    rows = fairseq_rows(len(tokenizer))
    assert_same_ids(load(folder / "ours"), tokenizer, rows, (*LINES, *ODD, TEXT, TEXT.upper()))


def test_tokens_of_random_texts(pair):
    _, tokenizer, folder = pair
    generator = random.Random(1)
    parts = [*TEXT.upper().split(), *TEXT.split(), *SYMBOLS, "\n", "\n", " ", " ", " ", *".,!?()'@:;-", "Σ", "σ", "·"]
    parts += ["@@", "</w>", "__newln__", "\t", "\x1c", "\x85", "\u3000", "\u200b", "ʰ", "İ", "é", "é", "ß"]
    parts += ["👍", "\u00ad"]
    lines = ("".join(generator.choices(parts, k=generator.randrange(1, 12))) for _ in range(1000))
    assert_same_ids(load(folder / "ours"), tokenizer, fairseq_rows(len(tokenizer)), lines)


@pytest.mark.parametrize(
    "config", [{}, {"clean_up_tokenization_spaces": True}, {"additional_special_tokens": ["[a.b]"]}]
)
def test_texts(tmp_path, config):
    tokenizer = save_tokenizer(tmp_path / "theirs", **config)
    make(tmp_path / "model", vocab_size=len(tokenizer))
    convert(tmp_path / "model", tmp_path / "ours", tmp_path / "theirs")
    loaded = load(tmp_path / "ours")
    rows = fairseq_rows(len(tokenizer))
    generator = random.Random(1)
    for _ in range(200):
        numbers = generator.choices(range(len(tokenizer)), k=generator.randrange(1, 12))
        words = loaded.task.target_dictionary.string(rows[numbers])
        assert loaded.bpe.decode(words) == tokenizer.decode(numbers, skip_special_tokens=True)
    for line in ODD:
        expected = tokenizer.decode(tokenizer(line)["input_ids"], skip_special_tokens=True)
        dictionary = loaded.task.target_dictionary
        words = dictionary.string(dictionary.encode_line(loaded.bpe.encode(line), add_if_not_exist=False))
        assert loaded.bpe.decode(words) == expected


def test_added_tokens(tmp_path):
    """Also those that are not special are found in the text as it is, with its capital letters."""
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    tokenizer.add_tokens(["[LAUGH]", "Don't"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<s>"]})
    tokenizer.save_pretrained(tmp_path / "theirs")
    make(tmp_path / "model", vocab_size=len(tokenizer))
    for path in (tmp_path / "model").iterdir():
        if "config" in path.name and "tokenizer" not in path.name or path.name == "model.safetensors":
            path.rename(tmp_path / "theirs" / path.name)
    convert(tmp_path / "theirs", tmp_path / "ours")
    lines = ("Don't [LAUGH] don't [laugh]", "the <s> DON'T", *ODD)
    assert_same_ids(load(tmp_path / "ours"), tokenizer, fairseq_rows(len(tokenizer)), lines)


# --- the way back


def test_round_trip(pair, tmp_path):
    theirs, tokenizer, folder = pair
    again = back(folder / "ours", tmp_path / "again")
    assert_same_model(theirs, folder / "theirs", again)
    assert not (again / "tokenizer.json").exists()
    assert (again / "merges.txt").read_text() == (folder / "theirs" / "merges.txt").read_text()
    found = assert_same_tokenizer(again, tokenizer, (*LINES, *ODD))
    assert type(found) is transformers.BlenderbotSmallTokenizer


def test_other_programs(pair, tmp_path):
    """CTranslate2 and fairseq add positions before the norm."""
    folder = pair[-1]
    args = {"model": str(folder / "ours"), "output": tmp_path / "out", "data": None, "overwrite": False}
    programs = ((command.convert_to_ctranslate2, "CTranslate2"), (command.convert_to_fairseq, "stock fairseq"))
    for convert_to, program in programs:
        sentence = f"before positions are added .--norm-before-positions., which {program} does not have"
        with pytest.raises(UserError, match=sentence):
            convert_to(SimpleNamespace(**args, quantization=None, user_dir=None))
        assert not (tmp_path / "out").exists()


def test_trained_with_the_end_of_sources(pair, tmp_path):
    convert(pair[2] / "theirs", tmp_path / "ours")
    state = torch.load(tmp_path / "ours" / "model.pt", weights_only=False)
    state["cfg"]["task"]["append_source_eos"] = None
    torch.save(state, tmp_path / "ours" / "model.pt")
    with pytest.raises(UserError, match="trained with the end symbol after sources, .* --append-source-eos no"):
        back(tmp_path / "ours", tmp_path / "again")


# --- other folders


def test_a_tokenizer_json_beside(pair, tmp_path):
    """Of the fast class of older versions, which transformers 5 reads no more."""
    make(tmp_path / "theirs")
    (tmp_path / "theirs" / "tokenizer.json").write_text("{}")
    converted = convert(tmp_path / "theirs", tmp_path / "ours")
    assert converted.files["tokenizer.json"] == (pair[2] / "ours" / "tokenizer.json").read_text()


@pytest.fixture(scope="module", params=["", " __end__"], ids=["as it is", "ending texts"])
def followed(request, pair, tmp_path_factory):
    """A folder with a tokenizer.json alone, which is followed, whatever wrote it; and what stands after a text."""
    _, _, folder = pair
    own = tmp_path_factory.mktemp("followed")
    make(own / "theirs")
    for name in ("vocab.json", "merges.txt"):
        (own / "theirs" / name).unlink()
    tokenizer = Tokenizer.from_file(str(folder / "ours" / "tokenizer.json"))
    if request.param:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A{request.param}", special_tokens=[("__end__", 2)]
        )
    tokenizer.save(str(own / "theirs" / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "__unk__"}
    change(own / "theirs" / "tokenizer_config.json", **settings)
    convert(own / "theirs", own / "ours")
    return own, [2] if request.param else []


def test_a_tokenizer_json_alone(pair, followed):
    _, tokenizer, _ = pair
    folder, end = followed
    loaded = load(folder / "ours")
    rows = fairseq_rows(len(tokenizer))
    for line in ODD:
        expected = [*rows[tokenizer(line)["input_ids"]].tolist(), *end]
        assert ids(loaded, line) == (expected or [2]), line


def test_a_tokenizer_json_alone_goes_back(followed, tmp_path):
    """As it is, and to the class that reads it."""
    folder, end = followed
    again = back(folder / "ours", tmp_path / "again")
    assert_same_tensors(folder / "theirs", again)
    assert not (again / "vocab.json").exists()
    found, expected = (transformers.AutoTokenizer.from_pretrained(path) for path in (again, folder / "theirs"))
    assert all(found(line)["input_ids"] == expected(line)["input_ids"] for line in (*LINES, *ODD))
    assert (found("the")["input_ids"][-1] == 2) == bool(end)

    state = torch.load(folder / "ours" / "model.pt", weights_only=False)
    task = state["cfg"]["task"]
    task["append_source_eos"] = "no" if end else None
    (tmp_path / "trained").mkdir()
    torch.save(state, tmp_path / "trained" / "model.pt")
    sentence = (
        r"\(--append-source-eos no\), and .*tokenizer.json puts one there" if end else "reads none: train it with"
    )
    with pytest.raises(UserError, match=sentence):
        back(tmp_path / "trained", tmp_path / "other", data=folder / "ours")


def without_merges(folder):
    (folder / "merges.txt").unlink()


def without_any(folder):
    without_merges(folder)
    (folder / "vocab.json").unlink()


def of_another_model(folder):
    change(folder / "vocab.json", **{"__end__": 3, "__unk__": 2})


def with_a_line_of_three(folder):
    path = folder / "merges.txt"
    path.write_text(path.read_text().replace(" ", " x ", 2))


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (without_merges, "merges.txt, a part of the tokenizer, is missing: copy it there$"),
        (without_any, "has no tokenizer .vocab.json with merges.txt, tokenizer.json"),
        (of_another_model, "of another model, since its __end__ is number 3, and config.json has eos_token_id: 2"),
        (with_a_line_of_three, "merges.txt has the line .*, which is no pair of pieces: copy it again"),
    ],
)
def test_damaged_tokenizers(tmp_path, damage, sentence):
    make(tmp_path / "theirs")
    damage(tmp_path / "theirs")
    with pytest.raises(UserError, match=sentence):
        convert(tmp_path / "theirs", tmp_path / "ours")


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"do_blenderbot_90_layernorm": False}, "has do_blenderbot_90_layernorm: False, which fairseq's model does"),
        ({"decoder_start_token_id": 5}, "decoder_start_token_id: 5, and the family's models begin to decode with bos"),
    ],
)
def test_other_configurations(tmp_path, options, sentence):
    make(tmp_path / "theirs")
    change(tmp_path / "theirs" / "config.json", **options)
    with pytest.raises(UserError, match=sentence):
        convert(tmp_path / "theirs", tmp_path / "ours")
