"""Texts have transformers' ids, and ids its text, whatever the tokenizer does before and beside BPE."""

import json
import re
import shutil

import pytest
import torch
from fairseq import checkpoint_utils
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elseq.errors import UserError
from elseq.subwords.finding import find_subwords
from elseq.text_files.formats import in_one_line
from tests import helpers
from tests.interop.hugging_face.making import (
    BART_NAMES,
    GPT2_NAMES,
    assert_same_tensors,
    back,
    change,
    convert,
    load,
    make_bart,
    make_gpt2,
    save_tokenizer,
)

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

SYMBOLS = ["<mask>", "<s>", "</s>", "<pad>", "<unk>", "<hl>", "<sep>", "[PAD]", "<|endoftext|>", "<|start|>", "<spk 1>"]


def plain(folder, make, names, tokens=(), **options):
    """A model and a tokenizer of its class with tokens more, saved as transformers 5 does."""
    kind = transformers.BartTokenizer if make is make_bart else transformers.GPT2Tokenizer
    folder.mkdir(parents=True)
    save_tokenizer(folder, names)
    tokenizer = kind.from_pretrained(folder, **{name: each for name, each in options.items() if name[0] != "_"})
    tokenizer.add_tokens(list(tokens))
    return saved(folder, make, tokenizer, names)


def saved(folder, make, tokenizer, names):
    model = make(folder, [*names, *[""] * (len(tokenizer) - len(names))], vocab_size=len(tokenizer))
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    tokenizer.save_pretrained(folder)
    return model


def of_the_library(folder, make, names, change_tokenizer):
    """A tokenizer that is none of a class, such as people train by themselves."""
    folder.mkdir(parents=True)
    save_tokenizer(folder, names)
    kind = transformers.BartTokenizer if make is make_bart else transformers.GPT2Tokenizer
    backend = kind.from_pretrained(folder)._tokenizer
    change_tokenizer(backend)
    ends = {"eos_token": "</s>" if make is make_bart else "<|endoftext|>"}
    ends |= {"bos_token": "<s>"} if make is make_bart else {}
    return saved(folder, make, transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **ends), names)


def lower_case(backend):
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFKC(), tokenizers.normalizers.Lowercase()]
    )


def digits_apart(backend):
    parts = [tokenizers.pre_tokenizers.Digits(individual_digits=True)]
    parts.append(tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(parts)


def legacy(folder):
    """As transformers 4 saved it: added tokens in files of their own."""
    names = [*GPT2_NAMES, "[PAD]", "<hl>"]
    make_gpt2(folder, names, pad_token_id=len(GPT2_NAMES))
    save_tokenizer(folder, GPT2_NAMES)
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": len(GPT2_NAMES), "<hl>": len(GPT2_NAMES) + 1}))
    pad = {"content": "[PAD]", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    special = {"pad_token": pad, "additional_special_tokens": ["<hl>"]}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))


def bert(folder):
    """A BART for Chinese has BERT's tokenizer: [CLS] and [SEP] around a text."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "in", "##in", "1", "##2", "中", *"abehnt", "##é"]
    folder.mkdir(parents=True)
    tokenizer = transformers.BertTokenizer(vocab={name: number for number, name in enumerate(names)})
    symbols = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
    make_bart(folder, names, forced_eos_token_id=3, **symbols)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    tokenizer.save_pretrained(folder)


ADDED = transformers.AddedToken("<hl>", lstrip=True, rstrip=True)
FOLDERS = {
    "bart": lambda folder: plain(folder, make_bart, BART_NAMES),
    "bart with tokens": lambda folder: plain(folder, make_bart, BART_NAMES, [ADDED, "<sep>"]),
    "bart with a space before": lambda folder: plain(folder, make_bart, BART_NAMES, add_prefix_space=True),
    "bart without capitals": lambda folder: of_the_library(folder, make_bart, BART_NAMES, lower_case),
    "bart with the tokenizer of BERT": bert,
    "gpt2": lambda folder: plain(folder, make_gpt2, GPT2_NAMES),
    "gpt2 with tokens": lambda folder: plain(folder, make_gpt2, GPT2_NAMES, [ADDED, "<spk 1>"], pad_token="[PAD]"),
    "gpt2 with a start": lambda folder: plain(folder, make_gpt2, GPT2_NAMES, bos_token="<|start|>"),
    "gpt2 with a space before": lambda folder: plain(folder, make_gpt2, GPT2_NAMES, add_prefix_space=True),
    "gpt2 with digits apart": lambda folder: of_the_library(folder, make_gpt2, GPT2_NAMES, digits_apart),
    "gpt2 of former times": legacy,
}


@pytest.fixture(scope="module", params=FOLDERS)
def both(request, tmp_path_factory):
    """The folder, what came of it, transformers' tokenizer, and fairseq's row of each of its numbers."""
    folder = tmp_path_factory.mktemp("tokenizer")
    FOLDERS[request.param](folder / "theirs")
    convert(folder / "theirs", folder / "ours")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "theirs")
    loaded = load(folder / "ours")
    rows = back(folder / "ours", folder / "again")  # transformers' own order, by the tensors
    theirs, ours = (each["model"] for each in (_tensors(rows), torch.load(folder / "ours" / "model.pt")))
    embedding = theirs[next(name for name in theirs if name.endswith(("shared.weight", "wte.weight")))]
    places = {tuple(row.tolist()): place for place, row in enumerate(ours["decoder.embed_tokens.weight"])}
    return folder, loaded, tokenizer, [places[tuple(row.tolist())] for row in embedding]


def _tensors(folder):
    from safetensors.torch import load_file

    return {"model": load_file(folder / "model.safetensors")}


TEXTS = st.lists(
    st.sampled_from([*SYMBOLS, " ", "  ", "\t", "\x1c", "\u3000", "the", " in", "The IN 123", "👩‍👩‍👧", "é", "ﬁ"])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    max_size=12,
).map("".join)


@pytest.mark.few_cases(5)
@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS)
def test_the_same_ids_and_the_same_text(both, text):
    _, loaded, tokenizer, rows = both
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    dictionary = loaded.task.source_dictionary
    found = dictionary.encode_line(loaded.bpe.encode(text), add_if_not_exist=False).tolist()
    assert found[-1] == dictionary.eos()
    assert found[:-1] == [rows[number] if number < len(rows) else dictionary.unk() for number in expected]

    said = tokenizer.decode(expected, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    words = " ".join(loaded.bpe.words[number] for number in expected)
    assert loaded.bpe.decode(words) == said
    if all(number < len(rows) for number in expected) and "<unk>" not in text:
        assert loaded.text(torch.tensor(found)) == said


@pytest.mark.few_cases(3)
def test_there_and_back(both):
    """Vocabulary, numbers and special tokens."""
    folder, _, tokenizer, _ = both
    assert_same_tensors(folder / "theirs", folder / "again")
    again = transformers.AutoTokenizer.from_pretrained(folder / "again")
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert again.added_tokens_encoder == tokenizer.added_tokens_encoder
    text = " the <mask> <hl> in[PAD]</s> <|start|><spk 1>THE 12<|endoftext|>"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    configs = [transformers.AutoConfig.from_pretrained(folder / name) for name in ("theirs", "again")]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "vocab_size"):
        assert getattr(configs[0], name) == getattr(configs[1], name), name
    converted = convert(folder / "again", folder / "twice")
    assert converted.files["dict.txt"] == (folder / "ours" / "dict.txt").read_text()
    shutil.rmtree(folder / "twice")


@pytest.mark.few_cases(3)
def test_fairseqs_commands(both):
    """fairseq-interactive reads the same ids; elseq-generate writes the same text."""
    folder, loaded, _, _ = both
    is_bart = (folder / "ours" / "dict.source.txt").exists()
    task = (
        ["--task=elseq_translation", "-s=source", "-t=target", "--force-bos=no"]
        if is_bart
        else ["--task=elseq_language_modeling"]
    )
    line = "the <mask> <hl>in[PAD] The 12"
    command = ["fairseq-interactive", folder / "ours", "--path", folder / "ours" / "model.pt", *task]
    command += ["--user-dir", helpers.USER_DIR, "--bpe=hugging_face", "--tokenizer-json"]
    command += [folder / "ours" / "tokenizer.json", "--beam=2", "--max-len-b=8", "--cpu"]
    log = helpers.run_here(command, input=f"{line}\n".encode()).stdout
    dictionary = loaded.task.source_dictionary
    expected = dictionary.string(dictionary.encode_line(loaded.bpe.encode(line), add_if_not_exist=False))
    assert re.search(r"^S-0\t(.*)$", log, re.MULTILINE)[1] == expected.replace("<pad> ", "")  # it is not printed
    expected = loaded.generate([line], beam=2, max_len_b=8)[0]
    assert re.search(r"^D-0\t\S+\t(.*)$", log, re.MULTILINE)[1].strip() == expected.strip()


@pytest.mark.few_cases(5)
def test_lines_of_text(both, tmp_path):
    """elseq-generate writes what a continuation says, with the white space before it."""
    folder, loaded, _, _ = both
    lines = ["the <mask> <hl>in[PAD] The 12", " in", "the</s>", "h"]
    (tmp_path / "input.txt").write_text("".join(f"{line}\n" for line in lines))
    command = ["elseq-generate", "--model", folder / "ours", "--input", tmp_path / "input.txt", "--beam=2"]
    helpers.run_here([*command, "--max-len-b=8", "--device=cpu", "--output", tmp_path / "output.txt"])
    expected = [in_one_line(text) for text in loaded.generate(lines, beam=2, max_len_b=8)]
    assert (tmp_path / "output.txt").read_text().split("\n")[:-1] == expected


def test_an_interrupted_run_with_another_tokenizer(both, tmp_path):
    """Words may have the same ids and say something else."""
    folder = shutil.copytree(both[0] / "ours", tmp_path / "model")
    digest = find_subwords([folder], (), True).digest()
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"decoder": {"type": "Fuse"}}))
    assert find_subwords([folder], (), True).digest() != digest


# --- refused


@pytest.mark.parametrize(
    "change_file, sentence",
    [
        ({"normalizer": {"type": "Lowercase"}}, "has the normalizer Lowercase, which transformers does not use for a"),
        (
            {"pre_tokenizer": {"type": "Whitespace"}},
            "has the pre_tokenizer Whitespace, which transformers does not use",
        ),
        ({"pre_tokenizer": None}, "has the pre_tokenizer None, which transformers does not use for a GPT2Tokenizer"),
    ],
)
def test_files_that_contradict_one_another(tmp_path, change_file, sentence):
    """transformers itself gives other ids by the class than by the file."""
    plain(tmp_path / "theirs", make_gpt2, GPT2_NAMES)
    path = tmp_path / "theirs" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change_file))
    with pytest.raises(UserError, match=sentence):
        convert(tmp_path / "theirs", tmp_path / "ours")
    change(tmp_path / "theirs" / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    convert(tmp_path / "theirs", tmp_path / "ours")


def test_symbols_around_a_text(tmp_path):
    plain(tmp_path / "theirs", make_gpt2, GPT2_NAMES)
    path = tmp_path / "theirs" / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    processor = tokenizers.processors.TemplateProcessing
    tokenizer.post_processor = processor(single="$A h", special_tokens=[("h", GPT2_NAMES.index("h"))])
    tokenizer.save(str(path))
    with pytest.raises(UserError, match=r"puts the numbers \[\] before a text and \[71\] after it .*fairseq nothing"):
        convert(tmp_path / "theirs", tmp_path / "ours")


def test_a_start_that_the_tokenizer_puts(tmp_path):
    """An own bos before every text, as --add-bos-token."""
    plain(tmp_path / "theirs", make_gpt2, GPT2_NAMES, bos_token="<|start|>", add_bos_token=True)
    change(tmp_path / "theirs" / "config.json", bos_token_id=len(GPT2_NAMES))
    convert(tmp_path / "theirs", tmp_path / "ours")
    loaded = load(tmp_path / "ours")
    sample = loaded.task.build_dataset_for_inference([torch.tensor([9, 2])], [2])[0]
    assert sample["net_input.src_tokens"].tolist() == [0, 9]
    cfg = checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "ours" / "model.pt"))["cfg"]
    assert cfg.task.add_bos_token


@pytest.mark.parametrize("kind", ["Unigram", "WordPiece"])
def test_other_kinds_of_tokenizers(tmp_path, kind):
    if kind == "Unigram":
        pieces = [("<unk>", 0.0), ("▁", -3.0), ("</s>", 0.0), *((letter, -4.0) for letter in "abcdefghijklmnopt")]
        model = tokenizers.models.Unigram([*pieces, ("▁the", -2.0), ("▁in", -2.5)], unk_id=0, byte_fallback=False)
        backend = tokenizers.Tokenizer(model)
        backend.pre_tokenizer, backend.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    else:
        names = ["[UNK]", "</s>", "the", "in", "a", *(f"##{letter}" for letter in "abcdefgh"), *"bcdefgh"]
        model = tokenizers.models.WordPiece({name: row for row, name in enumerate(names)}, unk_token="[UNK]")
        backend = tokenizers.Tokenizer(model)
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        backend.decoder = tokenizers.decoders.WordPiece()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    end = tokenizer.eos_token_id
    names = [tokenizer.convert_ids_to_tokens(number) for number in range(len(tokenizer))]
    names[end] = "<|endoftext|>"
    make_gpt2(tmp_path / "theirs", names)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "theirs" / name).unlink()
    tokenizer.save_pretrained(tmp_path / "theirs")
    converted = convert(tmp_path / "theirs", tmp_path / "ours")
    assert "encoder.json" not in converted.files and "vocab.bpe" not in converted.files
    assert not any("cut as tokenizer.json says" in note for note in converted.notes)
    change(tmp_path / "theirs" / "tokenizer_config.json", tokenizer_class="T5TokenizerFast")
    again = convert(tmp_path / "theirs", tmp_path / "with_a_note")
    assert any("if transformers makes a T5Tokenizer of its own" in note for note in again.notes)
    change(tmp_path / "theirs" / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    loaded = load(tmp_path / "ours")
    for text in ("the in", "a bead in the cab", "the zzz in"):
        numbers = tokenizer(text)["input_ids"]
        assert [loaded.bpe.ids[word] for word in loaded.bpe.encode(text).split()] == numbers
        assert loaded.bpe.decode(loaded.bpe.encode(text)) == tokenizer.decode(numbers, skip_special_tokens=True)
    again = back(tmp_path / "ours", tmp_path / "again")
    assert_same_tensors(tmp_path / "theirs", again)
    assert transformers.AutoTokenizer.from_pretrained(again).get_vocab() == tokenizer.get_vocab()


def test_a_tokenizer_of_another_model(tmp_path):
    """transformers' file beside fairseq's own dictionary, without encoder.json, which has the numbers of its words."""
    plain(tmp_path / "theirs", make_bart, BART_NAMES)
    convert(tmp_path / "theirs", tmp_path / "ours")
    (tmp_path / "ours" / "encoder.json").unlink()
    with pytest.raises(UserError, match="is not the model's tokenizer, or encoder.json is missing beside it"):
        load(tmp_path / "ours")


def test_rows_that_no_token_has(tmp_path):
    """Nothing is said there, as in transformers."""
    make_gpt2(tmp_path / "theirs", vocab_size=len(GPT2_NAMES) + 8)
    convert(tmp_path / "theirs", tmp_path / "ours")
    loaded = load(tmp_path / "ours")
    dictionary = loaded.task.target_dictionary
    tokens = [dictionary.index(word) for word in ("madeupword0003", str(GPT2_NAMES.index("h")), "madeupword0007")]
    assert dictionary.unk() not in tokens
    assert loaded.text(torch.tensor([*tokens, dictionary.unk(), 2])) == "h"


# --- fairseq's own files


@pytest.mark.parametrize("kind", ["bart", "gpt2"])
def test_folders_of_fairseqs_own(tmp_path, kind):
    """Special symbols in a text are found as transformers finds them in what to-hf makes of the folder."""
    plain(tmp_path / "theirs", *((make_bart, BART_NAMES) if kind == "bart" else (make_gpt2, GPT2_NAMES)))
    convert(tmp_path / "theirs", tmp_path / "ours")
    for name in ("tokenizer.json", "tokenizer_config.json", "fairseq_symbols.json"):
        (tmp_path / "ours" / name).unlink()
    loaded = load(tmp_path / "ours")
    tokenizer = transformers.AutoTokenizer.from_pretrained(back(tmp_path / "ours", tmp_path / "again"))
    dictionary, symbols = loaded.task.source_dictionary, {"<|endoftext|>": "</s>"} if kind == "gpt2" else {}
    numbers = json.loads((tmp_path / "ours" / "encoder.json").read_text())
    texts = ["the <mask> in", "</s>the <s>in</s> <pad>"] if kind == "bart" else ["<|endoftext|>the<|endoftext|>"]
    for text in [*texts, *texts[0].split(" "), " in ", ""]:
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
        pieces = [symbols.get(token, token) for token in tokens]
        expected = [dictionary.index(str(numbers.get(piece, piece))) for piece in pieces]
        found = dictionary.encode_line(loaded.bpe.encode(text), add_if_not_exist=False).tolist()
        assert found == [*expected, 2] and dictionary.unk() not in found


def test_a_prompt_keeps_its_end_symbols(tmp_path):
    plain(tmp_path / "theirs", make_gpt2, GPT2_NAMES)
    convert(tmp_path / "theirs", tmp_path / "ours")
    loaded = load(tmp_path / "ours")
    tokens = loaded.task.source_dictionary.encode_line(loaded.bpe.encode("<|endoftext|>h<|endoftext|>")).long()
    sample = loaded.task.build_dataset_for_inference([tokens], [len(tokens)])[0]
    assert sample["net_input.src_tokens"].tolist() == [2, 2, GPT2_NAMES.index("h") + 4, 2]


@pytest.mark.parametrize("word, expected", [("Ġin", " in"), ("in", "in")])
def test_white_space_before_a_continuation(tmp_path, word, expected):
    plain(tmp_path / "theirs", make_gpt2, GPT2_NAMES)
    convert(tmp_path / "theirs", tmp_path / "ours")
    loaded = load(tmp_path / "ours")
    assert loaded.text(torch.tensor([GPT2_NAMES.index(word) + 4, 2])) == expected
