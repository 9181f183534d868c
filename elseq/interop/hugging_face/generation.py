"""Settings of generation: those of Hugging Face's generate as options of fairseq-generate, and back.

Lengths differ. Hugging Face's max_length and min_length count the symbol that decoding starts from and the end symbol;
fairseq's count neither. With forced_eos_token_id the last token of max_length is the end symbol. Without it, the last
token is a word, and the text has no end.

The search is the same as long as no hypothesis reaches the maximum length: there fairseq adds the log-probability of
the end symbol, and Hugging Face nothing. The same holds for a forced <s> or language, unless the task has
--score-target-start no. A language model's prompt begins with the end symbol in fairseq. The same prompt for Hugging
Face is "<|endoftext|>" and the text.
"""

import sys

from fairseq.dataclass.configs import GenerationConfig

from elseq.bounds import is_possible, possible_values
from elseq.errors import UserError, as_option
from elseq.interop.hugging_face.options import shown
from elseq.options import BOUND, FIRST, NEVER

DEFAULTS = {
    "num_beams": 1,
    "length_penalty": 1.0,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "early_stopping": False,
    "do_sample": False,
    "top_k": 50,
    "top_p": 1.0,
    "temperature": 1.0,
}
# What each setting may be, and the least of the whole numbers.
_WHOLE = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "max_length": 0,
    "max_new_tokens": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "top_k": 0,
}
_MOST = 2**31 - 1
_NUMBERS = {"length_penalty": "lenpen", "top_p": "sampling_topp", "temperature": "temperature"}  # and their options
_SAMPLING = ("top_p", "temperature")
_LONGEST = 200  # fairseq's, where no --max-len-b is given
_NEW_TOKENS = 20  # transformers', where no length is given
# Settings without an equal in fairseq, with the value that has no effect.
_ELSEWHERE = {
    "repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "penalty_alpha": None,
    "guidance_scale": None,
    "renormalize_logits": False,
    "force_words_ids": None,
    "constraints": None,
    "stop_strings": None,
    "max_time": None,
    "token_healing": False,
    "watermarking_config": None,
    "dola_layers": None,
}
_ELSEWHERE_IN_SAMPLING = {"typical_p": 1.0, "min_p": None, "top_h": None, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
_RULES = {True: FIRST, False: BOUND, "never": NEVER}  # early_stopping and --early-stopping
# fairseq's options of generation that transformers does not have, with the value that has no effect.
_OURS_ALONE = {
    "sampling": False,
    "temperature": 1.0,
    "unnormalized": False,
    "no_early_stop": False,
    "match_source_len": False,
    "max_len_a": 0,
    "unkpen": 0,
    "prefix_size": 0,
    "constraints": None,
    "diversity_rate": -1.0,
    "lm_path": None,
    "beam_patience": 1.0,
}


def check_settings(settings: dict, file: str) -> None:
    """
    Args:
        settings: of the file.
        file: its name.

    Raises:
        UserError: a setting of a wrong type.
    """
    for name, value in settings.items():
        if value is None:
            continue
        wanted = None
        if name in _WHOLE and (type(value) is not int or value < _WHOLE[name]):
            wanted = f"a whole number of at least {_WHOLE[name]}"
        elif name in _WHOLE and value > _MOST:
            wanted = f"a whole number of at most {_MOST}"
        elif name in _NUMBERS and type(value) not in (int, float):
            wanted = "a number"
        elif name == "do_sample" and type(value) is not bool:
            wanted = "true or false"
        elif name == "early_stopping" and type(value) is not bool and value != "never":
            wanted = 'true, false or "never"'
        if wanted is not None:
            raise UserError(f"{file} has {name}: {shown(value)}, where {wanted} is needed")


def of_tasks(config: dict, settings: dict) -> list[str]:
    """Notes on settings that pipelines of older versions of transformers read, and `generate` does not.

    Args:
        config: config.json.
        settings: of generation.
    """
    notes = []
    tasks = config.get("task_specific_params")
    for task, of_task in tasks.items() if isinstance(tasks, dict) else ():
        differing = {
            name: value
            for name, value in (of_task.items() if isinstance(of_task, dict) else ())
            if value != settings.get(name, DEFAULTS.get(name))
        }
        if differing:
            values = ", ".join(f"{name} {shown(value)}" for name, value in differing.items())
            notes.append(f"what config.json has for {shown(task)} alone is left out, as transformers does: {values}")
    if config.get("prefix"):
        notes.append(f"prefix {shown(config['prefix'])} is left out: transformers does not put it before a text either")
    return notes


def without_padding(settings: dict, pad: int | None) -> dict:
    """The settings without the rule that padding is not generated: in fairseq it never is."""
    return settings | {"bad_words_ids": None} if settings.get("bad_words_ids") == [[pad]] else settings


def special_symbols(
    settings: dict, file: str, fixed: dict[str, tuple[int, ...]], forcible: dict[str, int | range | None]
) -> tuple[dict, list[str]]:
    """
    Args:
        settings: of the file.
        file: its name.
        fixed, forcible: of the model; see `Family.fixed_symbols` and `Family.forced_symbols`.

    Returns:
        The settings without the forced symbols that fairseq cannot force, and what was left out.

    Raises:
        UserError: decoding begins or ends with another symbol than in fairseq.
    """
    notes = []
    for name, (symbol, *others) in fixed.items():
        given = settings.get(name)
        symbols = given if isinstance(given, list) else [given]
        symbol = next((other for other in others if symbols == [other]), symbol)
        if given is None:
            does = "ends no text before the maximum length" if name == "eos_token_id" else "begins with bos_token_id"
            notes.append(f"{file} has no {name}: transformers 5 {does} then, fairseq has {symbol}")
        elif symbol not in symbols:
            where = f"where fairseq has the end symbol, {symbol} in config.json"
            raise UserError(f"{file} has {name}: {shown(given)}, {where}")
        elif symbols != [symbol]:
            notes.append(f"{name} {shown(given)}: fairseq has {symbol} alone")
    for name, symbol in forcible.items():
        given = settings.get(name)
        if isinstance(symbol, range) and type(given) is int and given in symbol:
            continue
        if given is not None and given not in (symbol, [symbol]):
            can = "no symbol at the start of a text" if symbol is None else f"{symbol} alone"
            notes.append(f"{name} {shown(given)} is left out: fairseq forces {can}")
            settings = settings | {name: None}
    return settings, notes


def fairseq_options(settings: dict, is_language_model: bool) -> tuple[dict, list[str]]:
    """
    Args:
        settings: of generation_config.json, or of config.json in a folder without one, which have been checked.
        is_language_model: a model without an encoder, whose lengths count the prompt.

    Returns:
        Options of fairseq-generate by their names in its configuration, and what they do not say.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    notes = _drop_impossible_numbers(given)
    if "max_new_tokens" not in given and "max_length" not in given:
        given["max_new_tokens"] = _NEW_TOKENS
        if is_language_model:
            how = f"transformers generates {_NEW_TOKENS} tokens, and in older versions counts the prompt's among them"
            notes.append(f"no length is given: {how}")
    full = DEFAULTS | given
    options = {"beam": full["num_beams"], "lenpen": float(full["length_penalty"])}
    notes += _add_hypotheses(options, full)
    forced_end = int(given.get("forced_eos_token_id") is not None)
    start = 1  # the symbol that decoding starts from
    longest, uncounted = ("max_new_tokens", 0) if "max_new_tokens" in given else ("max_length", start)
    if given[longest] <= uncounted:
        notes.append(f"{longest} {given[longest]} is left out: it has no place for a word")
    else:
        options["max_len_b"] = given[longest] - uncounted - forced_end
        if is_language_model and longest == "max_length":
            notes.append(_with_prompt(longest, given[longest], "--max-len-b"))
    if "min_new_tokens" in given:
        options["min_len"] = given["min_new_tokens"]
    elif not is_language_model or not full["min_length"]:
        options["min_len"] = max(0, full["min_length"] - start)
    else:
        notes.append(_with_prompt("min_length", full["min_length"], "--min-len"))
    most = options.get("max_len_b", _LONGEST)
    if options.get("min_len", 0) > most:
        notes.append(f"the minimum length {options.pop('min_len')} is left out: it is above the maximum, {most}")
    if full["no_repeat_ngram_size"]:
        options["no_repeat_ngram_size"] = full["no_repeat_ngram_size"]
    if full["do_sample"]:
        options["sampling"] = True
        if full["top_p"] < 1:
            options["sampling_topp"] = full["top_p"]
        elif full["top_k"]:
            options["sampling_topk"] = full["top_k"]
        if full["temperature"] != 1:
            options["temperature"] = full["temperature"]
    elif full["num_beams"] > 1 and full["early_stopping"] is not True:
        options["early_stopping"] = _RULES[full["early_stopping"]]
    if full["do_sample"] and full["top_p"] < 1 and full["top_k"]:
        by_default = "" if "top_k" in given else ", transformers' default,"
        notes.append(f"top_k {full['top_k']}{by_default} is left out: fairseq samples by top_p or by top_k")
    for name, nothing in (_ELSEWHERE | (_ELSEWHERE_IN_SAMPLING if full["do_sample"] else {})).items():
        if given.get(name, nothing) != nothing:
            notes.append(f"{name} {shown(given[name])} is left out: fairseq has no such option")
    return options, notes


def _drop_impossible_numbers(settings: dict) -> list[str]:
    """Drop impossible numbers, except those of sampling if nothing is sampled. Returns notes on them."""
    notes = []
    for name, option in _NUMBERS.items():
        value = settings.get(name, 1.0)
        if name in _SAMPLING and not settings.get("do_sample"):
            continue
        reason = None
        if not abs(value) <= sys.float_info.max:
            reason = "it is not a finite number"
        elif name in _SAMPLING and value <= 0:
            reason = "it is not above 0"
        elif not is_possible(option, value):
            reason = f"it is not {possible_values(option)}"
        if reason is not None:
            notes.append(f"{name} {settings.pop(name)} is left out: {reason}")
    return notes


def _add_hypotheses(options: dict, settings: dict) -> list[str]:
    """Add the number of hypotheses to the options. Returns notes on settings that fairseq does not have."""
    beams, wanted = settings["num_beams"], settings.get("num_return_sequences", 1)
    groups, notes = settings.get("num_beam_groups", 1), []
    if settings["do_sample"]:
        options["beam"] = wanted  # fairseq's samples are the hypotheses
        if beams > 1:
            notes.append(f"num_beams {beams} is left out: fairseq's samples are drawn without a beam search")
    elif wanted > beams:
        notes.append(f"num_return_sequences {wanted} is left out: it is above num_beams {beams}")
        wanted = 1
    if wanted > 1:
        options["nbest"] = wanted
    if groups > 1:
        notes.append(
            f"num_beam_groups {groups} with diversity_penalty {shown(settings.get('diversity_penalty', 0.0))} "
            "is left out: transformers lowers a word by the groups that have chosen it at the same step, fairseq also "
            "by what two groups have had in common before"
        )
    return notes


def _with_prompt(name: str, value: int, option: str) -> str:
    return f"{name} {value} counts the tokens of the prompt, {option} does not: give it {value} less that many"


def are_default(options) -> bool:
    """Whether options, as for `hugging_face_settings`, are the defaults of fairseq-generate."""
    defaults = vars(GenerationConfig())
    return all(options.get(name, value) == value for name, value in defaults.items() if name != "_name")


def _settings_of_rule(rule: str) -> bool | str:
    return next(setting for setting, name in _RULES.items() if name == rule)


def hugging_face_settings(
    options: dict, is_language_model: bool, positions: int, forces_end: bool = True
) -> tuple[dict, list[str]]:
    """generation_config.json for fairseq's options, without the special symbols, and notes on options it cannot have.

    Args:
        options: of fairseq-generate, by their names in its configuration.
        is_language_model: a model without an encoder. The lengths are then those of the continuation.
        positions: the most tokens that the model reads.
        forces_end: the last token of max_length is the end symbol (forced_eos_token_id).
    """
    settings = {
        "num_beams": options["beam"],
        "early_stopping": options["beam"] > 1 and _settings_of_rule(options.get("early_stopping", FIRST)),
        "length_penalty": float(options["lenpen"]) if options["beam"] > 1 else 1.0,
    }
    if options.get("nbest", 1) > 1:
        settings["num_return_sequences"] = options["nbest"]
    if options["no_repeat_ngram_size"]:
        settings["no_repeat_ngram_size"] = options["no_repeat_ngram_size"]
    if is_language_model:
        settings |= {"max_new_tokens": options["max_len_b"], "min_new_tokens": options["min_len"]}
    else:
        longest = min(options["max_len_b"], positions - 1)
        shortest = min(options["min_len"], longest)
        settings |= {"max_length": longest + 1 + forces_end, "min_length": shortest + 1}
    notes = [
        f"{as_option(name)} {options[name]} is left out: transformers has no such option"
        for name, nothing in _OURS_ALONE.items()
        if (options.get(name, nothing) or nothing) != nothing
    ]
    if options.get("diverse_beam_groups", -1) > 1:
        groups, strength = options["diverse_beam_groups"], options["diverse_beam_strength"]
        notes.append(
            f"--diverse-beam-groups {groups} with --diverse-beam-strength {strength} is left out: fairseq lowers a "
            "word also by what two groups have had in common before, transformers by the same step alone"
        )
    return settings, notes
