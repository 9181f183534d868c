"""Settings of folders as people hold them: transformers loads the folder and generates, and elseq what comes of it."""

import json
import shutil

import pytest
import torch

from elseq.errors import UserError
from elseq.interop.hugging_face import generation
from tests.interop.hugging_face.families import test_bart, test_gpt2
from tests.interop.hugging_face.making import change, convert, make_bart, make_gpt2, padded, until_end

transformers = pytest.importorskip("transformers")

SYMBOLS = {"bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
BEAM = {"num_beams": 4, "early_stopping": True, "max_length": 40}
FORCED = BEAM | {"length_penalty": 0.0, "min_length": 8, "no_repeat_ngram_size": 2}  # see test_bart.test_forced_start
OLD = {"force_bos_token_to_be_generated": True}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    make_bart(folder / "bart")
    make_gpt2(folder / "gpt2")
    return folder


def copy(originals, kind, folder, config, settings=None):
    """The folder of a model, with options of config.json changed, and generation_config.json another or gone."""
    shutil.copytree(originals / kind, folder)
    change(folder / "config.json", **config)
    (folder / "generation_config.json").unlink()
    if settings is not None:
        (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def bart_hypotheses(folder, output):
    """Of transformers and of elseq, and the conversion's notes."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    sources = padded(test_bart.SOURCES)
    found = model.generate(sources, attention_mask=sources.ne(1).long(), suppress_tokens=[1])
    converted = convert(folder, output)
    force_bos = converted.checkpoint["cfg"]["task"]["force_bos"]
    ours = test_bart.hypotheses(output, force_bos=force_bos, **converted.generation)
    return [until_end(row[1:]) for row in found.tolist()], ours, converted.notes


@pytest.mark.few_cases(6)
@pytest.mark.parametrize(
    "config, settings",
    [
        (BEAM | {"length_penalty": 2.0, "min_length": 8}, None),
        (FORCED | OLD, None),  # distilbart's
        (FORCED | OLD | {"length_penalty": 2.0}, None),
        (FORCED | OLD | {"length_penalty": 0.5, "early_stopping": False}, None),
        (FORCED | OLD, SYMBOLS | FORCED),  # not read where there is a newer file
        ({}, SYMBOLS | OLD | FORCED),
        ({}, SYMBOLS | OLD | FORCED | {"_from_model_config": True}),
        (FORCED | {"force_bos_token_to_be_generated": False}, None),
        (FORCED | OLD | {"forced_bos_token_id": 5}, None),
        ({"forced_bos_token_id": 0}, SYMBOLS | FORCED),
        ({"forced_bos_token_id": 0, **FORCED}, None),
        ({"forced_eos_token_id": None, "max_length": 6}, None),  # not the default of the class
        ({"forced_eos_token_id": 2, "max_length": 9}, SYMBOLS | {"max_length": 6}),
        ({"max_length": 20}, None),
        ({}, SYMBOLS | {"max_length": 20}),
        ({}, SYMBOLS | {"min_new_tokens": 5, "max_new_tokens": 9, "min_length": 8, "max_length": 30}),
        ({}, SYMBOLS | {"min_length": 4, "max_length": 5, "forced_eos_token_id": 2}),
        ({}, SYMBOLS | {"top_p": 0.5, "temperature": 3.0, "typical_p": 0.5}),  # nothing is sampled
        ({}, SYMBOLS | BEAM | {"remove_invalid_values": True, "use_cache": False}),
    ],
)
def test_barts(originals, tmp_path, config, settings):
    theirs, ours, notes = bart_hypotheses(
        copy(originals, "bart", tmp_path / "theirs", config, settings), tmp_path / "ours"
    )
    assert ours == theirs
    assert not notes


@pytest.mark.few_cases(3)
@pytest.mark.parametrize(
    "config, settings, sentence",
    [
        (
            BEAM | {"decoder_start_token_id": None},
            None,
            "config.json has no decoder_start_token_id: transformers 5",
        ),
        (
            BEAM | {"eos_token_id": None},
            None,
            "config.json has no eos_token_id: transformers 5",
        ),
        (
            {},
            BEAM | SYMBOLS | {"eos_token_id": None},
            "generation_config.json has no eos_token_id: transformers 5 ends no text before",
        ),
        (
            {"task_specific_params": {"summarization": BEAM}},
            SYMBOLS | BEAM | {"max_length": 30},
            "what config.json has for 'summarization' alone is left out, as transformers does: max_length 40",
        ),
        ({"prefix": " "}, SYMBOLS, "prefix ' ' is left out: transformers does not put it before a text either"),
        ({"dtype": "float16"}, SYMBOLS, "the weights stay in float32, where config.json has 'float16'"),
        (
            {},
            SYMBOLS | BEAM | {"eos_token_id": [2, 20]},
            "eos_token_id [2, 20]: fairseq has 2 alone",
        ),
    ],
)
def test_what_is_left_out_of_a_bart(originals, tmp_path, config, settings, sentence):
    notes = convert(copy(originals, "bart", tmp_path / "theirs", config, settings), tmp_path / "ours").notes
    assert len(notes) == 1 and notes[0].startswith(sentence)


def test_tasks_that_say_nothing_else(originals, tmp_path):
    """As in bart-large-cnn."""
    config = BEAM | {"task_specific_params": {"summarization": BEAM}}
    folder = copy(originals, "bart", tmp_path / "theirs", config)
    assert not convert(folder, tmp_path / "ours").notes


@pytest.mark.few_cases(3)
@pytest.mark.parametrize(
    "kind, options",
    [
        ("bart", {"d_model": None, "hidden_size": 32}),
        ("bart", {"encoder_layers": None, "num_hidden_layers": 2}),
        ("bart", {"encoder_attention_heads": 8, "num_attention_heads": 4}),  # the other name stands over it
        ("bart", {"activation_function": "gelu_python"}),
        ("bart", {"activation_function": "gelu_python_tanh"}),
        ("bart", {"activation_function": "gelu_accurate"}),
        ("gpt2", {"n_embd": None, "hidden_size": 32, "n_positions": None, "max_position_embeddings": 64}),
        ("gpt2", {"n_layer": None, "num_hidden_layers": 2, "n_head": 2, "num_attention_heads": 8}),
        ("gpt2", {"n_ctx": 1024}),  # which nothing reads
    ],
)
def test_other_names(originals, tmp_path, kind, options):
    folder = copy(originals, kind, tmp_path / "theirs", options)
    family, auto = {
        "bart": (test_bart, transformers.AutoModelForSeq2SeqLM),
        "gpt2": (test_gpt2, transformers.AutoModelForCausalLM),
    }[kind]
    convert(folder, tmp_path / "ours")
    family.assert_same_logits(auto.from_pretrained(folder).eval(), tmp_path / "ours", ["auto"])


@pytest.mark.parametrize(
    "kind, options, sentence",
    [
        (
            "bart",
            {"num_hidden_layers": 1},
            "has the unknown tensor encoder.layers.1.* has num_hidden_layers: 1",
        ),
        (
            "gpt2",
            {"num_hidden_layers": 0},
            "config.json has num_hidden_layers: 0, where a whole number above 0",
        ),
        ("bart", {"is_encoder_decoder": False}, "has is_encoder_decoder: False, which fairseq's model does not have"),
        (
            "bart",
            {"per_layer_config": {"0": {"decoder_ffn_dim": 8}}},
            "has per_layer_config: .*, which",
        ),
        ("gpt2", {"configuration_files": ["config.5.0.0.json"]}, "has configuration_files: "),
        ("gpt2", {"n_layer": 10**9}, "has n_layer: 1000000000, and the weights are 28 tensors"),
        ("bart", {"decoder_layers": 10**9}, "has decoder_layers: 1000000000, and the weights are 117 tensors"),
        ("gpt2", {"scale_attn_weights": "yes"}, "has scale_attn_weights: 'yes', where true or false is needed"),
        ("gpt2", {"resid_pdrop": 3}, "has resid_pdrop: 3, where a number from 0 to 1 is needed"),
    ],
)
def test_what_cannot_be(originals, tmp_path, kind, options, sentence):
    folder = copy(originals, kind, tmp_path / "theirs", options)
    with pytest.raises(UserError, match=sentence) as error:
        convert(folder, tmp_path / "ours")
    assert "\n" not in str(error.value)


def test_dropouts_that_differ(originals, tmp_path):
    """Those of a trained model are without effect, and finetuning has one."""
    folder = copy(originals, "gpt2", tmp_path / "theirs", {"embd_pdrop": 0.2, "max_length": 20})
    notes = convert(folder, tmp_path / "ours").notes
    assert notes[0] == "embd_pdrop 0.2 is left out: fairseq has 0.1 there too"


def test_gpt2_without_generation_config(originals, tmp_path):
    """By config.json alone, as the first GPT-2s are; its length counts the prompt."""
    folder = copy(originals, "gpt2", tmp_path / "theirs", {"num_beams": 3, "early_stopping": True, "max_length": 60})
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    options = convert(folder, tmp_path / "ours").generation
    for prompt, found in zip(
        test_gpt2.PROMPTS,
        test_gpt2.hypotheses(model, tmp_path / "ours", **options | {"max_len_b": 60}),
        strict=True,
    ):
        words = model.generate(torch.tensor([prompt]), pad_token_id=test_gpt2.END)[0, len(prompt) :].tolist()
        assert found[: 60 - len(prompt)] == until_end(words, test_gpt2.END)


def test_every_setting_of_transformers_is_known():
    """Each is an option of fairseq, or noted, or changes no word."""
    words = set(generation.DEFAULTS) | set(generation._WHOLE) | set(generation._NUMBERS) | {"diversity_penalty"}
    words |= set(generation._ELSEWHERE) | set(generation._ELSEWHERE_IN_SAMPLING)
    words |= {"forced_bos_token_id", "forced_eos_token_id", "eos_token_id", "decoder_start_token_id"}
    others = {"pad_token_id", "bos_token_id", "transformers_version", "remove_invalid_values", "is_assistant"}
    others |= {"compile_config", "disable_compile", "continuous_batching_config", "low_memory", "prefill_chunk_size"}
    # what is drafted by another model is checked by this one
    others |= {
        "use_mtp",
        "prompt_lookup_num_tokens",
        "max_matching_ngram_size",
        "speculation_type",
        "target_lookbehind",
    }
    beginnings = ("_", "output_", "return_dict", "use_cache", "cache_", "max_cache", "assistant_", "num_assistant_")
    settings = {name for name in vars(transformers.GenerationConfig()) if not name.startswith(beginnings)}
    assert settings <= words | others
