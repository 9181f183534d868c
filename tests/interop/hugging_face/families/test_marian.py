"""Marian against transformers: logits, hypotheses, tokens, and the way back."""

import json
import shutil
from types import SimpleNamespace

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

from elseq.cli import conversions as command
from elseq.errors import UserError
from elseq.interop.hugging_face.conversion import from_hugging_face
from elseq.interop.hugging_face.families.marian import sines
from elseq.subwords.pieces import as_word
from tests.interop.hugging_face.families.multilingual.test_models import LINES, SIZES
from tests.interop.hugging_face.making import change, convert, load, padded
from tests.interop.hugging_face.test_conversion import assert_same_tensors, back
from tests.interop.hugging_face.test_sentencepieces import TEXT, train

transformers = pytest.importorskip("transformers")

TARGET_TEXT = "der schnelle braune fuchs springt über den faulen hund und der innere kreis denkt es gibt drei wege"
ODD = ["a</s>b", "the <unk> dog", ">>fra<< the dog", ">>xyz<< the dog", "the >>fra<< dog", ">>fra<<", "<pad> ", ">>"]


def make(folder, seed=2, text=TEXT, normalization_rule_name="nmt_nfkc", **options):
    """As opus-mt's: pad is the last word, its row is 0, and a bias tells frequent words."""
    folder.mkdir(parents=True)
    rule = {"normalization_rule_name": normalization_rule_name}
    paths = train(folder / "source.spm", text=text, **rule), train(folder / "target.spm", text=TARGET_TEXT)
    models = [sentencepiece.SentencePieceProcessor(model_file=str(path)) for path in paths]
    pieces = [model.id_to_piece(number) for model in models for number in range(3, model.get_piece_size())]
    names = [*dict.fromkeys(["</s>", "<unk>", *pieces, ">>fra<<"]), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    languages = {"source_lang": "en", "target_lang": "de"}
    (folder / "tokenizer_config.json").write_text(json.dumps(languages))
    pad = len(names) - 1
    symbols = {"vocab_size": len(names), "pad_token_id": pad, "decoder_start_token_id": pad}
    symbols |= {"bos_token_id": 0, "eos_token_id": 0, "forced_eos_token_id": 0}
    old = {"static_position_embeddings": True, "normalize_embedding": False, "add_bias_logits": False}
    fixed = {"activation_function": "swish", "scale_embedding": True}
    config = transformers.MarianConfig(**(SIZES | symbols | fixed | old | options))
    torch.manual_seed(seed)
    model = transformers.MarianMTModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
        model.model.decoder.embed_tokens.weight[pad] = 0
        model.final_logits_bias.copy_(0.5 * torch.randn_like(model.final_logits_bias))
        model.final_logits_bias[0, 0] += 6  # so that texts end
        model.final_logits_bias[0, pad] = 0
    settings = {"num_beams": 4, "early_stopping": True, "max_length": 60, "bad_words_ids": [[pad]]}
    settings |= {"no_repeat_ngram_size": 2, "min_length": 8}  # else a random model repeats one word
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("marian")
    model = make(folder / "theirs")
    convert(folder / "theirs", folder / "ours")
    return model, folder


def texts(model, number=40):
    """With their end symbols, in transformers' numbers."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 20, (number,), generator=generator).tolist()
    last = model.config.vocab_size - 1
    return [[*torch.randint(1, last, (length,), generator=generator).tolist(), 0] for length in lengths]


def fairseq_rows(loaded, folder):
    """fairseq's row of each of transformers' numbers."""
    numbers = json.loads((folder / "vocab.json").read_text())
    words = [as_word(name) for name in sorted(numbers, key=numbers.get)]
    return torch.tensor([loaded.task.source_dictionary.index(word) for word in words])


@pytest.mark.parametrize("attention", ["kv", "el", "stock"])
def test_logits(pair, attention):
    assert_same_logits(*pair, attention)


@torch.no_grad()
def assert_same_logits(theirs, folder, attention):
    pad = theirs.config.pad_token_id
    loaded = load(folder / "ours", attention)
    rows = fairseq_rows(loaded, folder / "theirs")
    batch = padded(texts(theirs), pad)
    targets = padded([[pad, *row[:-1]] for row in texts(theirs)], pad)
    mask = batch.ne(pad)
    expected = theirs(input_ids=batch, attention_mask=mask.long(), decoder_input_ids=targets).logits
    our_targets = rows[targets]
    our_targets[:, 0] = 2  # decoding starts from </s> in fairseq
    found = loaded.model(rows[batch], mask.sum(dim=1), our_targets)[0]
    words = targets.ne(pad)
    words[:, 0] = True
    assert expected[words].std() > 0.5
    torch.testing.assert_close(found[words][:, rows], expected[words], rtol=1e-5, atol=1e-5)
    assert found[words].softmax(dim=-1)[:, 0].max() == 0  # <s>, which a Marian has not


@torch.no_grad()
@pytest.mark.parametrize("attention", ["kv", "el"])
@pytest.mark.parametrize("settings", [{"num_beams": 1}, {}], ids=["greedy", "its own settings"])
def test_same_hypotheses(pair, attention, settings):
    theirs, folder = pair
    loaded = load(folder / "ours", attention)
    lines = [TEXT[start : start + 20 + 3 * start] for start in range(25)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "theirs")
    batch = tokenizer(lines, return_tensors="pt", padding=True)
    expected = theirs.generate(**batch, **settings)
    expected = [tokenizer.decode(row, skip_special_tokens=True) for row in expected]
    options = from_hugging_face(folder / "theirs").generation | ({"beam": 1} if settings else {})
    assert loaded.generate(lines, **options) == expected
    assert len(set(expected)) > 3 and max(map(len, expected)) > 2


def test_notes(tmp_path):
    """Nothing is left out: padding, which the settings forbid, fairseq never generates."""
    make(tmp_path / "theirs")
    assert convert(tmp_path / "theirs", tmp_path / "ours").notes == []


def test_tokens(pair):
    _, folder = pair
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "theirs")
    loaded = load(folder / "ours")
    rows = fairseq_rows(loaded, folder / "theirs")
    for line in (*LINES, *ODD):
        tokens = loaded.task.source_dictionary.encode_line(loaded.bpe.encode(line), add_if_not_exist=False)
        assert tokens.tolist() == rows[tokenizer(line)["input_ids"]].tolist(), line
        assert loaded.task.build_dataset_for_inference([tokens], [1])[0]["source"].tolist() == tokens.tolist()


def test_pieces_with_white_space(tmp_path):
    """No word of a dictionary has any."""
    text = " ".join(f"{word}\x85\u2028{word}" for word in TEXT.split())
    make(tmp_path / "theirs", text=text, normalization_rule_name="identity")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    loaded = load(tmp_path / "ours")
    rows = fairseq_rows(loaded, tmp_path / "theirs")
    for line in ("the\x85\u2028the dog", "a\u2028b", "a\u3000b", "\x85"):
        numbers = tokenizer(line)["input_ids"]
        words = loaded.bpe.encode(line)
        tokens = loaded.task.source_dictionary.encode_line(words, add_if_not_exist=False)
        assert tokens.tolist() == rows[numbers].tolist()
        assert loaded.bpe.decode(words) == tokenizer.decode(numbers, skip_special_tokens=True)
    assert rows.unique().numel() == len(rows) and any("\x85" in name for name in tokenizer.get_vocab())


def test_text(pair):
    _, folder = pair
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "theirs")
    loaded = load(folder / "ours")
    rows = fairseq_rows(loaded, folder / "theirs")
    for numbers in texts(pair[0], 20):
        words = loaded.task.target_dictionary.string(rows[numbers])
        assert loaded.bpe.decode(words) == tokenizer.decode(numbers, skip_special_tokens=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_round_trip(tmp_path, dtype):
    model = make(tmp_path / "theirs").to(dtype)
    model.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    again = back(tmp_path / "ours", tmp_path / "again")
    assert_same_tensors(tmp_path / "theirs", again)
    for name in ("source.spm", "target.spm", "vocab.json"):
        assert (again / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    loaded = transformers.MarianMTModel.from_pretrained(again)
    settings, expected = (each.generation_config for each in (loaded, model))
    for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id", "forced_eos_token_id", "bad_words_ids"):
        assert getattr(settings, name) == getattr(expected, name), name
    for name in ("num_beams", "early_stopping", "max_length"):
        assert getattr(settings, name) == getattr(expected, name), name
    assert loaded.config.vocab_size == model.config.vocab_size
    tokenizers = [transformers.AutoTokenizer.from_pretrained(tmp_path / name) for name in ("theirs", "again")]
    assert tokenizers[0](TEXT)["input_ids"] == tokenizers[1](TEXT)["input_ids"]


def test_sines():
    """As transformers computes them."""
    embedding = transformers.models.marian.modeling_marian.MarianSinusoidalPositionalEmbedding(50, 12)
    assert torch.equal(sines(50, 12), embedding.create_weight())


def test_fairseqs_commands(pair, tmp_path):
    """fairseq-generate's options, which from-hf prints, find what elseq.load finds."""
    from tests import helpers

    _, folder = pair
    converted = convert(folder / "theirs", tmp_path / "ours")
    assert f"--tokenizer-json {tmp_path / 'ours' / 'vocab.json'}" in command._generation_command(
        converted, tmp_path / "ours"
    )
    options = ["--path", tmp_path / "ours" / "model.pt", "--task=elseq_translation", *converted.task_arguments]
    options += ["--bpe=hugging_face", "--tokenizer-json", tmp_path / "ours" / "vocab.json", "--beam=2"]
    fairseq = ["fairseq-interactive", tmp_path / "ours", "--user-dir", helpers.USER_DIR, "--cpu", *options]
    log = helpers.run_here([*fairseq, "--max-len-b=8"], input=b"the lazy dog\n").stdout
    [text] = load(folder / "ours").generate(["the lazy dog"], beam=2, max_len_b=8)
    assert f"\t{text}\n" in log


def test_fewer_heads(pair, tmp_path):
    """The bias and the table of positions come along."""
    _, folder = pair
    shutil.copytree(folder / "ours", tmp_path / "model")
    arguments = {"model": str(tmp_path / "model"), "output": str(tmp_path / "model" / "checkpoint_best.pt")}
    options = {"num_kv_heads": 4, "places": None, "method": "mean", "seed": 1, "overwrite": False, "user_dir": None}
    command.convert_heads(SimpleNamespace(**arguments, **options))
    (tmp_path / "model" / "model.pt").unlink()
    lines = ["the lazy dog", "three ways"]
    assert load(tmp_path / "model").generate(lines, max_len_b=20) == load(folder / "ours").generate(lines, max_len_b=20)


# --- what cannot be


@pytest.mark.parametrize("convert_to", [command.convert_to_ctranslate2, command.convert_to_fairseq])
def test_programs_without_the_bias(pair, tmp_path, convert_to):
    _, folder = pair
    args = {"model": str(folder / "ours"), "output": str(tmp_path / "out"), "data": None, "overwrite": False}
    with pytest.raises(UserError, match="the model has a bias in its output layer .--output-bias."):
        convert_to(SimpleNamespace(**args, quantization=None, user_dir=None))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"decoder_start_token_id": 5}, "decoder_start_token_id: 5, and the family's models begin to decode with pad"),
        ({"share_encoder_decoder_embeddings": False}, "lacks tensor encoder.embed_tokens.weight and 4 more"),
        ({"normalize_before": True}, "has normalize_before: True, which fairseq's model does not have"),
        ({"pad_token_id": 5, "decoder_start_token_id": 5}, "of another model, since its <pad> is number"),
    ],
)
def test_other_configurations(tmp_path, options, sentence):
    make(tmp_path / "theirs")
    change(tmp_path / "theirs" / "config.json", **options)
    with pytest.raises(UserError, match=sentence):
        convert(tmp_path / "theirs", tmp_path / "ours")


def test_two_vocabularies(tmp_path):
    make(tmp_path / "theirs")
    change(tmp_path / "theirs" / "tokenizer_config.json", separate_vocabs=True)
    with pytest.raises(UserError, match="has separate_vocabs: only models with one vocabulary are converted"):
        convert(tmp_path / "theirs", tmp_path / "ours")


def test_a_missing_part_of_the_tokenizer(tmp_path):
    make(tmp_path / "theirs")
    (tmp_path / "theirs" / "target.spm").unlink()
    with pytest.raises(UserError, match="target.spm, a part of the tokenizer, is missing: copy it there"):
        convert(tmp_path / "theirs", tmp_path / "ours")


def test_positions_in_the_file(tmp_path):
    """Old folders have them, and older versions of transformers read them."""
    make(tmp_path / "theirs")
    path = tmp_path / "theirs" / "model.safetensors"
    positions = {f"model.{side}.embed_positions.weight": sines(64, 32) for side in ("encoder", "decoder")}
    save_file(load_file(path) | positions, path)
    convert(tmp_path / "theirs", tmp_path / "ours")
    state = torch.load(tmp_path / "ours" / "model.pt", weights_only=False)["model"]
    assert torch.equal(state["decoder.embed_positions.weight"][2:], sines(64, 32))


@torch.no_grad()
@pytest.mark.parametrize("is_tied", [True, False])
def test_embeddings_of_their_own(tmp_path, is_tied):
    """Those of encoder and decoder, or also that of the output layer."""
    options = {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": is_tied}
    theirs = make(tmp_path / "theirs", **options)
    embeddings = theirs.model.encoder.embed_tokens, theirs.model.decoder.embed_tokens, theirs.lm_head
    assert [torch.equal(one.weight, embeddings[1].weight) for one in embeddings] == [False, True, is_tied]
    convert(tmp_path / "theirs", tmp_path / "ours")
    assert_same_logits(theirs, tmp_path, "kv")
    again = back(tmp_path / "ours", tmp_path / "again")
    loaded = transformers.MarianMTModel.from_pretrained(again)
    batch = torch.tensor([[5, 9, 7, 0]])
    read = torch.tensor([[theirs.config.pad_token_id, 9, 5]])
    expected, found = (model(input_ids=batch, decoder_input_ids=read).logits for model in (theirs, loaded))
    assert torch.equal(found, expected)


def test_positions_of_their_own(tmp_path, capsys):
    """After a training they are no sines; transformers reads them from the folder."""
    make(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    state = torch.load(tmp_path / "ours" / "model.pt", weights_only=False)
    state["model"]["encoder.embed_positions.weight"][2:] += 0.1
    torch.save(state, tmp_path / "ours" / "model.pt")
    again = back(tmp_path / "ours", tmp_path / "again")
    assert "note: training has changed the positions, which were sines: transformers reads" in capsys.readouterr().out
    assert_same_logits(transformers.MarianMTModel.from_pretrained(again).eval(), tmp_path, "kv")


@pytest.mark.parametrize("rows", [7, "many"])
def test_vocabularies_of_two_sizes(tmp_path, rows):
    make(tmp_path / "theirs")
    change(tmp_path / "theirs" / "config.json", decoder_vocab_size=rows)
    with pytest.raises(UserError, match=f"and decoder_vocab_size: {rows!r}: only models with one vocabulary"):
        convert(tmp_path / "theirs", tmp_path / "ours")
