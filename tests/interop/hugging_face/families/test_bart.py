"""BART against transformers: logits, hypotheses, and the same tensors after the way there and back."""

from argparse import Namespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from elseq.errors import UserError
from elseq.generator import load_by
from elseq.interop.hugging_face.families import BART
from elseq.options import Loading
from tests import helpers
from tests.interop.hugging_face.making import TEXTS, change, convert, load, make_bart, padded, until_end

transformers = pytest.importorskip("transformers")

SOURCES = [[0, *range(10, 10 + 7 * length, 7), 2] for length in (5, 9, 1, 12, 3, 30)]
TARGETS = [[2, 0, *range(20, 20 + 3 * length, 3)] for length in (4, 1, 6, 2, 3, 50)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """transformers' model and the converted folder."""
    folder = tmp_path_factory.mktemp("bart")
    model = make_bart(folder / "theirs")
    convert(folder / "theirs", folder / "ours")
    return model, folder / "ours"


def logits(model, sources=SOURCES, targets=TARGETS):
    sources, targets = padded(sources), padded(targets)
    if hasattr(model, "generate"):
        return model(input_ids=sources, attention_mask=sources.ne(1).long(), decoder_input_ids=targets).logits
    return model(sources, sources.ne(1).sum(dim=1), targets)[0]


@torch.no_grad()
def assert_same_logits(theirs, folder, attentions=("auto", "stock")):
    """Where the target is not padding."""
    words = padded(TARGETS).ne(1)
    expected = logits(theirs)[words]
    assert expected.std() > 0.5
    for attention in attentions:
        found = logits(load(folder, attention).model)[words]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["kv", "el", "stock"])
def test_logits(pair, attention):
    assert_same_logits(*pair, [attention])


@pytest.mark.few_cases(2)
@pytest.mark.parametrize(
    "options",
    [
        {"activation_function": "gelu_new"},
        {"activation_function": "silu"},  # of elseq's models
        {"activation_function": "relu", "scale_embedding": True},
        {"tie_word_embeddings": False},
        {"encoder_attention_heads": 8, "decoder_attention_heads": 2, "decoder_layers": 1, "dropout": 0.3},
    ],
)
def test_options(tmp_path, options):
    theirs = make_bart(tmp_path / "theirs", **options)
    if "tie_word_embeddings" in options:
        # transformers has the encoder's and the decoder's apart as well
        theirs.model.encoder.embed_tokens.weight = theirs.model.decoder.embed_tokens.weight = theirs.model.shared.weight
        tensors = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
        save_file(tensors, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    convert(tmp_path / "theirs", tmp_path / "ours")
    assert_same_logits(theirs, tmp_path / "ours")


def test_embeddings_of_their_own(tmp_path):
    """As transformers 5 makes them without tie_word_embeddings: three, and a fourth that nothing reads."""
    theirs = make_bart(tmp_path / "theirs", tie_word_embeddings=False)
    embeddings = (
        theirs.model.encoder.embed_tokens.weight,
        theirs.model.decoder.embed_tokens.weight,
        theirs.lm_head.weight,
    )
    assert not torch.equal(*embeddings[:2]) and not torch.equal(*embeddings[1:])
    convert(tmp_path / "theirs", tmp_path / "ours")
    assert_same_logits(theirs, tmp_path / "ours")


def rewritten_as_base(folder, tensors):
    """As BartModel saves it."""
    renamed = {name.removeprefix("model."): it for name, it in tensors.items() if name != "final_logits_bias"}
    save_file(renamed, folder / "model.safetensors")


def rewritten_as_old(folder, tensors):
    """As transformers 4 saved it: all copies of the embedding, and what transformers 3 had besides."""
    (folder / "model.safetensors").unlink()
    copies = ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"]
    copies = dict.fromkeys(copies, tensors["model.shared.weight"])
    torch.save({**tensors, **copies}, folder / "pytorch_model.bin")
    change(folder / "config.json", normalize_before=False, normalize_embedding=True, add_bias_logits=False)


def rewritten_with_classifier(folder, tensors):
    head = {"classification_head.dense.weight": torch.ones(32, 32), "classification_head.out_proj.bias": torch.ones(3)}
    save_file({**tensors, **head}, folder / "model.safetensors")


@pytest.mark.parametrize("rewrite", [rewritten_as_base, rewritten_as_old, rewritten_with_classifier])
def test_other_forms(tmp_path, rewrite):
    theirs = make_bart(tmp_path / "theirs")
    rewrite(tmp_path / "theirs", load_file(tmp_path / "theirs" / "model.safetensors"))
    converted = convert(tmp_path / "theirs", tmp_path / "ours")
    assert_same_logits(theirs, tmp_path / "ours", ["auto"])
    left_out = rewrite is rewritten_with_classifier
    assert any("classification_head.out_proj.bias" in note for note in converted.notes) == left_out


# --- generation


def hypotheses(folder, beam, force_bos="no", **options):
    loaded = load(folder)
    loaded.task.cfg.force_bos = force_bos
    options = {"beam": beam, "nbest": 1, "lenpen": 1.0, "max_len_b": 38, "min_len": 0, **options}
    generator = loaded.task.build_generator([loaded.model], Namespace(**options))
    sources = [torch.tensor(row[1:]) for row in SOURCES]  # the task adds <s>
    return [until_end(best["tokens"].tolist()) for best, *_ in loaded.decode(generator, sources)]


def their_hypotheses(model, beam, **options):
    sources = padded(SOURCES)
    settings = {"max_length": 40, "min_length": 0, "early_stopping": beam > 1, "do_sample": False}
    found = model.generate(
        sources,
        attention_mask=sources.ne(1).long(),
        num_beams=beam,
        suppress_tokens=[1],  # fairseq never generates padding, and only a random model would
        **(settings | options),
    )
    return [until_end(row[1:]) for row in found.tolist()]


@pytest.mark.few_cases(2)
@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("lenpen", [0.0, 1.0, 2.0])
def test_same_hypotheses(pair, beam, lenpen):
    model, folder = pair
    expected = their_hypotheses(model, beam, length_penalty=lenpen)
    assert hypotheses(folder, beam, lenpen=lenpen) == expected
    if beam == 1 or lenpen:
        assert len({tuple(words) for words in expected}) > 2
        assert max(map(len, expected)) > 2


def test_lengths_and_ngrams(pair):
    model, folder = pair
    expected = their_hypotheses(model, 4, min_length=9, max_length=14, no_repeat_ngram_size=2, length_penalty=2.0)
    assert hypotheses(folder, 4, min_len=8, max_len_b=12, no_repeat_ngram_size=2, lenpen=2.0) == expected
    assert {len(words) for words in expected} <= set(range(8, 13))


def test_length_limit_without_beam(pair):
    """By greedy search even hypotheses that reach the maximum length are the same."""
    model, folder = pair
    assert hypotheses(folder, 1, max_len_b=2) == their_hypotheses(model, 1, max_length=4)


def test_forced_start(pair):
    """Hugging Face does not count its probability. Where scores are not divided by lengths it makes no difference."""
    model, folder = pair
    options = {"min_length": 8, "no_repeat_ngram_size": 2}
    expected = their_hypotheses(model, 4, forced_bos_token_id=0, length_penalty=0.0, **options)
    assert hypotheses(folder, 4, force_bos="yes", lenpen=0.0, min_len=7, no_repeat_ngram_size=2) == expected
    assert all(words[0] == 0 for words in expected)


@pytest.mark.parametrize("forced", [None, 0])
def test_forced_start_is_kept(tmp_path, forced):
    make_bart(tmp_path / "theirs")
    change(tmp_path / "theirs" / "generation_config.json", forced_bos_token_id=forced)
    convert(tmp_path / "theirs", tmp_path / "ours")
    assert load(tmp_path / "ours").task.force_bos == (forced == 0)


# --- what cannot be


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"activation_function": "quick_gelu"}, "activation_function: 'quick_gelu'; fairseq has gelu, "),
        ({"normalize_before": True}, "has normalize_before: True, which fairseq's model does not have"),
        ({"add_final_layer_norm": True}, "has add_final_layer_norm: True"),
        ({"decoder_start_token_id": 0}, "decoder_start_token_id: 0, and fairseq begins to decode with the end symbol"),
        ({"d_model": "wide"}, "config.json has d_model: 'wide', where a whole number above 0 is needed"),
        ({"decoder_attention_heads": 0}, "decoder_attention_heads: 0, where a whole number above 0 is needed"),
        ({"eos_token_id": [2, 3]}, r"config.json has eos_token_id: \[2, 3\], where a whole number"),
        ({"encoder_attention_heads": 5}, "has d_model: 32, which encoder_attention_heads: 5 does not divide"),
        ({"decoder_attention_heads": 3}, "has d_model: 32, which decoder_attention_heads: 3 does not divide"),
        ({"activation_function": ["a"]}, r"activation_function: \['a'\]; fairseq has gelu, "),
        ({"dropout": "0.1"}, "config.json has dropout: '0.1', where a finite number is needed"),
        ({"dropout": float("inf")}, "config.json has dropout: inf, where a finite number is needed"),
        ({"pad_token_id": "one"}, "config.json has pad_token_id: 'one', where a whole number is needed"),
        ({"quantization_config": {"load_in_8bit": True}}, "config.json has a quantization_config: give the model that"),
        ({"d_model": 64}, "shared.weight in .* is 270 x 32 and not 270 x 64"),
        ({"decoder_layers": 4}, "lacks tensor decoder.layers.3.self_attn.q_proj.weight and 25 more"),
        ({"decoder_layers": 2}, "has the unknown tensor decoder.layers.2.* and 25 more"),
    ],
)
def test_other_configurations(tmp_path, options, sentence):
    make_bart(tmp_path / "theirs")
    change(tmp_path / "theirs" / "config.json", **options)
    with pytest.raises(UserError, match=sentence) as error:
        convert(tmp_path / "theirs", tmp_path / "ours")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "tensors, sentence",
    [
        ({"final_logits_bias": torch.ones(1, 270)}, "have a final_logits_bias, and fairseq's output layer has no bias"),
        ({"lm_head.weight": torch.ones(270, 32)}, "lm_head.weight differs from the embedding"),
    ],
)
def test_other_tensors(tmp_path, tensors, sentence):
    make_bart(tmp_path / "theirs")
    path = tmp_path / "theirs" / "model.safetensors"
    save_file({**load_file(path), **tensors}, path)
    with pytest.raises(UserError, match=sentence):
        convert(tmp_path / "theirs", tmp_path / "ours")


def test_shapes_are_those_of_transformers(pair):
    config = transformers.BartConfig().to_dict() | {name: getattr(pair[0].config, name) for name in BART.defaults}
    expected = {name: tuple(tensor.shape) for name, tensor in pair[0].model.state_dict().items()}
    found = BART.shapes(config)
    assert set(expected) - set(found) == {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    assert all(expected[name] == shape for name, shape in found.items())


def test_multi_query_by_calibration_text(pair, tmp_path):
    """In the two commands that the documentation gives; the texts are encoded by the tokenizer that came along."""
    _, folder = pair
    for name in ("source", "target"):
        (tmp_path / name).write_text("".join(f"{text}\n" for text in TEXTS * 5))
    options = ["--num-kv-heads=1", "--method=fitted", "--calibration", tmp_path / "source"]
    options += ["--calibration-target", tmp_path / "target", "--output", tmp_path / "out.pt", "--data", folder]
    printed = helpers.run_here(["elseq-convert", "heads", folder, *options]).stdout
    assert "loss on 20 sentences of source" in printed
    kv, el = (
        load_by(tmp_path / "out.pt", Loading(attention, "cpu", "float64", folder)).generate(TEXTS, max_len_b=9)
        for attention in ("kv", "el")
    )
    assert kv == el
