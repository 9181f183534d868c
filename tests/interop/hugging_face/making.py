"""Small models with random weights and their tokenizer, as transformers saves them, and what comes of them."""

import json
from types import SimpleNamespace

import pytest
import torch
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode
from safetensors.torch import load_file

import elseq
from elseq.cli import conversions as command
from elseq.interop.hugging_face.conversion import from_hugging_face
from elseq.interop.hugging_face.vocabulary import END_OF_TEXT, SPECIAL_SYMBOLS
from elseq.interop.output import write_files

LETTERS = list(bytes_to_unicode().values())
MERGES = ["t h", "Ġ th", "Ġth e", "i n", "Ġ a", "e r", "Ġ in"]
PIECES = [*LETTERS, *("".join(merge.split()) for merge in MERGES)]
BART_NAMES = [*SPECIAL_SYMBOLS, *reversed(PIECES), END_OF_TEXT, "madeupword0000", "<mask>"]
GPT2_NAMES = [*PIECES, END_OF_TEXT]
TEXTS = ["the inner the", "a", "thin air in there, the other", "naïve – 3 ways"]
# On which vocabularies of other kinds are trained, and lines with more than it has.
TEXT = "the quick brown fox jumps over the lazy dog and the inner circle thinks there are three ways"
LINES = ["the lazy dog", "", "  two  spaces ", "naïve – 3 ways", "a</s>b", "the {} dog", "ﬁne ½ ①", "\u3000x\u200b"]

SIZES = {  # of encoder-decoders
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 64,
}
BART_SIZES = SIZES | {"decoder_ffn_dim": 48}
GPT2_SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


def save_tokenizer(folder, names, merges=MERGES):
    (folder / "vocab.json").write_text(json.dumps({name: row for row, name in enumerate(names)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))


def make_bart(folder, names=BART_NAMES, seed=1, **options):
    """Returns the model; most of its hypotheses end within ten tokens."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BartConfig(**{"vocab_size": len(names), **BART_SIZES, **options})
    torch.manual_seed(seed)
    model = transformers.BartForConditionalGeneration(config).eval()
    last_norm = model.model.decoder.layers[-1].final_layer_norm
    _randomize(model, last_norm, model.get_output_embeddings().weight[config.eos_token_id], end_logit=3.4)
    return _save(model, folder, names)


def make_gpt2(folder, names=GPT2_NAMES, seed=1, **options):
    """Returns the model; as above."""
    transformers = pytest.importorskip("transformers")
    end = names.index(END_OF_TEXT)
    symbols = {"bos_token_id": end, "eos_token_id": end}
    config = transformers.GPT2Config(**{"vocab_size": len(names), **symbols, **GPT2_SIZES, **options})
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(config).eval()
    _randomize(model, model.transformer.ln_f, model.get_output_embeddings().weight[config.eos_token_id], end_logit=1.5)
    return _save(model, folder, names)


def _randomize(model, last_norm, end_row, end_logit):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_position = "embed_positions" in name or "wpe" in name  # large, so that no text goes round in circles
            size = 1.0 if is_position else 0.2 * (32 / len(end_row)) ** 0.5
            parameter.add_(size * torch.randn_like(parameter))
        last_norm.bias += end_logit * end_row / end_row.norm() ** 2


def _save(model, folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    save_tokenizer(folder, names)
    return model


def convert(folder, output, data=None):
    """Write what `from_hugging_face` makes of a folder."""
    converted = from_hugging_face(folder, data)
    output.mkdir()
    write_files(output, converted.files)
    torch.save(converted.checkpoint, output / "model.pt")
    return converted


def load(folder, attention="auto"):
    return elseq.load(folder, attention=attention, device="cpu")


def gpt2_rows(model):
    """fairseq's row of each of a GPT-2's."""
    end = model.config.eos_token_id
    others = [row for row in range(model.config.vocab_size) if row != end]
    rows = torch.empty(model.config.vocab_size, dtype=torch.long)
    rows[end] = 2
    rows[others] = torch.arange(4, 4 + len(others))
    return rows


def padded(rows, pad=1):
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad)


def until_end(row, end=2):
    """The words before the end symbol."""
    return row[: row.index(end)] if end in row else row


def change(path, **values):
    """Change options of a JSON file; None takes one away."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


# --- the same runs of several families


def back(folder, output, data=None, **options):
    """elseq-convert to-hf."""
    options = {"overwrite": False, "data": data, "family": None, "settings": None} | options
    command.convert_to_hugging_face(SimpleNamespace(model=str(folder), output=output, **options))
    return output


# A random model repeats one word without the last two.
OWN_SETTINGS = {"num_beams": 4, "early_stopping": True, "max_length": 60, "no_repeat_ngram_size": 2, "min_length": 8}
# Of transformers, changed from these, and of fairseq.
SETTINGS = {
    "greedy": ({"num_beams": 1}, {"beam": 1}),
    "its own settings": ({}, {}),
    "early_stopping false": ({"early_stopping": False}, {"early_stopping": "bound"}),
    "early_stopping never": ({"early_stopping": "never"}, {"early_stopping": "never"}),
}


def save_with_settings(model, folder, **settings):
    """With `OWN_SETTINGS` and these."""
    settings = OWN_SETTINGS | {"bad_words_ids": [[model.config.pad_token_id]]} | settings
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    return model


def random_texts(words, end=(), number=40):
    """Up to 19 of these words each, and what follows a text."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 20, (number,), generator=generator).tolist()
    drawn = [torch.randint(len(words), (length,), generator=generator).tolist() for length in lengths]
    return [[*(words[place] for place in text), *end] for text in drawn]


@torch.no_grad()
def assert_same_logits(theirs, loaded, sources, targets, rows, target_rows=None):
    """After each word of the targets, and at their start.

    Args:
        theirs: transformers' model.
        loaded: elseq's.
        sources, targets: texts in transformers' numbers.
        rows, target_rows: fairseq's row of each number.

    Returns:
        elseq's logits, of all rows.
    """
    pad, start = theirs.config.pad_token_id, theirs.config.decoder_start_token_id
    target_rows = rows if target_rows is None else target_rows
    batch, read = padded(sources, pad), padded([[start, *row[:-1]] for row in targets], pad)
    mask, written = batch.ne(pad), read.ne(pad)
    written[:, 0] = True
    expected = theirs(input_ids=batch, attention_mask=mask.long(), decoder_input_ids=read).logits[written]
    ours = target_rows[read]
    if start == pad:
        ours[:, 0] = loaded.task.target_dictionary.eos()  # from which decoding starts in fairseq
    found = loaded.model(rows[batch], mask.sum(dim=1), ours)[0][written]
    assert expected.std() > 0.5
    torch.testing.assert_close(found[:, target_rows], expected, rtol=1e-5, atol=2e-5)
    return found


@torch.no_grad()
def assert_same_hypotheses(theirs, tokenizer, folder, attention, lines, settings):
    """By the settings of the folder, changed as `SETTINGS` has it; returns the tokens of the longest."""
    changed, options = SETTINGS[settings]
    batch = tokenizer(lines, return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    found = theirs.generate(**batch, **changed)
    expected = [tokenizer.decode(row, skip_special_tokens=True) for row in found]
    options = from_hugging_face(folder / "theirs").generation | options
    assert load(folder / "ours", attention).generate(lines, **options) == expected
    assert len(set(expected)) > 3
    return max(row.ne(theirs.config.pad_token_id).sum() for row in found)


def assert_same_ids(loaded, tokenizer, rows, lines):
    """As the model reads them."""
    for line in lines:
        expected = rows[tokenizer(line)["input_ids"]].tolist() or [2]  # of nothing a model cannot make anything
        assert ids(loaded, line) == expected, line


def ids(loaded, line):
    tokens = loaded.task.source_dictionary.encode_line(loaded.bpe.encode(line), add_if_not_exist=False).long()
    return loaded.task.build_dataset_for_inference([tokens], [len(tokens)])[0]["source"].tolist()


def assert_same_tensors(folder, other):
    found, expected = load_file(other / "model.safetensors"), load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def assert_same_model(theirs, folder, again):
    """Its tensors, and its settings; returns transformers' model of what was written."""
    assert_same_tensors(folder, again)
    loaded = type(theirs).from_pretrained(again)
    settings, expected = (each.generation_config for each in (loaded, theirs))
    symbols = "decoder_start_token_id", "eos_token_id", "pad_token_id"
    for name in (*symbols, "num_beams", "early_stopping", "max_length", "length_penalty"):
        assert getattr(settings, name) == getattr(expected, name), name
    return loaded


def assert_same_tokenizer(again, tokenizer, lines):
    """Returns transformers' tokenizer of what was written."""
    found = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(again)
    assert found.get_vocab() == tokenizer.get_vocab()
    assert [found(line)["input_ids"] for line in lines] == [tokenizer(line)["input_ids"] for line in lines]
    return found
