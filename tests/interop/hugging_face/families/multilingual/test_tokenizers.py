"""Tokenizers without tokenizer.json: the ids are those of transformers' classes, whatever a line holds.

Without protobuf transformers itself reads no such folder, and its classes are given what it would read in one.
"""

import json

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file

from elseq.cli import conversions as command
from elseq.errors import UserError
from elseq.interop.hugging_face.sentencepieces import read_model
from elseq.interop.hugging_face.tokenizer import read_tokenizer
from tests.interop.hugging_face.families.multilingual.test_models import make_model
from tests.interop.hugging_face.making import LINES, back, change, convert, load
from tests.interop.hugging_face.test_sentencepieces import train

transformers = pytest.importorskip("transformers")
converters = pytest.importorskip("transformers.convert_slow_tokenizer")
base = pytest.importorskip("transformers.tokenization_utils_base")

CLASSES = {
    "mbart25": ("MBartTokenizer", "MBartConverter", "unigram"),
    "mbart": ("MBart50Tokenizer", "MBart50Converter", "unigram"),
    "nllb": ("NllbTokenizer", "NllbConverter", "bpe"),
}
NLLB_LANGUAGES = ["ace_Arab", "deu_Latn", "eng_Latn"]
CODES = {"mbart25": ("en_XX", "ro_RO"), "mbart": ("en_XX", "de_DE"), "nllb": ("eng_Latn", "deu_Latn")}
CODES |= {"m2m_100": ("__en__", "__de__")}


def save_config(folder, **config):
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def save_nllb_config(folder, first):
    tokens = [*NLLB_LANGUAGES, "<mask>"]
    flags = {"special": True, "normalized": False}
    added = {first + number: {"content": token, **flags} for number, token in enumerate(tokens)}
    extra = {"extra_special_tokens": NLLB_LANGUAGES}
    save_config(folder, tokenizer_class="NllbTokenizer", added_tokens_decoder=added, **extra)


def theirs_of(kind, path, **options):
    """What transformers makes of a model's content."""
    name, converter, algorithm = CLASSES[kind]
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    numbers = range(processor.get_piece_size())
    content = {"vocab": [(processor.id_to_piece(number), processor.get_score(number)) for number in numbers]}
    if algorithm == "bpe":
        content["vocab"] = {processor.id_to_piece(number): number for number in numbers}
        content["merges"] = base.generate_merges(content["vocab"])
    content = getattr(converters, converter).convert_from_spm(**content)
    return getattr(transformers, name)(**content, _spm_precompiled_charsmap=read_model(path).charsmap, **options)


def make_m2m(folder):
    """Some pieces of the model are not in vocab.json, as in M2M-100's."""
    folder.mkdir()
    path = train(folder / "sentencepiece.bpe.model", "bpe")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = [processor.id_to_piece(number) for number in range(3, processor.get_piece_size())]
    numbers = {piece: number for number, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *pieces[:-9]])}
    (folder / "vocab.json").write_text(json.dumps(numbers))
    codes = transformers.models.m2m_100.tokenization_m2m_100.FAIRSEQ_LANGUAGE_CODES["m2m100"]
    languages = [f"__{code}__" for code in codes]
    save_config(folder, tokenizer_class="M2M100Tokenizer", additional_special_tokens=languages)
    return transformers.AutoTokenizer.from_pretrained(folder)


def make(folder, kind):
    """A folder without tokenizer.json, and transformers' tokenizer."""
    if kind == "m2m_100":
        tokenizer = make_m2m(folder)
    else:
        folder.mkdir()
        name, _, algorithm = CLASSES[kind]
        path = train(folder / "sentencepiece.bpe.model", algorithm)
        if kind == "nllb":
            size = sentencepiece.SentencePieceProcessor(model_file=str(path)).get_piece_size()
            save_nllb_config(folder, size + 1)
            extra = {"extra_special_tokens": [*NLLB_LANGUAGES]}
            extra["added_tokens_decoder"] = {
                size + 1 + number: transformers.AddedToken(token, special=True, normalized=False)
                for number, token in enumerate([*NLLB_LANGUAGES, "<mask>"])
            }
            tokenizer = theirs_of(kind, path, **extra)
        else:
            if kind == "mbart":
                save_config(folder, tokenizer_class=name)
            tokenizer = theirs_of(kind, path)
    _, target = map(tokenizer.convert_tokens_to_ids, CODES[kind])
    start, forced = (target, None) if kind == "mbart25" else (2, target)
    make_model(folder, kind, forced, vocab_size=len(tokenizer) + 8, decoder_start_token_id=start)
    return tokenizer


@pytest.fixture(scope="module", params=[*CLASSES, "m2m_100"])
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = make(folder / "theirs", request.param)
    convert(folder / "theirs", folder / "ours")
    return request.param, tokenizer, load(folder / "ours"), folder


ODD = [
    "a<mask>b",
    " <mask> the",
    "<s>the</s>",
    "<unk>",
    "<pad> dog",
    "ＡＢＣ",
    "{}the{}",
    " {} ",
    "de_DE",
    "tab\tnew",
]


@pytest.mark.few_cases(2)
def test_same_ids(both):
    kind, tokenizer, loaded, _ = both
    for line in [line.format(*CODES[kind]) for line in (*LINES, *ODD)]:
        dictionary = loaded.task.source_dictionary
        tokens = dictionary.encode_line(loaded.bpe.encode(line), add_if_not_exist=False).long()
        source = loaded.task.build_dataset_for_inference([tokens], [len(tokens)])[0]["source"]
        assert source.tolist() == tokenizer(line)["input_ids"], line


def test_same_text(both):
    kind, tokenizer, loaded, _ = both
    for line in ["the lazy dog", "three ways , and the fox", "{}the dog{}"]:
        ids = tokenizer(line.format(*CODES[kind]), add_special_tokens=False)["input_ids"]
        words = loaded.task.target_dictionary.string(ids)
        assert loaded.bpe.decode(words) == tokenizer.decode(ids, skip_special_tokens=True)


def test_texts_are_generated(both):
    kind, _, loaded, _ = both
    texts = loaded.generate(["the lazy dog", "the {} dog"], min_len=5, max_len_b=20)
    assert all(texts) or kind == "mbart25"  # which says its start, a language, over and over
    assert not any(code in text for text in texts for code in CODES[kind])


def test_round_trip(both, tmp_path):
    kind, tokenizer, _, folder = both
    again = back(folder / "ours", tmp_path / "again")
    original, tensors = (load_file(each / "model.safetensors") for each in (folder / "theirs", again))
    assert all((tensors[name] == tensor).all() for name, tensor in original.items())
    if kind == "m2m_100":
        for name in ("vocab.json", "sentencepiece.bpe.model"):
            assert (again / name).read_bytes() == (folder / "theirs" / name).read_bytes()
    found = transformers.AutoTokenizer.from_pretrained(again)
    assert found.get_vocab() == tokenizer.get_vocab()
    for line in [line.format(*CODES[kind]) for line in (*LINES, *ODD)]:
        assert found(line)["input_ids"] == tokenizer(line)["input_ids"]


@pytest.mark.few_cases(1)
def test_fairseqs_commands(both, tmp_path):
    """The command that from-hf prints reads the same ids."""
    from tests import helpers

    kind, _, loaded, folder = both
    converted = convert(folder / "theirs", tmp_path / "ours")
    printed = command._generation_command(converted, tmp_path / "ours")
    tokenizer = "vocab.json" if kind == "m2m_100" else "tokenizer.json"
    assert f"--tokenizer-json {tmp_path / 'ours' / tokenizer}" in printed
    options = ["--path", tmp_path / "ours" / "model.pt", "--task=elseq_translation", *converted.task_arguments]
    options += ["--bpe=hugging_face", "--tokenizer-json", tmp_path / "ours" / tokenizer, "--beam=2", "--max-len-b=8"]
    line = "the lazy dog"
    fairseq = ["fairseq-interactive", tmp_path / "ours", "--user-dir", helpers.USER_DIR, "--cpu", *options]
    log = helpers.run_here(fairseq, input=f"{line}\n".encode()).stdout
    [text] = loaded.generate([line], beam=2, max_len_b=8)
    assert f"\t{text}\n" in log


# --- NLLB without numbers, and what cannot be


def test_nllb_of_former_times(tmp_path):
    """Without numbers of added tokens all languages follow the pieces, and <mask> follows the languages."""
    path = train(tmp_path / "sentencepiece.bpe.model", "bpe")
    save_config(tmp_path, tokenizer_class="NllbTokenizer")
    size = sentencepiece.SentencePieceProcessor(model_file=str(path)).get_piece_size()
    (tmp_path / "theirs").mkdir()
    for name in ("sentencepiece.bpe.model", "tokenizer_config.json"):
        (tmp_path / name).rename(tmp_path / "theirs" / name)
    make_model(tmp_path / "theirs", "nllb", size + 10, vocab_size=size + 300, decoder_start_token_id=2)
    convert(tmp_path / "theirs", tmp_path / "ours")
    dictionary = load(tmp_path / "ours").task.source_dictionary
    codes = transformers.models.nllb.tokenization_nllb.FAIRSEQ_LANGUAGE_CODES
    assert [dictionary.index(code) for code in codes] == [size + 1 + number for number in range(len(codes))]
    assert dictionary.index("<mask>") == size + 1 + len(codes)


@pytest.mark.parametrize("shift", [1, -1, 5])
def test_nllb_with_numbers_of_another_model(tmp_path, shift):
    """The recorded numbers of the languages prove that the pieces are not those of the model."""
    path = train(tmp_path / "sentencepiece.bpe.model", "bpe")
    size = sentencepiece.SentencePieceProcessor(model_file=str(path)).get_piece_size()
    save_nllb_config(tmp_path, size + 1 + shift)
    first = NLLB_LANGUAGES[0]
    with pytest.raises(
        UserError, match=f"records the number {size + 1 + shift} for '{first}', and .* {size + 1}: copy"
    ):
        read_tokenizer(tmp_path, "NllbTokenizer", {}, [])


@pytest.mark.parametrize(
    "kind, config, sentence",
    [
        ("mbart25", {"src_lang": "xx_XX"}, "has src_lang: 'xx_XX', which is no token: give the code of a language"),
        ("mbart25", {"src_lang": ["en_XX"]}, "has src_lang: \\['en_XX'\\], which is no token"),
        ("mbart25", {"eos_token": 5}, "has a token that is none .'5'.: copy it again"),
        ("mbart25", {"eos_token": {"text": "</s>"}}, "has no eos_token: copy it again"),
        ("m2m_100", {"language_codes": ["m2m100"]}, "has language_codes: .'m2m100'., which are none of m2m100"),
        ("m2m_100", {"additional_special_tokens": [7]}, "has a token that is none .'7'.: copy it again"),
        ("m2m_100", {"src_lang": "xx"}, "has src_lang: 'xx', which is none of its languages"),
        ("m2m_100", {"language_codes": "other"}, "has language_codes: 'other', which are none of m2m100, wmt21"),
        (
            "m2m_100",
            {"added_tokens_decoder": {"5": {"content": "<hl>", "lstrip": True}}},
            "has the token '<hl>', which is not special, or has lstrip, rstrip or single_word",
        ),
    ],
)
def test_other_configurations(tmp_path, kind, config, sentence):
    make(tmp_path / "theirs", kind)
    if kind == "mbart25":
        save_config(tmp_path / "theirs")
    change(tmp_path / "theirs" / "tokenizer_config.json", **config)
    with pytest.raises(UserError, match=sentence):
        convert(tmp_path / "theirs", tmp_path / "ours")


@pytest.mark.parametrize("kind", ["mbart25", "m2m_100"])
def test_damaged_model(tmp_path, kind):
    make(tmp_path / "theirs", kind)
    (tmp_path / "theirs" / "sentencepiece.bpe.model").write_bytes(b"none")
    with pytest.raises(UserError, match="sentencepiece.bpe.model is no sentencepiece model"):
        convert(tmp_path / "theirs", tmp_path / "ours")


# --- another language of sources than the tokenizer's


@pytest.mark.few_cases(1)
def test_the_language_of_a_training(both, tmp_path, capsys):
    """It is written with the tokenizer, and the language of targets is not that of another pair."""
    kind, _, _, folder = both
    _, code = CODES[kind]
    state = torch.load(folder / "ours" / "model.pt", weights_only=False)
    state["cfg"]["task"]["source_end" if kind == "mbart25" else "source_start"] = code
    (tmp_path / "trained").mkdir()
    torch.save(state, tmp_path / "trained" / "model.pt")
    again = back(tmp_path / "trained", tmp_path / "again", data=folder / "ours", settings=str(folder / "ours"))
    printed = capsys.readouterr().out
    found = transformers.AutoTokenizer.from_pretrained(again)
    plain = back(folder / "ours", tmp_path / "plain")
    expected = transformers.AutoTokenizer.from_pretrained(plain, src_lang=code.strip("_"))
    for line in LINES:
        assert found(line)["input_ids"] == expected(line)["input_ids"]
    assert expected.convert_tokens_to_ids(code) in found("the dog")["input_ids"]
    task = convert(again, tmp_path / "ours").checkpoint["cfg"]["task"]
    assert (task["source_start"] or task["source_end"]) == code

    settings = json.loads((again / "generation_config.json").read_text())
    assert settings["num_beams"] == 5 and settings.get("forced_bos_token_id") is None
    note = f"note: that targets begin with {code} is left out: in --settings it goes with sources that begin with "
    assert (note in printed) == (kind != "mbart25")  # which decodes from the language that the training names


def test_a_language_that_the_tokenizer_lacks(both, tmp_path):
    kind, _, _, folder = both
    if kind == "m2m_100":
        pytest.skip("its tokenizer takes the language from tokenizer_config.json")
    state = torch.load(folder / "ours" / "model.pt", weights_only=False)
    state["cfg"]["task"]["source_start"] = "madeupword0000"
    (tmp_path / "trained").mkdir()
    torch.save(state, tmp_path / "trained" / "model.pt")
    with pytest.raises(
        UserError, match="tokenizer.json does not have 'madeupword0000', which stands beside the sources"
    ):
        back(tmp_path / "trained", tmp_path / "again", data=folder / "ours")
