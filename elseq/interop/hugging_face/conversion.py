"""From a folder of Hugging Face's to one of fairseq's, and from a fairseq model to a folder of Hugging Face's."""

from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path

import torch
from fairseq.data import Dictionary
from torch import Tensor

from elseq.errors import UserError
from elseq.files import read_json
from elseq.interop.checkpoints import make_checkpoint, training_configuration
from elseq.interop.hugging_face import bart, folders, generation, gpt2, options, vocabulary
from elseq.interop.hugging_face.rows import (
    ADDED,
    are_added_rows,
    fairseq_order,
    is_steady,
    take_rows,
    unused_row,
)
from elseq.models.stock import as_stock, elseq_configuration
from elseq.subwords.tokens import Tokens

FAMILIES = {"bart": bart, "gpt2": gpt2}
LANGUAGES = ("source", "target")
NEW_SYMBOLS = "fairseq's symbols <s>, <pad> and <unk>, which the model does not have,"
WRITTEN = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
)
WRITTEN_FOR_FAIRSEQ = (
    "model.pt",
    "dict*.txt",
    "encoder.json",
    "vocab.bpe",
    "tokenizer.json",
    "tokenizer_config.json",
    "fairseq_symbols.json",
)


@dataclass
class ForFairseq:
    """A converted model: the checkpoint, the text of the files beside it, and what its user is told."""

    checkpoint: dict
    files: dict[str, str]
    generation: dict
    notes: list[str] = field(default_factory=list)


@dataclass
class ForHuggingFace:
    """A converted model: config.json, generation_config.json, the tensors, the text of the tokenizer's files, and what
    its user is told."""

    config: dict
    settings: dict
    tensors: dict[str, Tensor]
    files: dict[str, str]
    notes: list[str] = field(default_factory=list)


def from_hugging_face(folder: Path, data: Path | None = None) -> ForFairseq:
    """
    Args:
        folder: of a BART or a GPT-2, as transformers saves it.
        data: folder of the tokenizer, of Hugging Face or of fairseq. Default: the model's own.

    Raises:
        UserError: a model of another family, or one with a feature that fairseq's does not have, or a file that is
            missing or cannot be used.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give that of a model, with its config.json")
    try:
        return _from_hugging_face(folder, data or folder)
    except UserError as error:
        if str(folder) in str(error):
            raise
        raise UserError(f"{folder} cannot be converted: {error}") from error


def _from_hugging_face(folder: Path, data: Path) -> ForFairseq:
    given = read_json(folder / "config.json")
    kind = given.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        kinds = " or ".join(FAMILIES)
        raise UserError(f"{folder} is of the model_type {options.shown(kind)}: only {kinds} can be converted")
    config = options.complete(given, family.DEFAULTS, family.ALIASES)
    model_options = family.fairseq_options(config)
    tensors = family.normalize(folders.read_tensors(folder), config)
    layers = {prefix: config[name] for name, prefix in family.LAYERS.items()}
    said = {prefix: options.said(given, config, name, family.ALIASES) for name, prefix in family.LAYERS.items()}
    folders.check_layers(folder, tensors, layers, said)
    left_out = folders.check_tensors(folder, tensors, family.shapes(config))
    notes = options.what_is_left_out(config, tensors, left_out)
    words = vocabulary.read_vocabulary(data, family is bart, config["vocab_size"])
    if words is None:
        raise UserError(
            f"{data} has no tokenizer (vocab.json with merges.txt, or tokenizer.json): name its folder, or one with "
            "fairseq's dict.txt, encoder.json and vocab.bpe, by --data; of another kind of files (vocab.txt, "
            "spiece.model) the save_pretrained of transformers makes a tokenizer.json"
        )
    if words.is_byte_level:
        check = vocabulary.check_symbols if family is bart else vocabulary.check_end
        check(words, config, data)
    add_bos_token = vocabulary.check_surroundings(words, config, data, family is gpt2)
    notes += words.notes

    configuration = as_stock(elseq_configuration(Namespace(arch=family.ARCHITECTURE, **model_options)))
    order = fairseq_order(words, config, config["vocab_size"])
    model = _in_fairseq_order(family, family.to_fairseq(tensors, config), order, configuration, notes)
    files = _fairseq_files(family, words, order, notes)
    file, settings = folders.read_settings(folder, given)
    generation.check_settings(settings, file)
    notes += generation.of_tasks(given, settings)
    settings, not_forced = generation.special_symbols(settings, file, config, family is gpt2)
    search, what_it_lacks = generation.fairseq_options(settings, family is gpt2)
    cfg = _whole_configuration(family, configuration, settings, search, add_bos_token)
    return ForFairseq(make_checkpoint(cfg, model), files, search, notes + not_forced + what_it_lacks)


def _in_fairseq_order(family, model: dict[str, Tensor], order: list, configuration: dict, notes: list[str]) -> dict:
    unused = None
    if None in order:
        norm = [model[f"{family.last_norm(configuration)}.{part}"] for part in ("weight", "bias")]
        unused = unused_row(*norm)
        if unused is None:
            notes.append(f"{NEW_SYMBOLS} take part in its probabilities: its last layer norm is as before training")
            unused = torch.zeros_like(norm[0])
        elif not is_steady(unused, *norm, torch.bfloat16):
            notes.append(f"{NEW_SYMBOLS} may take part in its probabilities in half precision: decode in float32")
    done: dict[int, Tensor] = {}  # the same tensor under several names stays one
    for name, tensor in model.items():
        if name.endswith(("embed_tokens.weight", "output_projection.weight")):
            if id(tensor) not in done:
                done[id(tensor)] = take_rows(tensor, order, unused)
            model[name] = done[id(tensor)]
    return model


def _fairseq_files(family, words: vocabulary.Vocabulary, order: list, notes: list[str]) -> dict[str, str]:
    rows = sum(row is not None for row in order)
    known = sum(row < rows for row in words.rows.values())
    if known < rows:
        notes.append(f"{rows - known} rows of the embedding are of no word in the vocabulary")
    if known < len(words.rows):
        notes.append(f"{len(words.rows) - known} words of the vocabulary have no row in the embedding")
    languages = LANGUAGES if family is bart else ()
    places = ["dict.txt", *(f"dict.{language}.txt" for language in languages)]
    return vocabulary.fairseq_files(words, order, family is gpt2, *places)


def _whole_configuration(family, configuration: dict, settings: dict, search: dict, add_bos_token: bool) -> dict:
    if family is gpt2:
        positions = configuration["max_target_positions"]
        arguments = [f"--tokens-per-sample={positions}", f"--max-target-positions={positions}"]
        arguments += ["--sample-break-mode=eos"]  # a line is a text
        arguments += ["--add-bos-token"] if add_bos_token else []
    else:
        arguments = [f"--source-lang={LANGUAGES[0]}", f"--target-lang={LANGUAGES[1]}"]
    cfg = training_configuration(configuration, family.TASK, *arguments)
    if family is bart:  # elseq's task does it by default
        cfg["task"]["force_bos"] = "yes" if settings.get("forced_bos_token_id") is not None else "no"
    cfg["generation"] |= search
    return cfg


def to_hugging_face(
    tensors: dict[str, Tensor],
    cfg,
    source: Dictionary,
    target: Dictionary,
    forced_start: bool = False,
    tokens: Tokens | None = None,
) -> ForHuggingFace:
    """
    Args:
        tensors: of a fairseq or elseq model by their names, as its state_dict has them.
        cfg: the whole configuration of its checkpoint.
        source, target: its dictionaries; for a language model the same.
        forced_start: whether generation begins with <s>.
        tokens: its tokenizer, if it has one.

    Raises:
        UserError: a model that Hugging Face's library does not have, or one with a number that is none.
    """
    folders.check_finite(tensors, "the model")
    configuration = elseq_configuration(cfg.model)
    as_stock(configuration)
    if source != target:
        raise UserError("source and target have dictionaries of their own, and in Hugging Face's BART they share one")
    is_language_model = configuration["_name"] == "elseq_transformer_lm"
    family = gpt2 if is_language_model else bart
    config = family.hugging_face_options(configuration)
    embedding = tensors["decoder.embed_tokens.weight"]
    names = _words(target, len(embedding))
    theirs = tokens if tokens is not None and tokens.path is not None else None  # else fairseq's own files
    order = list(range(len(embedding)))
    if theirs is not None:
        order = _order_of_tokenizer(names, theirs, embedding)
    elif is_language_model and are_added_rows(embedding, ADDED):
        order = _order_of_gpt2(names, tokens)
    end = order.index(target.eos())
    special = {name: order.index(row) if row in order else None for row, name in enumerate(vocabulary.SPECIAL)}
    has_start = not is_language_model or configuration["add_bos_token"] or (theirs and "<s>" in theirs.numbers)
    start = special["<s>"] if has_start else end
    symbols = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": special["<pad>"]}
    config |= {"vocab_size": len(order), **symbols, "torch_dtype": str(embedding.dtype).removeprefix("torch.")}
    if order != list(range(len(embedding))):
        of_words = ("embed_tokens.weight", "output_projection.weight")
        tensors = {name: it[order] if name.endswith(of_words) else it for name, it in tensors.items()}
    if is_language_model:
        is_tied = configuration["share_decoder_input_output_embed"]
        output = None if is_tied else tensors["decoder.output_projection.weight"]
        renamed = gpt2.from_fairseq(tensors, tensors["decoder.embed_tokens.weight"], output)
    else:
        symbols |= {"decoder_start_token_id": end, "forced_eos_token_id": end}
        symbols |= {"forced_bos_token_id": start} if forced_start else {}
        config |= symbols
        renamed = bart.from_fairseq(tensors, config)
    positions = config["n_positions" if is_language_model else "max_position_embeddings"]
    settings, notes = generation.hugging_face_settings(cfg.generation, is_language_model, positions)
    files = {}
    if theirs is not None:
        files = vocabulary.tokenizer_files(theirs)
    elif tokens is not None:
        words = [names[row] for row in order]
        if len(order) < len(names):
            words[end] = str(end)
        pieces = vocabulary.piece_names(words, tokens)
        files = vocabulary.hugging_face_files(
            pieces, vocabulary.merges_of(tokens), _tokenizer(family, pieces, special, end, positions)
        )
    symbols = {name: row for name, row in symbols.items() if row is not None}
    return ForHuggingFace(config, {**symbols, **settings}, renamed, files, notes)


def _words(dictionary: Dictionary, rows: int) -> list[str]:
    words = vocabulary.with_mask(dictionary.symbols, rows)
    if len(words) != rows:
        raise UserError(
            f"the dictionary has {len(words)} words, and the model {rows}: name the model's folder by --data"
        )
    return words


def _order_of_gpt2(words: list[str], tokens: Tokens | None) -> list[int]:
    """The rows of a GPT-2 that came from Hugging Face in their order there, in a folder without its tokenizer."""
    order = [row for row in range(len(words)) if row not in ADDED]
    end, *others = order
    numbers = {words[row] for row in others}
    missing = [number for number in range(len(order)) if str(number) not in numbers]
    place = missing[0] if tokens is not None and len(missing) == 1 else len(others)
    return [*others[:place], end, *others[place:]]


def _order_of_tokenizer(words: list[str], tokens: Tokens, embedding: Tensor) -> list[int]:
    """The rows in the order of the tokenizer's numbers; rows without a token in between; see `rows.fairseq_order`.

    Raises:
        UserError: the dictionary lacks tokens, so that the numbers of others cannot be kept.
    """
    rows = {word: row for row, word in enumerate(words)}
    order = {number: rows[word] for number, word in tokens.words.items() if word in rows}
    known = set(order.values())
    others = [row for row in range(len(words)) if row not in known]
    added = [row for row in ADDED if row in others]
    if are_added_rows(embedding, added):
        others = [row for row in others if row not in added]
    count = len(order) + len(others)
    if max(order, default=0) >= count:
        lacking = next(number for number in range(count) if number not in order)
        raise UserError(
            f"the dictionary lacks tokens of {tokens.path}, such as {tokens.tokenizer.id_to_token(lacking)!r}, and "
            "without them the others' numbers cannot be kept: give the folder of the model's own dictionary by --data"
        )
    rest = iter(others)
    return [order[number] if number in order else next(rest) for number in range(count)]


def _tokenizer(family, pieces: list[str], special: dict, end: int, positions: int) -> dict:
    tokens = {
        "bos_token": special["<s>"],
        "pad_token": special["<pad>"],
        "unk_token": special["<unk>"],
        "eos_token": end,
    }
    named = {
        name: pieces[end if row is None else row]
        for name, row in tokens.items()
        if row is not None or name != "pad_token"
    }
    if family is bart:
        named |= {"sep_token": pieces[end], "cls_token": named["bos_token"]}
        mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "normalized": False, "special": True}
        named |= {"mask_token": mask} if "<mask>" in pieces else {}
    return {"tokenizer_class": family.TOKENIZER, "model_max_length": positions, **named}
