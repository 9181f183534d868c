"""There and back: the same tensors, vocabulary and settings; and fairseq's own models for transformers."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from safetensors.torch import load_file

from elseq.errors import UserError
from elseq.interop.checkpoints import make_checkpoint, training_configuration
from elseq.interop.hugging_face import options
from elseq.interop.hugging_face.conversion import to_hugging_face
from elseq.interop.hugging_face.folders import write
from tests.interop.hugging_face import making
from tests.interop.hugging_face.making import (
    BART_NAMES,
    GPT2_NAMES,
    TEXTS,
    assert_same_tensors,
    back,
    convert,
    load,
    make_bart,
    make_gpt2,
)
from tests.models import building

MAKERS = {"bart": make_bart, "gpt2": make_gpt2}


@pytest.mark.few_cases(2)
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_there_and_back(tmp_path, kind, dtype):
    transformers = pytest.importorskip("transformers")
    model = MAKERS[kind](tmp_path / "theirs").to(dtype)
    model.save_pretrained(tmp_path / "theirs")
    settings = {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0, "no_repeat_ngram_size": 3}
    lengths = {"bart": {"min_length": 7, "max_length": 30}, "gpt2": {"min_new_tokens": 7, "max_new_tokens": 30}}
    making.change(tmp_path / "theirs" / "generation_config.json", **settings, **lengths[kind])
    convert(tmp_path / "theirs", tmp_path / "ours")
    again = back(tmp_path / "ours", tmp_path / "again")

    assert_same_tensors(tmp_path / "theirs", again)
    assert (again / "merges.txt").read_text() == (tmp_path / "theirs" / "merges.txt").read_text()
    assert list(json.loads((again / "vocab.json").read_text())) == {"bart": BART_NAMES, "gpt2": GPT2_NAMES}[kind]
    found = json.loads((again / "generation_config.json").read_text())
    assert (settings | lengths[kind]).items() <= found.items()
    loaded = transformers.AutoModelForSeq2SeqLM if kind == "bart" else transformers.AutoModelForCausalLM
    loaded = loaded.from_pretrained(again)
    for name in ("vocab_size", "eos_token_id", "bos_token_id", "pad_token_id", "activation_function"):
        assert getattr(loaded.config, name) == getattr(model.config, name)
    assert next(loaded.parameters()).dtype == dtype
    tokenizer = transformers.AutoTokenizer.from_pretrained(again)
    expected = getattr(transformers, "BartTokenizer" if kind == "bart" else "GPT2Tokenizer")
    expected = expected.from_pretrained(tmp_path / "theirs")
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == [expected(text)["input_ids"] for text in TEXTS]

    convert(again, tmp_path / "twice")
    first, second = (torch.load(tmp_path / name / "model.pt")["model"] for name in ("ours", "twice"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "twice" / "dict.txt").read_text() == (tmp_path / "ours" / "dict.txt").read_text()


def test_other_place_of_the_end(tmp_path):
    names = [*GPT2_NAMES[:7], GPT2_NAMES[-1], *GPT2_NAMES[7:-1]]
    make_gpt2(tmp_path / "theirs", names)
    convert(tmp_path / "theirs", tmp_path / "ours")
    again = back(tmp_path / "ours", tmp_path / "again")
    assert_same_tensors(tmp_path / "theirs", again)
    assert list(json.loads((again / "vocab.json").read_text())) == names
    assert json.loads((again / "config.json").read_text())["eos_token_id"] == 7


def test_rows_without_words(tmp_path):
    """Embeddings are often padded to a multiple of 64."""
    make_gpt2(tmp_path / "theirs", vocab_size=len(GPT2_NAMES) + 5)
    convert(tmp_path / "theirs", tmp_path / "ours")
    again = back(tmp_path / "ours", tmp_path / "again")
    assert_same_tensors(tmp_path / "theirs", again)
    assert list(json.loads((again / "vocab.json").read_text()))[: len(GPT2_NAMES)] == GPT2_NAMES


def test_mask_without_a_word(tmp_path):
    """The dictionary of fairseq's pretrained BART is without <mask>, its embedding is not."""
    make_bart(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    for path in (tmp_path / "ours").glob("dict*.txt"):
        path.write_text(path.read_text().removesuffix("<mask> 0\n"))
    again = back(tmp_path / "ours", tmp_path / "again")
    assert_same_tensors(tmp_path / "theirs", again)
    assert list(json.loads((again / "vocab.json").read_text())) == BART_NAMES


# --- fairseq's own models


def fairseq_checkpoint(folder, kind, **options):
    """A random model and its dictionary of numbers, w0 and so on, written as a checkpoint; returns the model."""
    args = building.configuration(kind, **options)
    model = building.build(building.KINDS[kind][0], args)
    name = {"transformer": "transformer", "bart": "bart_large", "transformer_lm": "transformer_lm"}[kind]
    task = "language_modeling" if kind == "transformer_lm" else "translation"
    languages = [] if kind == "transformer_lm" else ["--source-lang", "src", "--target-lang", "tgt"]
    cfg = training_configuration({**vars(args), "_name": name}, task, *languages)
    folder.mkdir()
    torch.save(make_checkpoint(cfg, model.state_dict()), folder / "model.pt")
    building.TASK.source_dictionary.save(str(folder / "dict.txt"))
    return model


BART_SHAPE = {
    "encoder_learned_pos": True,
    "decoder_learned_pos": True,
    "layernorm_embedding": True,
    "share_all_embeddings": True,
    "no_scale_embedding": True,
    "activation_fn": "gelu",
}
GPT2_SHAPE = {
    "decoder_learned_pos": True,
    "decoder_normalize_before": True,
    "no_scale_embedding": True,
    "activation_fn": "gelu_accurate",
    "share_decoder_input_output_embed": True,
    "decoder_input_dim": 16,
    "decoder_output_dim": 16,
    "adaptive_softmax_cutoff": None,
    "add_bos_token": False,
    "tokens_per_sample": 64,
    "base_shuffle": 1,
    "tpu": False,
}


@pytest.mark.parametrize(
    "kind, options",
    [
        ("bart", {}),
        ("transformer", BART_SHAPE),
        ("transformer", BART_SHAPE | {"share_all_embeddings": False, "share_decoder_input_output_embed": False}),
        ("transformer", BART_SHAPE | {"share_all_embeddings": False, "share_decoder_input_output_embed": True}),
        ("transformer_lm", GPT2_SHAPE),
    ],
)
@torch.no_grad()
def test_models_of_fairseq(tmp_path, kind, options, capsys):
    transformers = pytest.importorskip("transformers")
    model = fairseq_checkpoint(tmp_path / "ours", kind, **options)
    back(tmp_path / "ours", tmp_path / "theirs")
    assert "no tokenizer was written" in capsys.readouterr().out
    tokens, source = building.target((5, 9, 2)), building.source((7, 3, 5), side="right")
    if kind == "transformer_lm":
        theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "theirs")
        found, expected = theirs(tokens).logits, model(tokens)[0]
    else:
        theirs = transformers.BartForConditionalGeneration.from_pretrained(tmp_path / "theirs")
        words, expected = source["src_tokens"], building.forward(model, source, tokens)[0]
        found = theirs(words, attention_mask=words.ne(1).long(), decoder_input_ids=tokens).logits
        assert theirs.generation_config.forced_bos_token_id == (0 if kind == "bart" else None)
    written = tokens.ne(1)
    torch.testing.assert_close(found[written], expected[written], rtol=1e-5, atol=1e-5)


NORMS_FIRST = {"encoder_normalize_before": True, "decoder_normalize_before": True}


@pytest.mark.few_cases(2)
@pytest.mark.parametrize(
    ("kind", "options", "family"),
    [
        ("bart", {}, "bart"),
        ("transformer", BART_SHAPE, "bart"),  # whose sources have no <s>
        ("transformer", NORMS_FIRST | {"share_all_embeddings": True}, "m2m_100"),
        ("transformer", BART_SHAPE | NORMS_FIRST, "mbart"),
        ("transformer", BART_SHAPE | NORMS_FIRST | {"layernorm_embedding": False}, "blenderbot"),
    ],
)
def test_byte_pairs_of_fairseq(tmp_path, monkeypatch, kind, options, family):
    """transformers' tokenizer gives what the model was trained to read, whichever the family's own class is."""
    transformers = pytest.importorskip("transformers")
    dictionary = Dictionary()
    for number in range(len(making.PIECES)):
        dictionary.add_symbol(str(number))
    for name in ("source_dictionary", "target_dictionary"):
        monkeypatch.setattr(building.TASK, name, dictionary)
    fairseq_checkpoint(tmp_path / "ours", kind, **options)
    numbers = {piece: number for number, piece in enumerate(making.PIECES)}
    (tmp_path / "ours" / "encoder.json").write_text(json.dumps(numbers))
    (tmp_path / "ours" / "vocab.bpe").write_text("\n".join(["#version: 0.2", *making.MERGES, ""]))
    again = back(tmp_path / "ours", tmp_path / "theirs")
    assert json.loads((again / "config.json").read_text())["model_type"] == family
    tokenizer, loaded = transformers.AutoTokenizer.from_pretrained(again), load(tmp_path / "ours")
    for text in (*TEXTS, "a</s>b", " the"):
        assert tokenizer(text)["input_ids"] == making.ids(loaded, text), text
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text.replace("</s>", "")
    assert (making.ids(loaded, "the")[0] == 0) == (kind == "bart")
    assert (again / "vocab.json").exists() == (kind == "bart")


@pytest.mark.few_cases(2)
@pytest.mark.parametrize(
    "kind, options, sentence",
    [
        ("transformer", {}, "has --encoder-learned-pos False, where it has True"),
        ("transformer", BART_SHAPE | {"decoder_normalize_before": True}, "--decoder-normalize-before True"),
        ("bart", {"layernorm_embedding": False}, "--layernorm-embedding False"),
        ("bart", {"max_source_positions": 32}, "--max-source-positions 32, where it has 64"),
        ("transformer_lm", GPT2_SHAPE | {"no_decoder_final_norm": True}, "GPT-2 .* --no-decoder-final-norm True"),
        ("transformer_lm", GPT2_SHAPE | {"decoder_learned_pos": False}, "GPT-2 .* --decoder-learned-pos False"),
    ],
)
def test_models_that_transformers_lacks(tmp_path, kind, options, sentence):
    fairseq_checkpoint(tmp_path / "ours", kind, **options)
    with pytest.raises(UserError, match=sentence) as error:
        back(tmp_path / "ours", tmp_path / "theirs")
    assert str(error.value).startswith(f"checkpoint {tmp_path / 'ours' / 'model.pt'}: ")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "theirs").exists()


def test_dictionaries_that_do_not_fit(tmp_path):
    model = fairseq_checkpoint(tmp_path / "ours", "bart")
    cfg = checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "ours" / "model.pt"))["cfg"]
    task = SimpleNamespace(source_dictionary=Dictionary(), target_dictionary=Dictionary())
    with pytest.raises(UserError, match="the dictionary has 4 words, and the model 44"):
        to_hugging_face(model.state_dict(), cfg, task)
    task.target_dictionary = building.TASK.source_dictionary
    with pytest.raises(UserError, match="source and target have dictionaries of their own"):
        to_hugging_face(model.state_dict(), cfg, task)


def test_numbers_that_are_none(tmp_path):
    fairseq_checkpoint(tmp_path / "ours", "bart")
    path = tmp_path / "ours" / "model.pt"
    state = torch.load(path)
    state["model"]["decoder.layers.0.fc1.weight"][0, 0] = float("nan")
    torch.save(state, path)
    with pytest.raises(UserError, match="^checkpoint .*decoder.layers.0.fc1.weight in the model has NaN"):
        back(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_settings_without_an_equal_are_noted(tmp_path, capsys):
    fairseq_checkpoint(tmp_path / "ours", "bart")
    path = tmp_path / "ours" / "model.pt"
    state = torch.load(path)
    state["cfg"]["generation"] |= {"beam": 4, "diverse_beam_groups": 2}
    torch.save(state, path)
    settings = json.loads((back(tmp_path / "ours", tmp_path / "theirs") / "generation_config.json").read_text())
    assert not {"num_beam_groups", "diversity_penalty"} & settings.keys()
    assert "note: --diverse-beam-groups 2 with --diverse-beam-strength 0.5 is left out" in capsys.readouterr().out


def test_post_norm_language_models(tmp_path):
    fairseq_checkpoint(tmp_path / "ours", "transformer_lm", **GPT2_SHAPE)
    path = tmp_path / "ours" / "model.pt"
    state = torch.load(path)
    state["cfg"]["model"]["decoder_normalize_before"] = False
    state["model"] = {name: it for name, it in state["model"].items() if not name.startswith("decoder.layer_norm")}
    torch.save(state, path)
    with pytest.raises(UserError, match="has --decoder-normalize-before False, where it has True"):
        back(tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bart-base", "bart-large", "gpt2"])
@torch.no_grad()
def test_true_sizes(tmp_path, kind):
    """bart-large with 2 + 2 of its layers."""
    pytest.importorskip("transformers")
    sizes = {
        "bart-base": {"d_model": 768, "encoder_attention_heads": 12, "decoder_attention_heads": 12},
        "bart-large": {"d_model": 1024, "encoder_attention_heads": 16, "decoder_attention_heads": 16},
        "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024},
    }[kind]
    if kind != "gpt2":
        layers = 6 if kind == "bart-base" else 2
        sizes |= {f"{side}_layers": layers for side in ("encoder", "decoder")}
        sizes |= {f"{side}_ffn_dim": 4 * sizes["d_model"] for side in ("encoder", "decoder")}
        sizes |= {"max_position_embeddings": 1024}
    rows = 50257 if kind == "gpt2" else 50265
    theirs = MAKERS["gpt2" if kind == "gpt2" else "bart"](tmp_path / "theirs", vocab_size=rows, **sizes)
    convert(tmp_path / "theirs", tmp_path / "ours")
    words = torch.randint(300, 50000, (2, 100))
    ours = load(tmp_path / "ours").model
    if kind == "gpt2":
        numbers = making.gpt2_rows(theirs)
        found, expected = ours(numbers[words])[0][..., numbers], theirs(words).logits
    else:
        found = ours(words, torch.tensor([100, 100]), words[:, :40])[0]
        expected = theirs(words, decoder_input_ids=words[:, :40]).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    del ours
    assert_same_tensors(tmp_path / "theirs", back(tmp_path / "ours", tmp_path / "again"))
    shutil.rmtree(tmp_path)


def test_written_files(tmp_path):
    write(tmp_path, {"model_type": "bart"}, {}, {"a": torch.ones(3, 2).t()})
    assert load_file(tmp_path / "model.safetensors")["a"].shape == (2, 3)


@pytest.mark.parametrize("name", ["scale_heads", "scale_fc", "scale_attn", "scale_resids", "quant_noise_pq"])
def test_what_is_no_part_of_their_models(name):
    with pytest.raises(UserError, match=f"GPT-2 cannot be this model, which has --{name.replace('_', '-')} True"):
        options.check_expressible({"activation_fn": "gelu", name: True}, {}, "GPT-2")
