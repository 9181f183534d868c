"""Blenderbot-small against transformers: logits, hypotheses, tokens, texts, and the way back."""

import json
import random
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from elseq.cli import conversions as command
from elseq.errors import UserError
from elseq.interop.hugging_face.conversion import from_hugging_face
from tests.interop.hugging_face.families.multilingual.test_models import LINES, SIZES
from tests.interop.hugging_face.families.test_blenderbot import TEXT, fairseq_rows
from tests.interop.hugging_face.making import change, convert, load, padded
from tests.interop.hugging_face.test_conversion import assert_same_tensors, back

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
EARLY_STOPPING = [True, False, "never"]


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
    settings = {"num_beams": 4, "early_stopping": True, "max_length": 60, "length_penalty": 0.65}
    settings |= {"no_repeat_ngram_size": 2, "min_length": 8, "bad_words_ids": [[0]]}
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    return model, tokenizer


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blenderbot-small")
    model, tokenizer = make(folder / "theirs")
    convert(folder / "theirs", folder / "ours")
    return model, tokenizer, folder


@torch.no_grad()
@pytest.mark.parametrize("attention", ["kv", "el"])
def test_logits(pair, attention):
    theirs, _, folder = pair
    rows = fairseq_rows(theirs.config.vocab_size)
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 20, (40,), generator=generator).tolist()
    texts = [torch.randint(4, len(rows), (length,), generator=generator).tolist() for length in lengths]
    batch, targets = padded(texts, 0), padded([[1, *row] for row in texts], 0)
    mask = batch.ne(0)
    expected = theirs(input_ids=batch, attention_mask=mask.long(), decoder_input_ids=targets).logits
    found = load(folder / "ours", attention).model(rows[batch], mask.sum(dim=1), rows[targets])[0]
    words = targets.ne(0)
    assert expected[words].std() > 0.5
    torch.testing.assert_close(found[words][:, rows], expected[words], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["kv", "el"])
@pytest.mark.parametrize(
    "settings",
    [{"num_beams": 1}, *({"early_stopping": rule} for rule in EARLY_STOPPING)],
    ids=["greedy", *map(str, EARLY_STOPPING)],
)
def test_same_hypotheses(pair, tmp_path, attention, settings):
    """By the settings of the folder, with these changed."""
    theirs, tokenizer, folder = pair
    lines = [f"{TEXT[start % 20 :][: 5 + 2 * start]} {start}" for start in range(50)]
    batch = tokenizer(lines, return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    found = theirs.generate(**batch, **settings)
    expected = [tokenizer.decode(row, skip_special_tokens=True) for row in found]
    changed = tmp_path / "theirs"
    changed.mkdir()
    for path in (folder / "theirs").iterdir():
        (changed / path.name).symlink_to(path)
    given = json.loads((folder / "theirs" / "generation_config.json").read_text()) | settings
    (changed / "generation_config.json").unlink()
    (changed / "generation_config.json").write_text(json.dumps(given))
    options = from_hugging_face(changed).generation
    assert load(folder / "ours", attention).generate(lines, **options) == expected
    assert len(set(expected)) > 3 and max(row.ne(0).sum() for row in found) < 59


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


def ids(loaded, line):
    """As the model reads them."""
    tokens = loaded.task.source_dictionary.encode_line(loaded.bpe.encode(line), add_if_not_exist=False).long()
    return loaded.task.build_dataset_for_inference([tokens], [len(tokens)])[0]["source"].tolist()


def test_tokens(pair):
    _, tokenizer, folder = pair
    loaded = load(folder / "ours")
    rows = fairseq_rows(len(tokenizer))
    for line in (*LINES, *ODD, TEXT, TEXT.upper()):
        expected = rows[tokenizer(line)["input_ids"]].tolist() or [2]  # of nothing a model cannot make anything
        assert ids(loaded, line) == expected, line


def test_tokens_of_random_texts(pair):
    _, tokenizer, folder = pair
    loaded = load(folder / "ours")
    rows = fairseq_rows(len(tokenizer))
    generator = random.Random(1)
    parts = [*TEXT.upper().split(), *TEXT.split(), *SYMBOLS, "\n", "\n", " ", " ", " ", *".,!?()'@:;-", "Σ", "σ", "·"]
    parts += ["@@", "</w>", "__newln__", "\t", "\x1c", "\x85", "\u3000", "\u200b", "ʰ", "İ", "é", "é", "ß"]
    parts += ["👍", "\u00ad"]
    for _ in range(1000):
        line = "".join(generator.choices(parts, k=generator.randrange(1, 12)))
        assert ids(loaded, line) == (rows[tokenizer(line)["input_ids"]].tolist() or [2]), line


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
    loaded = load(tmp_path / "ours")
    rows = fairseq_rows(len(tokenizer))
    for line in ("Don't [LAUGH] don't [laugh]", "the <s> DON'T", *ODD):
        assert ids(loaded, line) == rows[tokenizer(line)["input_ids"]].tolist(), line


# --- the way back


def test_round_trip(pair, tmp_path):
    theirs, tokenizer, folder = pair
    again = back(folder / "ours", tmp_path / "again")
    assert_same_tensors(folder / "theirs", again)
    assert not (again / "tokenizer.json").exists()
    assert (again / "merges.txt").read_text() == (folder / "theirs" / "merges.txt").read_text()
    loaded = transformers.BlenderbotSmallForConditionalGeneration.from_pretrained(again)
    settings, expected = (each.generation_config for each in (loaded, theirs))
    for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id", "num_beams", "max_length", "length_penalty"):
        assert getattr(settings, name) == getattr(expected, name), name
    found = transformers.AutoTokenizer.from_pretrained(again)
    assert type(found) is transformers.BlenderbotSmallTokenizer
    assert found.get_vocab() == tokenizer.get_vocab()
    for line in (*LINES, *ODD):
        assert found(line)["input_ids"] == tokenizer(line)["input_ids"]


def test_other_programs(pair, tmp_path):
    """CTranslate2 and fairseq add positions before the norm."""
    folder = pair[-1]
    args = {"model": str(folder / "ours"), "output": str(tmp_path / "out"), "data": None, "overwrite": False}
    for convert_to in (command.convert_to_ctranslate2, command.convert_to_fairseq):
        with pytest.raises(UserError, match="before positions are added .--norm-before-positions."):
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


def test_a_tokenizer_json_alone(pair, tmp_path):
    """It is followed, whatever wrote it."""
    _, tokenizer, folder = pair
    make(tmp_path / "theirs")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "theirs" / name).unlink()
    (tmp_path / "theirs" / "tokenizer.json").write_bytes((folder / "ours" / "tokenizer.json").read_bytes())
    followed = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "__unk__"}
    change(tmp_path / "theirs" / "tokenizer_config.json", **followed)
    convert(tmp_path / "theirs", tmp_path / "ours")
    loaded = load(tmp_path / "ours")
    rows = fairseq_rows(len(tokenizer))
    for line in ODD:
        assert ids(loaded, line) == rows[tokenizer(line)["input_ids"]].tolist(), line


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
