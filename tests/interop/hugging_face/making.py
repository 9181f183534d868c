"""Small models with random weights and their tokenizer, as transformers saves them, and what comes of them."""

import json

import pytest
import torch
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode

import elseq
from elseq.interop.hugging_face.conversion import from_hugging_face
from elseq.interop.hugging_face.vocabulary import END_OF_TEXT, SPECIAL
from elseq.interop.output import write_files

LETTERS = list(bytes_to_unicode().values())
MERGES = ["t h", "Ġ th", "Ġth e", "i n", "Ġ a", "e r", "Ġ in"]
PIECES = [*LETTERS, *("".join(merge.split()) for merge in MERGES)]
BART_NAMES = [*SPECIAL, *reversed(PIECES), END_OF_TEXT, "madeupword0000", "<mask>"]
GPT2_NAMES = [*PIECES, END_OF_TEXT]
TEXTS = ["the inner the", "a", "thin air in there, the other", "naïve – 3 ways"]

BART_SIZES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 64,
}
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
