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
from tests.interop.hugging_face import making
from tests.interop.hugging_face.making import (
    LINES,
    SETTINGS,
    SIZES,
    TEXT,
    assert_same_hypotheses,
    assert_same_ids,
    assert_same_logits,
    assert_same_model,
    assert_same_tensors,
    back,
    change,
    convert,
    load,
    random_texts,
    save_with_settings,
)
from tests.interop.hugging_face.test_sentencepieces import train

transformers = pytest.importorskip("transformers")

TARGET_TEXT = "der schnelle braune fuchs springt über den faulen hund und der innere kreis denkt es gibt drei wege"
ODD = ["a</s>b", "the <unk> dog", ">>fra<< the dog", ">>xyz<< the dog", "the >>fra<< dog", ">>fra<<", "<pad> ", ">>"]


KINDS = ["one vocabulary", "two vocabularies"]
NUMBERS = {"source": "vocab.json", "target": "target_vocab.json"}


def make(folder, kind=KINDS[0], seed=2, text=TEXT, rule="nmt_nfkc", pad_bias=0.0, end_bias=6.0, **options):
    """As opus-mt's: the row of <pad> is 0, and a bias tells frequent words.

    With one vocabulary <pad> is the last word. With two it is the third of both, which have different sizes.
    """
    folder.mkdir(parents=True)
    source = train(folder / "source.spm", text=text, normalization_rule_name=rule)
    paths = source, train(folder / "target.spm", text=TARGET_TEXT)
    models = [sentencepiece.SentencePieceProcessor(model_file=str(path)) for path in paths]
    pieces = [[model.id_to_piece(number) for number in range(3, model.get_piece_size())] for model in models]
    settings = {"source_lang": "en", "target_lang": "de"}
    if kind == KINDS[0]:
        names = [*dict.fromkeys(["</s>", "<unk>", *pieces[0], *pieces[1], ">>fra<<"]), "<pad>"]
        pad, names = len(names) - 1, {"source": names}
        symbols = {}
    else:
        names = {side: ["</s>", "<unk>", "<pad>", *own] for side, own in zip(NUMBERS, pieces, strict=True)}
        names["source"].append(">>fra<<")
        settings["separate_vocabs"], pad = True, 2
        symbols = {"decoder_vocab_size": len(names["target"]), "share_encoder_decoder_embeddings": False}
    for side, words in names.items():
        (folder / NUMBERS[side]).write_text(json.dumps({name: number for number, name in enumerate(words)}))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    symbols |= {"vocab_size": len(names["source"]), "pad_token_id": pad, "decoder_start_token_id": pad}
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
        for embedding in (model.model.encoder.embed_tokens, model.model.decoder.embed_tokens):
            embedding.weight[pad] = 0
        model.final_logits_bias.copy_(0.5 * torch.randn_like(model.final_logits_bias))
        model.final_logits_bias[0, 0] += end_bias  # so that texts end
        model.final_logits_bias[0, pad] = pad_bias
    return save_with_settings(model, folder, length_penalty=1.0)


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("marian")
    model = make(folder / "theirs", request.param)
    convert(folder / "theirs", folder / "ours")
    return model, folder


def texts(model, number=40, side="source"):
    """With their end symbols, in transformers' numbers."""
    rows = model.config.decoder_vocab_size if side == "target" else model.config.vocab_size
    return random_texts([row for row in range(1, rows) if row != model.config.pad_token_id], [0], number)


def fairseq_rows(loaded, folder, side="source"):
    """fairseq's row of each of transformers' numbers."""
    path = folder / NUMBERS[side]
    numbers = json.loads((path if path.exists() else folder / NUMBERS["source"]).read_text())
    words = [as_word(name) for name in sorted(numbers, key=numbers.get)]
    dictionary = getattr(loaded.task, f"{side}_dictionary")
    return torch.tensor([dictionary.index(word) for word in words])


@pytest.mark.parametrize("attention", ["kv", "el", "stock"])
def test_logits(pair, attention):
    assert_same_numbers(*pair, attention)


def assert_same_numbers(theirs, folder, attention):
    loaded = load(folder / "ours", attention)
    rows, target_rows = (fairseq_rows(loaded, folder / "theirs", side) for side in NUMBERS)
    found = assert_same_logits(theirs, loaded, texts(theirs), texts(theirs, side="target"), rows, target_rows)
    assert found.softmax(dim=-1)[:, 0].max() == 0  # <s>, which a Marian has not


SOURCES = [TEXT[start : start + 20 + 3 * start] for start in range(50)]


@pytest.mark.few_cases(4)
@pytest.mark.parametrize("attention", ["kv", "el"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_same_hypotheses(pair, attention, settings):
    theirs, folder = pair
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "theirs")
    assert_same_hypotheses(theirs, tokenizer, folder, attention, SOURCES, settings)


@pytest.mark.parametrize("kind", KINDS)
def test_notes(tmp_path, kind):
    """Nothing is left out: padding, which the settings forbid, fairseq never generates."""
    make(tmp_path / "theirs", kind)
    assert convert(tmp_path / "theirs", tmp_path / "ours").notes == []


def test_notes_of_a_side(tmp_path):
    make(tmp_path / "theirs", KINDS[1])
    path = tmp_path / "theirs" / "target_vocab.json"
    numbers = json.loads(path.read_text())
    path.write_text(json.dumps({name: number for name, number in numbers.items() if number != 9}))
    notes = ["target: 1 rows of the embedding are of no word in the vocabulary"]
    assert convert(tmp_path / "theirs", tmp_path / "ours").notes == notes


def test_tokens(pair):
    _, folder = pair
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "theirs")
    loaded = load(folder / "ours")
    assert_same_ids(loaded, tokenizer, fairseq_rows(loaded, folder / "theirs"), (*LINES, *ODD))


def test_tokens_of_targets(pair):
    """The target's model and vocabulary encode what a target begins with, and what is to be scored."""
    theirs, folder = pair
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "theirs")
    loaded = load(folder / "ours")
    rows = fairseq_rows(loaded, folder / "theirs", "target")
    lines = [*LINES, *ODD, "der schnelle fuchs", "faulen"]
    for line in lines:
        words = loaded.bpe.of_targets.encode(line)
        tokens = loaded.task.target_dictionary.encode_line(words, add_if_not_exist=False)
        assert tokens.tolist() == rows[tokenizer(text_target=line)["input_ids"]].tolist(), line
    lines = [line for line in lines if "</s>" not in line]  # whose row the decoder has not, but as that of the start
    with torch.no_grad():
        for found in loaded.score(["the lazy dog"] * len(lines), lines):
            batch = tokenizer("the lazy dog", text_target=found.text, return_tensors="pt")
            assert len(found.tokens) == batch["labels"].size(1)
            assert found.score == pytest.approx(-theirs(**batch).loss.item() * len(found.tokens), rel=1e-4)
    [text] = loaded.generate(["the lazy dog"], prefixes=["der schnelle"], max_len_b=20)
    assert text.startswith("der schnelle")


def test_pieces_with_white_space(tmp_path):
    """No word of a dictionary has any."""
    text = " ".join(f"{word}\x85\u2028{word}" for word in TEXT.split())
    make(tmp_path / "theirs", text=text, rule="identity")
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
    rows = fairseq_rows(loaded, folder / "theirs", "target")
    for numbers in texts(pair[0], 20, "target"):
        words = loaded.task.target_dictionary.string(rows[numbers])
        assert loaded.bpe.decode(words) == tokenizer.decode(numbers, skip_special_tokens=True)


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_round_trip(tmp_path, kind, dtype):
    model = make(tmp_path / "theirs", kind).to(dtype)
    model.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    again = back(tmp_path / "ours", tmp_path / "again")
    own = [NUMBERS["target"]] if kind == KINDS[1] else []
    for name in ("source.spm", "target.spm", "vocab.json", *own):
        assert (again / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    loaded = assert_same_model(model, tmp_path / "theirs", again)
    assert loaded.generation_config.bad_words_ids == model.generation_config.bad_words_ids
    assert loaded.generation_config.forced_eos_token_id == model.generation_config.forced_eos_token_id
    for name in ("vocab_size", "decoder_vocab_size", "share_encoder_decoder_embeddings", "pad_token_id"):
        assert getattr(loaded.config, name) == getattr(model.config, name), name
    tokenizers = [transformers.AutoTokenizer.from_pretrained(tmp_path / name) for name in ("theirs", "again")]
    for side in ("text", "text_target"):
        assert tokenizers[0](**{side: TEXT})["input_ids"] == tokenizers[1](**{side: TEXT})["input_ids"]


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("has_two", [False, True])
def test_embeddings_of_their_own_for_one_vocabulary(tmp_path, has_two):
    """Or for two that are equal."""
    theirs = make(tmp_path / "theirs", share_encoder_decoder_embeddings=False)
    if has_two:
        change(tmp_path / "theirs" / "tokenizer_config.json", separate_vocabs=True)
        shutil.copy(tmp_path / "theirs" / "vocab.json", tmp_path / "theirs" / "target_vocab.json")
    convert(tmp_path / "theirs", tmp_path / "ours")
    again = back(tmp_path / "ours", tmp_path / "again")
    assert_same_tensors(tmp_path / "theirs", again)
    tokenizer = transformers.AutoTokenizer.from_pretrained(again)
    batch = tokenizer(SOURCES[:10], return_tensors="pt", padding=True)
    expected = [tokenizer.decode(row, skip_special_tokens=True) for row in theirs.generate(**batch)]
    options = from_hugging_face(tmp_path / "theirs").generation
    assert load(tmp_path / "ours").generate(SOURCES[:10], **options) == expected


def test_byte_pairs_for_two_dictionaries(tmp_path, capsys):
    """Of fairseq's files: transformers gives the tokens of both sides the same numbers."""
    make(tmp_path / "theirs", KINDS[1])
    convert(tmp_path / "theirs", tmp_path / "ours")
    for path in (tmp_path / "ours").iterdir():
        if path.name not in ("model.pt", "dict.source.txt", "dict.target.txt"):
            path.unlink()
    numbers = {piece: number for number, piece in enumerate(making.PIECES)}
    (tmp_path / "ours" / "encoder.json").write_text(json.dumps(numbers))
    (tmp_path / "ours" / "vocab.bpe").write_text("\n".join(["#version: 0.2", *making.MERGES, ""]))
    again = back(tmp_path / "ours", tmp_path / "again")
    written = "no tokenizer was written: transformers has none of GPT-2's BPE with a vocabulary for each side"
    assert f"note: {written}\n" in capsys.readouterr().out
    assert {path.name for path in again.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}


def test_sines():
    """As transformers computes them."""
    embedding = transformers.models.marian.modeling_marian.MarianSinusoidalPositionalEmbedding(50, 12)
    assert torch.equal(sines(50, 12), embedding.create_weight())


@pytest.mark.few_cases(1)
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
    arguments = {"model": str(tmp_path / "model"), "output": tmp_path / "model" / "checkpoint_best.pt"}
    options = {"num_kv_heads": 4, "places": None, "method": "mean", "grouping": "neighbours", "seed": 1}
    options |= {"overwrite": False, "user_dir": None, "data": None, "calibration": None, "calibration_target": None}
    command.convert_heads(SimpleNamespace(**arguments, **options))
    (tmp_path / "model" / "model.pt").unlink()
    lines = ["the lazy dog", "three ways"]
    assert load(tmp_path / "model").generate(lines, max_len_b=20) == load(folder / "ours").generate(lines, max_len_b=20)


# --- CTranslate2


def to_ctranslate2(folder, output, **options):
    args = {"model": str(folder), "output": output, "data": None, "overwrite": False}
    command.convert_to_ctranslate2(SimpleNamespace(**(args | {"quantization": None} | options)))
    return str(output)


def translate(folder, sources, **options):
    """The words of CTranslate2's best hypothesis of each source."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    translator = ctranslate2.Translator(folder, intra_threads=1)
    return [result.hypotheses[0] for result in translator.translate_batch(sources, max_decoding_length=58, **options)]


@pytest.mark.few_cases(1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beam", [1, 4])
def test_ctranslate2(tmp_path, kind, beam):
    """It divides the probability of words that are excluded among the others. So in beam search none is here."""
    options = {"pad_bias": -30.0, "seed": 4, "end_bias": 5.0} if beam > 1 else {}
    make(tmp_path / "theirs", kind, **options)
    convert(tmp_path / "theirs", tmp_path / "ours")
    loaded = load(tmp_path / "ours")
    shortest, ngram = (7, 2) if beam == 1 else (0, 0)
    found = translate(
        to_ctranslate2(tmp_path / "ours", tmp_path / "model"),
        [loaded.bpe.encode(line).split() for line in SOURCES],
        beam_size=beam,
        min_decoding_length=shortest,
        no_repeat_ngram_size=ngram,
    )
    limits = {"min_len": shortest, "max_len_b": 58, "no_repeat_ngram_size": ngram}
    expected = loaded.generate(SOURCES, beam=beam, return_scores=True, **limits)
    whole = [number for number, hypothesis in enumerate(expected) if len(hypothesis.tokens) <= 58]
    assert [found[number] for number in whole] == [list(expected[number].tokens[:-1]) for number in whole]
    assert len(whole) >= 35 and len({tuple(found[number]) for number in whole}) > 4


@pytest.mark.parametrize("beam", [1, 4])
def test_ctranslate2_as_by_its_own_converter(tmp_path, beam):
    """Which omits the row of <pad>, and converts no model with two vocabularies."""
    converters = pytest.importorskip("ctranslate2.converters")
    make(tmp_path / "theirs")
    converters.TransformersConverter(str(tmp_path / "theirs")).convert(str(tmp_path / "own"))
    convert(tmp_path / "theirs", tmp_path / "ours")
    bpe = load(tmp_path / "ours").bpe
    words = [bpe.encode(line).split() for line in SOURCES]
    options = {"beam_size": beam, "min_decoding_length": 7, "no_repeat_ngram_size": 2}
    own = translate(str(tmp_path / "own"), [[*source, "</s>"] for source in words], **options)
    found = translate(to_ctranslate2(tmp_path / "ours", tmp_path / "model"), words, **options)
    assert found == own and len(set(map(tuple, own))) > 3


def test_ctranslate2_in_int8(pair, tmp_path):
    _, folder = pair
    model = to_ctranslate2(folder / "ours", tmp_path / "model", quantization="int8")
    [words] = translate(model, [load(folder / "ours").bpe.encode("the lazy dog").split()], min_decoding_length=7)
    assert len(words) >= 7


def test_what_ctranslate2_does_not_have(tmp_path):
    pytest.importorskip("ctranslate2")
    make(tmp_path / "theirs", decoder_attention_heads=2)
    convert(tmp_path / "theirs", tmp_path / "ours")
    sentence = "CTranslate2 does not have this model: .*--encoder-attention-heads and --decoder-attention-heads must"
    with pytest.raises(UserError, match=sentence) as error:
        to_ctranslate2(tmp_path / "ours", tmp_path / "model")
    assert "\n" not in str(error.value) and not (tmp_path / "model").exists()


# --- what cannot be


def test_fairseq_without_the_bias(pair, tmp_path):
    _, folder = pair
    args = {"model": str(folder / "ours"), "output": tmp_path / "out", "data": None, "overwrite": False}
    with pytest.raises(UserError, match="the model has a bias in its output layer .--output-bias."):
        command.convert_to_fairseq(SimpleNamespace(**args, quantization=None, user_dir=None))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"decoder_start_token_id": 5}, "decoder_start_token_id: 5, and the family's models begin to decode with pad"),
        ({"share_encoder_decoder_embeddings": False}, "lacks tensor encoder.embed_tokens.weight and 3 more"),
        ({"share_encoder_decoder_embeddings": 1}, "share_encoder_decoder_embeddings: 1, where true or false is needed"),
        ({"decoder_vocab_size": "all"}, "has decoder_vocab_size: 'all', where a whole number above 0 is needed"),
        ({"tie_word_embeddings": False}, "lacks tensor lm_head.weight"),
        ({"normalize_before": True}, "has normalize_before: True, which fairseq's model does not have"),
        ({"pad_token_id": 5, "decoder_start_token_id": 5}, "of another model, since its <pad> is number"),
    ],
)
def test_other_configurations(tmp_path, options, sentence):
    make(tmp_path / "theirs")
    change(tmp_path / "theirs" / "config.json", **options)
    with pytest.raises(UserError, match=sentence):
        convert(tmp_path / "theirs", tmp_path / "ours")


def test_two_vocabularies_of_one_embedding(tmp_path):
    make(tmp_path / "theirs")
    change(tmp_path / "theirs" / "tokenizer_config.json", separate_vocabs=True)
    shutil.copy(tmp_path / "theirs" / "vocab.json", tmp_path / "theirs" / "target_vocab.json")
    with pytest.raises(UserError, match="embeddings: True, and the tokenizer in .* separate_vocabs: it is of another"):
        convert(tmp_path / "theirs", tmp_path / "ours")


@pytest.mark.parametrize("name, number", [("<unk>", 70), ("</s>", 0), ("other", 2)])
def test_symbols_with_two_numbers(tmp_path, name, number):
    """transformers knows one number of each: that in vocab.json."""
    make(tmp_path / "theirs", KINDS[1])
    path = tmp_path / "theirs" / "target_vocab.json"
    numbers = json.loads(path.read_text())
    if name == "</s>":
        del numbers[name]
    elif name == "other":
        del numbers["<pad>"]
    path.write_text(json.dumps(numbers | {"other" if name == "</s>" else name: number}))
    with pytest.raises(UserError, match="target_vocab.json does not have '<?.*>' where vocab.json has it, as number"):
        convert(tmp_path / "theirs", tmp_path / "ours")


def test_padding_without_a_row(tmp_path):
    make(tmp_path / "theirs")
    numbers = json.loads((tmp_path / "theirs" / "vocab.json").read_text())
    (tmp_path / "theirs" / "vocab.json").write_text(json.dumps(numbers | {"<pad>": 5000}))
    change(tmp_path / "theirs" / "config.json", pad_token_id=5000, decoder_start_token_id=5000)
    with pytest.raises(UserError, match="config.json has pad_token_id: 5000, and the embedding has"):
        convert(tmp_path / "theirs", tmp_path / "ours")


@pytest.mark.parametrize("name", ["target.spm", "target_vocab.json"])
def test_a_missing_part_of_the_tokenizer(tmp_path, name):
    make(tmp_path / "theirs", KINDS[1])
    (tmp_path / "theirs" / name).unlink()
    with pytest.raises(UserError, match=f"{name}, a part of the tokenizer, is missing: copy it there"):
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


@pytest.mark.few_cases(1)
@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_tied", [True, False])
def test_embeddings_of_their_own(tmp_path, kind, is_tied):
    """Those of encoder and decoder, or also that of the output layer."""
    options = {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": is_tied}
    theirs = make(tmp_path / "theirs", kind, **options)
    embeddings = theirs.model.encoder.embed_tokens, theirs.model.decoder.embed_tokens, theirs.lm_head
    assert [torch.equal(one.weight, embeddings[1].weight) for one in embeddings] == [False, True, is_tied]
    convert(tmp_path / "theirs", tmp_path / "ours")
    assert_same_numbers(theirs, tmp_path, "kv")
    again = back(tmp_path / "ours", tmp_path / "again")
    loaded = transformers.MarianMTModel.from_pretrained(again)
    assert loaded.config.tie_word_embeddings is is_tied
    batch = torch.tensor([[5, 9, 7, 0]])
    read = torch.tensor([[theirs.config.pad_token_id, 9, 5]])
    expected, found = (model(input_ids=batch, decoder_input_ids=read).logits for model in (theirs, loaded))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_positions_of_their_own(tmp_path, kind, capsys):
    """After a training they are no sines; transformers reads them from the folder."""
    make(tmp_path / "theirs", kind)
    convert(tmp_path / "theirs", tmp_path / "ours")
    state = torch.load(tmp_path / "ours" / "model.pt", weights_only=False)
    state["model"]["encoder.embed_positions.weight"][2:] += 0.1
    torch.save(state, tmp_path / "ours" / "model.pt")
    again = back(tmp_path / "ours", tmp_path / "again")
    assert "note: training has changed the positions, which were sines: transformers reads" in capsys.readouterr().out
    assert_same_numbers(transformers.MarianMTModel.from_pretrained(again).eval(), tmp_path, "kv")


def test_another_start(tmp_path):
    """The sentence is of the family that has such a model, and not of the first."""
    make(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    state = torch.load(tmp_path / "ours" / "model.pt", weights_only=False)
    state["cfg"]["task"]["decoder_start"] = ">>fra<<"
    torch.save(state, tmp_path / "ours" / "model.pt")
    with pytest.raises(
        UserError, match="it begins to decode with '>>fra<<' .--decoder-start., and Hugging Face's Mari"
    ):
        back(tmp_path / "ours", tmp_path / "again")


def test_dictionaries_of_another_tokenizer(tmp_path):
    """<pad> and </s> have one number in config.json."""
    make(tmp_path / "theirs", KINDS[1])
    convert(tmp_path / "theirs", tmp_path / "ours")
    path = tmp_path / "ours" / "target_vocab.json"
    numbers = json.loads(path.read_text())
    path.write_text(json.dumps(numbers | {"</s>": 2, "<pad>": 0}))
    with pytest.raises(UserError, match="<pad> or </s> has one number in sources and another in targets"):
        back(tmp_path / "ours", tmp_path / "again")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_16_bits(tmp_path, dtype):
    """The sines, which are not in the folder, are in float32 in transformers, whatever the others are in."""
    make(tmp_path / "theirs").to(dtype).save_pretrained(tmp_path / "theirs")
    theirs = transformers.MarianMTModel.from_pretrained(tmp_path / "theirs", dtype=torch.float32).eval()
    convert(tmp_path / "theirs", tmp_path / "ours")
    assert_same_numbers(theirs, tmp_path, "kv")
    again = transformers.MarianMTModel.from_pretrained(back(tmp_path / "ours", tmp_path / "again"))
    assert again.dtype == dtype
    assert_same_tensors(tmp_path / "theirs", tmp_path / "again")
