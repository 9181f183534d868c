"""Settings of generation, on both sides: in numbers, and by what they generate."""

import pytest

from elseq.interop.hugging_face.generation import fairseq_options, hugging_face_settings
from tests.interop.hugging_face.families import test_bart
from tests.interop.hugging_face.making import change, convert, make_bart

# of facebook/bart-large-cnn; fairseq's options for the same model are beam 4, lenpen 2, min 55, max 140
CNN = {
    "num_beams": 4,
    "length_penalty": 2.0,
    "min_length": 56,
    "max_length": 142,
    "no_repeat_ngram_size": 3,
    "early_stopping": True,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
}


def test_summarization():
    options, notes = fairseq_options(CNN, is_language_model=False)
    assert options == {"beam": 4, "lenpen": 2.0, "max_len_b": 140, "min_len": 55, "no_repeat_ngram_size": 3}
    assert not notes
    back, notes = hugging_face_settings(options, is_language_model=False, positions=1024)
    assert back.items() <= CNN.items()
    assert not notes


@pytest.mark.parametrize(
    "settings, is_language_model, expected",
    [
        ({}, False, {"max_len_b": 20, "min_len": 0, "beam": 1}),
        ({"max_length": 20}, False, {"max_len_b": 19, "min_len": 0, "beam": 1}),
        ({"max_new_tokens": 30, "forced_eos_token_id": 2}, False, {"max_len_b": 29, "min_len": 0}),
        ({"max_new_tokens": 30, "min_new_tokens": 5, "max_length": 99}, True, {"max_len_b": 30, "min_len": 5}),
        ({"max_length": 2, "forced_eos_token_id": 2}, False, {"max_len_b": 0}),
        ({"num_beams": 4}, False, {"beam": 4, "early_stopping": "bound"}),
        ({"num_beams": 4, "early_stopping": "never"}, False, {"early_stopping": "never"}),
        ({"num_beams": 4, "early_stopping": True, "num_return_sequences": 3}, False, {"beam": 4, "nbest": 3}),
        (
            {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 9},
            True,
            {"sampling": True, "beam": 3, "nbest": 3},
        ),
        ({"do_sample": True}, False, {"sampling": True, "sampling_topk": 50}),
        (
            {"do_sample": True, "top_p": 0.9, "temperature": 0.7, "top_k": 0},
            False,
            {"sampling_topp": 0.9, "temperature": 0.7},
        ),
        ({"do_sample": True, "top_k": 0, "length_penalty": None}, False, {"sampling": True, "lenpen": 1.0}),
    ],
)
def test_options(settings, is_language_model, expected):
    options, notes = fairseq_options(settings, is_language_model)
    assert expected.items() <= options.items()
    assert not notes


@pytest.mark.parametrize(
    "settings, is_language_model, sentence",
    [
        ({"max_length": 50}, True, "max_length 50 counts the tokens of the prompt, --max-len-b does not"),
        (
            {"min_length": 5, "max_new_tokens": 9},
            True,
            "min_length 5 counts the tokens of the prompt, --min-len does not",
        ),
        ({"repetition_penalty": 1.2}, False, "repetition_penalty 1.2 is left out"),
        ({"do_sample": True, "top_p": 0.9, "top_k": 10}, False, "top_k 10 is left out"),
        ({"do_sample": True, "top_p": 0.9}, False, "top_k 50, transformers' default, is left out"),
        ({"do_sample": True, "typical_p": 0.9}, False, "typical_p 0.9 is left out"),
        ({"stop_strings": ["\n"]}, False, "stop_strings ['\\n'] is left out"),
        (
            {"num_beams": 4, "early_stopping": True, "num_beam_groups": 2, "diversity_penalty": 0.7},
            False,
            "num_beam_groups 2 with diversity_penalty 0.7 is left out: transformers lowers a word by the groups",
        ),
    ],
)
def test_what_they_do_not_say(settings, is_language_model, sentence):
    options, notes = fairseq_options(settings, is_language_model)
    assert len(notes) == 1 and notes[0].startswith(sentence)


def test_lengths_that_count_the_prompt():
    """What is nearest: the length after the start of the text alone."""
    assert fairseq_options({"max_length": 50}, is_language_model=True)[0]["max_len_b"] == 49
    options, notes = fairseq_options({}, is_language_model=True)
    assert options["max_len_b"] == 20
    assert len(notes) == 1 and notes[0].startswith("no length is given: transformers generates 20 tokens")


@pytest.mark.parametrize(
    "settings, missing, sentence",
    [
        ({"max_length": 0}, "max_len_b", "max_length 0 is left out: it has no place for a word"),
        ({"max_length": 1, "forced_eos_token_id": 2}, "max_len_b", "max_length 1 is left out"),
        ({"max_new_tokens": 0}, "max_len_b", "max_new_tokens 0 is left out"),
        (
            {"max_length": 10, "min_length": 100},
            "min_len",
            "the minimum length 99 is left out: it is above the maximum, 9",
        ),
        ({"num_return_sequences": 2}, "nbest", "num_return_sequences 2 is left out: it is above num_beams 1"),
        ({"num_beams": 3, "early_stopping": True, "num_beam_groups": 2}, "diverse_beam_groups", "num_beam_groups 2 wi"),
        ({"do_sample": True, "num_beam_groups": 3}, "diverse_beam_groups", "num_beam_groups 3 with diversity_penalty"),
        ({"length_penalty": 20.0}, "none", "length_penalty 20.0 is left out: it is not a number from -10 to 10"),
        ({"length_penalty": float("nan")}, "none", "length_penalty nan is left out: it is not a finite number"),
        ({"num_beam_groups": 2, "diversity_penalty": -(10**400)}, "diverse_beam_strength", "num_beam_groups 2 with"),
        ({"do_sample": True, "temperature": float("inf")}, "temperature", "temperature inf is left out: it is not a"),
        ({"do_sample": True, "temperature": 0}, "temperature", "temperature 0 is left out: it is not above 0"),
        ({"do_sample": True, "top_p": 0.0}, "sampling_topp", "top_p 0.0 is left out: it is not above 0"),
        ({"do_sample": True, "num_beams": 4}, "nbest", "num_beams 4 is left out: fairseq's samples are drawn without"),
    ],
)
def test_impossible_settings_are_left_out(settings, missing, sentence):
    options, notes = fairseq_options(settings, is_language_model=False)
    assert missing not in options
    assert len(notes) == 1 and notes[0].startswith(sentence)


def test_what_is_left_out_is_as_if_not_given():
    assert fairseq_options({"length_penalty": float("inf")}, is_language_model=False)[0]["lenpen"] == 1.0


def test_several_hypotheses_come_back():
    settings = {"num_beams": 4, "early_stopping": True, "num_return_sequences": 3, "no_repeat_ngram_size": 2}
    options, _ = fairseq_options(settings, is_language_model=False)
    assert settings.items() <= hugging_face_settings(options, is_language_model=False, positions=64)[0].items()


@pytest.mark.parametrize(
    "option, sentence",
    [
        ({"diverse_beam_groups": 2, "diverse_beam_strength": 0.5}, "--diverse-beam-groups 2 with --diverse-beam-stren"),
        ({"sampling": True}, "--sampling True is left out: transformers has no such option"),
        ({"max_len_a": 1.5}, "--max-len-a 1.5 is left out"),
        ({"beam_patience": 2.0}, "--beam-patience 2.0 is left out"),
        ({"unkpen": -2.0}, "--unkpen -2.0 is left out"),
    ],
)
def test_options_that_transformers_has_not(option, sentence):
    options = {"beam": 4, "lenpen": 1.0, "max_len_b": 20, "min_len": 1, "no_repeat_ngram_size": 0}
    expected, _ = hugging_face_settings(options, is_language_model=False, positions=64)
    settings, notes = hugging_face_settings(options | option, is_language_model=False, positions=64)
    assert settings == expected
    assert len(notes) == 1 and notes[0].startswith(sentence)


def test_positions_limit_the_length():
    options = {"beam": 1, "lenpen": 3.0, "max_len_b": 200, "min_len": 1, "no_repeat_ngram_size": 0}
    settings, _ = hugging_face_settings(options, is_language_model=False, positions=64)
    assert settings == {
        "num_beams": 1,
        "early_stopping": False,
        "length_penalty": 1.0,
        "max_length": 65,
        "min_length": 2,
    }


@pytest.mark.few_cases(3)
@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0, "max_length": 30, "min_length": 4},
        {"num_beams": 4, "length_penalty": 0.5, "max_length": 30},  # early_stopping: false is the default
        {"num_beams": 4, "early_stopping": "never", "length_penalty": 2.0, "max_length": 30},
        {"num_beams": 3, "early_stopping": True, "max_new_tokens": 25, "min_new_tokens": 7, "no_repeat_ngram_size": 2},
        {"max_length": 5, "forced_eos_token_id": None},
        {"max_length": 6},
        {"min_new_tokens": 19},  # and no maximum
    ],
)
def test_the_same_is_generated(tmp_path, settings):
    """transformers by generation_config.json, and elseq by the options that the conversion gives."""
    model = make_bart(tmp_path / "theirs")
    change(tmp_path / "theirs" / "generation_config.json", **settings)
    model.generation_config = type(model.generation_config).from_pretrained(tmp_path / "theirs")
    options = convert(tmp_path / "theirs", tmp_path / "ours").generation
    sources = test_bart.padded(test_bart.SOURCES)
    found = model.generate(sources, attention_mask=sources.ne(1).long(), suppress_tokens=[1])
    expected = [test_bart.until_end(row[1:]) for row in found.tolist()]
    assert test_bart.hypotheses(tmp_path / "ours", **options) == expected
