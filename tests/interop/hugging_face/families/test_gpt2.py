"""GPT-2 against transformers: logits, probabilities, hypotheses, and models that fairseq cannot have."""

from argparse import Namespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from elseq.errors import UserError
from elseq.interop.hugging_face.families import GPT2
from elseq.interop.hugging_face.generation import fairseq_options
from tests.interop.hugging_face.making import (
    BART_NAMES,
    GPT2_NAMES,
    change,
    convert,
    gpt2_rows,
    load,
    make_gpt2,
    until_end,
)

transformers = pytest.importorskip("transformers")

END = len(GPT2_NAMES) - 1
PROMPTS = [[END, *range(10, 10 + 7 * length, 7)] for length in (5, 9, 1, 12, 3, 30)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """transformers' model and the converted folder."""
    folder = tmp_path_factory.mktemp("gpt2")
    model = make_gpt2(folder / "theirs")
    converted = convert(folder / "theirs", folder / "ours")
    assert [note.partition(":")[0] for note in converted.notes] == ["no length is given"]
    return model, folder / "ours"


@torch.no_grad()
def assert_same_logits(theirs, folder, attentions=("auto", "stock")):
    rows = gpt2_rows(theirs)
    for prompt in PROMPTS:
        expected = theirs(torch.tensor([prompt])).logits
        for attention in attentions:
            found = load(folder, attention).model(rows[torch.tensor([prompt])])[0]
            torch.testing.assert_close(found[..., rows], expected, rtol=1e-5, atol=1e-5)
            # <s>, <pad> and <unk> have no part in it
            probabilities = found.log_softmax(dim=-1)[..., rows]
            torch.testing.assert_close(probabilities, expected.log_softmax(dim=-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["kv", "el", "stock"])
def test_logits(pair, attention):
    assert_same_logits(*pair, [attention])


@pytest.mark.few_cases(2)
@pytest.mark.parametrize(
    "options",
    [
        {"activation_function": "relu", "n_inner": 40},
        {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3},
        {"scale_attn_weights": False, "reorder_and_upcast_attn": True},
        {"tie_word_embeddings": False, "resid_pdrop": 0.2},
    ],
)
def test_options(tmp_path, options):
    theirs = make_gpt2(tmp_path / "theirs", **options)
    convert(tmp_path / "theirs", tmp_path / "ours")
    assert_same_logits(theirs, tmp_path / "ours", ["auto"])


@pytest.mark.parametrize("place", [0, 100])
def test_other_place_of_the_end(tmp_path, place):
    names = [*GPT2_NAMES[:place], GPT2_NAMES[-1], *GPT2_NAMES[place:-1]]
    theirs = make_gpt2(tmp_path / "theirs", names)
    convert(tmp_path / "theirs", tmp_path / "ours")
    assert_same_logits(theirs, tmp_path / "ours", ["auto"])


def test_own_symbols(tmp_path):
    """A model with fairseq's symbols: they keep their rows."""
    symbols = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    theirs = make_gpt2(tmp_path / "theirs", BART_NAMES, **symbols)
    convert(tmp_path / "theirs", tmp_path / "ours")
    expected = theirs.transformer.wte.weight
    torch.testing.assert_close(load(tmp_path / "ours").model.decoder.embed_tokens.weight, expected, rtol=0, atol=0)


def rewritten_as_base(folder, tensors):
    """As GPT2Model saves it, and the first checkpoints were."""
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    masks = {"h.0.attn.bias": torch.ones(1, 1, 64, 64), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    save_file(renamed | masks, folder / "model.safetensors")


def rewritten_in_parts(folder, tensors):
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-1.bin": names[:9], "model-2.bin": names[9:]}
    for part, held in parts.items():
        torch.save({name: tensors[name] for name in held}, folder / part)
    weight_map = {name: part for part, held in parts.items() for name in held}
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    change(folder / "pytorch_model.bin.index.json", weight_map=weight_map)


@pytest.mark.parametrize("rewrite", [rewritten_as_base, rewritten_in_parts])
def test_other_forms(tmp_path, rewrite):
    theirs = make_gpt2(tmp_path / "theirs")
    rewrite(tmp_path / "theirs", load_file(tmp_path / "theirs" / "model.safetensors"))
    convert(tmp_path / "theirs", tmp_path / "ours")
    assert_same_logits(theirs, tmp_path / "ours", ["auto"])


def test_untrained_layer_norm(tmp_path):
    """Nothing can keep the new symbols out of its probabilities; the user is told."""
    make_gpt2(tmp_path / "theirs")
    path = tmp_path / "theirs" / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.ln_f.bias"].zero_()
    save_file(tensors, path)
    converted = convert(tmp_path / "theirs", tmp_path / "ours")
    assert any("take part in its probabilities" in note for note in converted.notes)
    assert not load(tmp_path / "ours").model.decoder.embed_tokens.weight[[0, 1, 3]].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_new_symbols_in_half_precision(pair, dtype):
    model = load(pair[1]).model.to(dtype)
    logits = model(gpt2_rows(pair[0])[torch.tensor([PROMPTS[3]])])[0].float()
    assert logits[..., [0, 1, 3]].max() < -500


# --- generation


def hypotheses(theirs, folder, beam, **options):
    loaded = load(folder)
    rows = gpt2_rows(theirs)
    options = {"beam": beam, "nbest": 1, "lenpen": 1.0, "max_len_b": 30, "min_len": 0, **options}
    generator = loaded.task.build_generator([loaded.model], Namespace(**options))
    sources = [torch.cat((rows[prompt[1:]], torch.tensor([2]))) for prompt in PROMPTS]  # the task begins with </s>
    back = {row: number for number, row in enumerate(rows.tolist())}
    found = loaded.decode(generator, sources)
    return [until_end([back[row] for row in best["tokens"].tolist()], END) for best, *_ in found]


def their_hypotheses(model, beam, **options):
    settings = {"num_beams": beam, "max_new_tokens": 30, "early_stopping": beam > 1, "do_sample": False}
    found = [
        model.generate(torch.tensor([prompt]), pad_token_id=END, **(settings | options))[0, len(prompt) :]
        for prompt in PROMPTS
    ]
    return [until_end(words.tolist(), END) for words in found]


@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("options", [{}, {"lenpen": 2.0}, {"lenpen": 0.0, "min_len": 6}])
def test_same_hypotheses(pair, beam, options):
    theirs = {"length_penalty": options.get("lenpen", 1.0), "min_new_tokens": options.get("min_len", 0)}
    expected = their_hypotheses(pair[0], beam, **theirs)
    assert hypotheses(*pair, beam, **options) == expected
    assert max(map(len, expected)) > 4


@pytest.mark.parametrize("attention", ["kv", "el", "stock"])
def test_same_scores_of_continuations(pair, attention):
    """Of texts in subwords, with their white space; the prompt begins after an end of text."""
    prompts = ["the inner", "a", "thin air in", "", "there"]
    targets = [" the in", "nother", "", "the other ways", "in the a the"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(pair[1].with_name("theirs"))
    loaded = load(pair[1], attention)
    found = loaded.score(prompts, targets, max_tokens=30)
    for prompt, target, hypothesis in zip(prompts, targets, found, strict=True):
        before, words = ([*tokenizer(text)["input_ids"]] if text else [] for text in (prompt, target))
        tokens = torch.tensor([[END, *before, *words, END]])
        with torch.no_grad():
            log_probs = pair[0](tokens[:, :-1]).logits.log_softmax(dim=-1).gather(2, tokens[:, 1:, None])[0, :, 0]
        assert list(hypothesis.log_probs) == pytest.approx(log_probs[len(before) :].tolist(), abs=1e-4)
        assert hypothesis.score == pytest.approx(log_probs[len(before) :].sum().item(), abs=1e-4)


def test_length_limit_without_beam(pair):
    """Hugging Face's max_new_tokens are words when no end is forced."""
    assert hypotheses(*pair, 1, max_len_b=2) == their_hypotheses(pair[0], 1, max_new_tokens=2)


def test_length_where_none_is_given(pair):
    options, _ = fairseq_options({"min_new_tokens": 20}, is_language_model=True)
    lengths = {name: options[name] for name in ("min_len", "max_len_b")}
    expected = their_hypotheses(pair[0], 1, max_new_tokens=None, min_new_tokens=20)
    assert hypotheses(*pair, 1, **lengths) == expected
    assert {len(words) for words in expected} == {20}


# --- what cannot be


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"activation_function": "quick_gelu"}, "activation_function: 'quick_gelu'; fairseq has"),
        ({"add_cross_attention": True}, "has add_cross_attention: True, which fairseq's model does not have"),
        ({"layer_norm_epsilon": 1e-6}, "has layer_norm_epsilon: 1e-06"),
        ({"n_head": 5}, "n_embd: 32, which n_head: 5 does not divide"),
        ({"n_inner": 100}, "h.0.mlp.c_fc.weight in .* is 32 x 128 and not 32 x 100"),
        ({"eos_token_id": 9999}, "config.json has eos_token_id: 9999, and the embedding has 264 rows"),
        ({"eos_token_id": None}, "config.json has eos_token_id: 50256, and the embedding has 264 rows"),
        ({"n_layer": 3}, "lacks tensor h.2.attn.c_attn.weight and 11 more"),
        (
            {"tie_word_embeddings": False},
            "lacks tensor lm_head.weight: config.json and weights are of",
        ),
    ],
)
def test_other_configurations(tmp_path, options, sentence):
    make_gpt2(tmp_path / "theirs")
    change(tmp_path / "theirs" / "config.json", **options)
    with pytest.raises(UserError, match=sentence) as error:
        convert(tmp_path / "theirs", tmp_path / "ours")
    assert "\n" not in str(error.value)


def test_shapes_are_those_of_transformers(pair):
    config = {name: getattr(pair[0].config, name) for name in GPT2.defaults}
    expected = {name: tuple(tensor.shape) for name, tensor in pair[0].transformer.state_dict().items()}
    assert GPT2.shapes(config) == expected
