"""From a folder of Hugging Face's to one of fairseq's, and from a fairseq model to a folder of Hugging Face's."""

from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path

import torch
from fairseq.data import Dictionary
from torch import Tensor

from elseq.errors import UserError
from elseq.files import read_json
from elseq.interop.checkpoints import make_checkpoint
from elseq.interop.hugging_face import folders, generation, options, vocabulary
from elseq.interop.hugging_face.families import FAMILIES, Family
from elseq.interop.hugging_face.rows import (
    ADDED_ROWS,
    OUTPUT_BIAS,
    are_added_rows,
    is_steady,
    take_rows,
    unused_bias,
    unused_row,
)
from elseq.interop.hugging_face.tokenizer import CLASSES, Affixes, RobertaClass
from elseq.model_files import (
    DICTIONARIES,
    ENCODER_JSON,
    FAIRSEQ_SYMBOLS,
    MERGES_TXT,
    SENTENCEPIECE_BPE_MODEL,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    VOCAB_BPE,
    VOCAB_JSON,
)
from elseq.models.families import is_language_model
from elseq.models.stock import as_stock, elseq_configuration, why_not_stock
from elseq.numerics import check_finite
from elseq.subwords.pieces import PiecesWithIds
from elseq.subwords.tokens import Tokens

# What families have and fairseq does not.
PROGRAM = "transformers"
FEATURES = ("output_bias", "norm_before_positions", "activation_fn")
NEW_SYMBOLS = "fairseq's symbols <s>, <pad> and <unk>, which the model does not have,"
_TOKENIZERS = (TOKENIZER_JSON, TOKENIZER_CONFIG, f"*{VOCAB_JSON}", SENTENCEPIECE_BPE_MODEL, "*.spm")
WRITTEN = ("config.json", "generation_config.json", "model.safetensors", MERGES_TXT, *_TOKENIZERS)
WRITTEN_FOR_FAIRSEQ = ("model.pt", DICTIONARIES, ENCODER_JSON, VOCAB_BPE, FAIRSEQ_SYMBOLS, *_TOKENIZERS)


@dataclass
class ForFairseq:
    """A model converted to fairseq: the checkpoint, the content of the files beside it, arguments of commands besides
    the name of the task, options of generation, and notes for the user."""

    checkpoint: dict
    files: dict[str, str | bytes]
    task_arguments: list[str]
    generation: dict
    notes: list[str] = field(default_factory=list)


@dataclass
class ForHuggingFace:
    """A model converted to Hugging Face: config.json, generation_config.json, the tensors, the rows in fairseq of its
    words and of its source words, the content of the tokenizer's files, and notes for the user."""

    config: dict
    settings: dict
    tensors: dict[str, Tensor]
    order: list[int]
    source_order: list[int]
    files: dict[str, str | bytes]
    notes: list[str] = field(default_factory=list)


def from_hugging_face(folder: Path, data: Path | None = None) -> ForFairseq:
    """
    Args:
        folder: of a model of one of the families, as transformers saves it.
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
    config = options.complete(given, family.defaults, family.aliases)
    model_options = family.fairseq_options(config)
    tensors = family.normalize(folders.read_tensors(folder), config)
    layers = {prefix: config[name] for name, prefix in family.layers.items()}
    said = {prefix: options.said(given, config, name, family.aliases) for name, prefix in family.layers.items()}
    folders.check_layers(folder, tensors, layers, said)
    left_out = folders.check_tensors(folder, tensors, family.shapes(config))
    notes = options.what_is_left_out(config, tensors, left_out) + family.notes(config)
    words = family.read_vocabulary(data, config)
    if words is None:
        raise UserError(
            f"{data} has no tokenizer (vocab.json with merges.txt, tokenizer.json, or the sentencepiece model of its "
            "family): name its folder, or one with fairseq's dict.txt, encoder.json and vocab.bpe, by --data; of "
            "another kind of files (vocab.txt) the save_pretrained of transformers makes a tokenizer.json"
        )
    add_bos_token = family.check_vocabulary(words, config, data)
    notes += words.notes

    configuration = elseq_configuration(Namespace(arch=family.architecture, **model_options))
    if why_not_stock(configuration) is None:
        configuration = as_stock(configuration)
    orders = family.fairseq_orders(words, config)
    model = family.to_fairseq(tensors, config)
    norm = [model[f"{family.last_norm(configuration)}.{part}"] for part in ("weight", "bias")]
    notes += _reorder(model, orders, *norm)
    files, without_row = family.fairseq_files(words, orders)
    notes += without_row
    file, settings = folders.read_settings(folder, given)
    settings = generation.without_padding(settings, config.get("pad_token_id"))
    generation.check_settings(settings, file)
    notes += generation.of_tasks(given, settings)
    symbols = family.fixed_symbols(config, words), family.forced_symbols(config)
    settings, not_forced = generation.special_symbols(settings, file, *symbols)
    search, what_it_lacks = generation.fairseq_options(settings, family.is_language_model)
    cfg = family.checkpoint_configuration(configuration, settings, words, add_bos_token)
    cfg["generation"] |= search
    arguments = family.task_arguments(cfg["task"])
    return ForFairseq(make_checkpoint(cfg, model), files, arguments, search, notes + not_forced + what_it_lacks)


def _reorder(model: dict[str, Tensor], orders: dict[str, list], weight: Tensor, bias: Tensor) -> list[str]:
    """Put the embeddings in fairseq's order. Returns notes on symbols of fairseq that the model does not have."""
    unused, notes = None, []
    if OUTPUT_BIAS in model:
        unused = torch.zeros_like(weight)
        order = next(order for beginning, order in orders.items() if OUTPUT_BIAS.startswith(beginning))
        model[OUTPUT_BIAS] = take_rows(model[OUTPUT_BIAS], order, unused_bias())
    elif any(None in order for order in orders.values()):
        unused = unused_row(weight, bias)
        if unused is None:
            notes.append(f"{NEW_SYMBOLS} take part in its probabilities: its last layer norm is as before training")
            unused = torch.zeros_like(weight)
        elif not is_steady(unused, weight, bias, torch.bfloat16):
            notes.append(f"{NEW_SYMBOLS} may take part in its probabilities in half precision: decode in float32")
    done: dict[tuple[int, int], Tensor] = {}  # the same tensor under several names stays one
    for name, tensor in model.items():
        if name.endswith(("embed_tokens.weight", "output_projection.weight")):
            order = next(order for beginning, order in orders.items() if name.startswith(beginning))
            key = id(tensor), id(order)
            if key not in done:
                done[key] = take_rows(tensor, order, unused)
            model[name] = done[key]
    return notes


def to_hugging_face(
    tensors: dict[str, Tensor],
    cfg,
    task,
    tokens: Tokens | PiecesWithIds | None = None,
    kind: str | None = None,
    settings_of=None,
) -> ForHuggingFace:
    """
    Args:
        tensors: the state_dict of a fairseq or elseq model.
        cfg: the whole configuration of its checkpoint.
        task: its task, with the dictionaries.
        tokens: its tokenizer, if it has one.
        kind: name of the family. Default: the first that the model can be of.
        settings_of: the whole configuration of the checkpoint whose settings of generation and first word of targets
            are written. Default: `cfg`.

    Raises:
        UserError: a model that Hugging Face's library does not have, or one with NaN or infinity.
    """
    check_finite(tensors, "the model")
    configuration = elseq_configuration(cfg.model)
    as_stock(configuration, FEATURES, PROGRAM)
    source, target = task.source_dictionary, task.target_dictionary
    theirs = tokens if tokens is not None and tokens.path is not None else None  # else fairseq's own files
    family, config = _family_of(configuration, source == target, cfg.task, theirs, kind)
    told = cfg if settings_of is None else settings_of
    if is_language_model(told.model) != family.is_language_model:
        kind = "no language model" if family.is_language_model else "a language model"
        raise UserError(f"is {kind}, unlike the model: give the checkpoint that its training began with", "--settings")
    embedding = tensors["decoder.embed_tokens.weight"]
    words = _words(target, len(embedding))
    order = source_order = _order(family, words, tokens and tokens.of_targets, embedding)
    if source != target:
        read = tensors["encoder.embed_tokens.weight"]
        source_order = _order(family, _words(source, len(read)), tokens, read)
        _check_special(source_order, order)
    has_start = not family.is_language_model or configuration["add_bos_token"] or (theirs and "<s>" in theirs.ids)
    special = _special(order)
    start = special["<s>"] if has_start else special["</s>"]  # None in families without
    symbols = {"bos_token_id": start, "eos_token_id": special["</s>"], "pad_token_id": special["<pad>"]}
    dtype = str(embedding.dtype).removeprefix("torch.")
    config |= {"vocab_size": len(source_order), **symbols, "torch_dtype": dtype}
    if source_order is not order:
        config["decoder_vocab_size"] = len(order)
    symbols |= family.decoding_symbols(symbols, getattr(task, "force_bos", False))
    target_start, notes = _target_start(told, cfg, target)
    decoder_start = getattr(cfg.task, "decoder_start", None)
    if decoder_start == "</s>":  # as without the option
        decoder_start = None
    starts = {"forced_bos_token_id": target_start, "decoder_start_token_id": decoder_start}
    symbols |= {name: order.index(_row(target, word)) for name, word in starts.items() if word}
    config |= {name: row for name, row in symbols.items() if name.endswith("_token_id")}
    tensors = {name: _in_order(name, tensor, source_order, order) for name, tensor in tensors.items()}
    config |= family.options_of_tensors(tensors, config)
    renamed = family.from_fairseq(tensors, config)
    search, without_equal = generation.hugging_face_settings(
        told.generation, family.is_language_model, config[family.positions], "forced_eos_token_id" in symbols
    )
    notes += without_equal
    if generation.are_default(told.generation):
        whose, given = ("the checkpoint", "--settings") if settings_of is None else ("that of --settings", "another")
        notes.append(f"{whose} records no settings of generation, and fairseq's are written: give {given}")
    notes += family.notes_of_tensors(renamed)
    files = {}
    if theirs is not None:
        files = family.tokenizer_files(theirs, words, cfg.task)
    elif tokens is not None and source_order is order:
        files = _gpt2_files(family, config, task, tokens, words, order)
    else:
        why = "the model's folder has no tokenizer.json, nor encoder.json with vocab.bpe"
        if tokens is not None:
            why = "transformers has none of GPT-2's BPE with a vocabulary for each side"
        notes.append(f"no tokenizer was written: {why}")
    symbols = {name: row for name, row in symbols.items() if row is not None}
    return ForHuggingFace(config, {**symbols, **search}, renamed, order, source_order, files, notes)


def _gpt2_files(
    family: Family, config: dict, task, tokens: Tokens, words: list[str], order: list[int]
) -> dict[str, str | bytes]:
    """The content of the files of a tokenizer that is GPT-2's BPE in fairseq's files.

    Args:
        config: of the written model.
        task, tokens: of `to_hugging_face`.
        words: of each row of fairseq.
        order: the rows in Hugging Face's order.
    """
    start, end = config["bos_token_id"], config["eos_token_id"]
    names = [words[row] for row in order]
    if len(order) < len(words):
        names[end] = str(end)
    pieces, positions = vocabulary.piece_names(names, tokens), config[family.positions]
    parts = pieces, vocabulary.merges_of(tokens), family.tokenizer_config(pieces, _special(order), positions)
    if family.is_language_model:
        return vocabulary.hugging_face_files(*parts)
    affixes = Affixes(*([order.index(row) for row in rows] for rows in task.symbols_around_source))
    # transformers makes a BART's of vocab.json and merges.txt, with <s> and </s> around a text
    if type(CLASSES[family.tokenizer_class]) is RobertaClass and affixes == ([start], [end]):
        return vocabulary.hugging_face_files(*parts)
    return vocabulary.followed_files(*parts, affixes)


def _family_of(
    configuration: dict, is_joined: bool, task, tokens: Tokens | PiecesWithIds | None, kind: str | None
) -> tuple[Family, dict]:
    """The first family that a model can be, and its config.json, as `Family.hugging_face_options` makes it.

    Args:
        task, tokens: see `Family.check_task`.
        kind: name of the only family to ask.

    Raises:
        UserError: it can be of none; the reason is that of the first, or of the first with such a model.
    """
    is_language_model = configuration["_name"] == "elseq_transformer_lm"
    if kind is not None and (kind not in FAMILIES or FAMILIES[kind].is_language_model != is_language_model):
        known = [name for name, family in FAMILIES.items() if family.is_language_model == is_language_model]
        raise UserError(f"{kind} is no family of such models: give one of {', '.join(known)}", "--family")
    of_model, of_task = [], []
    for family in FAMILIES.values() if kind is None else [FAMILIES[kind]]:
        if family.is_language_model != is_language_model:
            continue
        reasons = of_model
        try:
            config = family.hugging_face_options(configuration, is_joined)
            reasons = of_task
            family.check_task(task, tokens)
            return family, config
        except UserError as error:
            reasons.append(error)
    raise (of_task or of_model)[0]


def _target_start(told, cfg, target: Dictionary) -> tuple[str | None, list[str]]:
    """The word with which generated targets begin, or None; and notes if it is left out.

    Args:
        told: the whole configuration of the checkpoint whose settings of generation are written.
        cfg: that of the model's checkpoint.

    Raises:
        UserError: the checkpoint of the settings is of another dictionary.
    """
    word = getattr(told.task, "target_start", None)
    if told is cfg or word is None:
        return word, []
    if word not in target:
        raise UserError(
            f"begins targets with {word!r}, which the dictionary does not have: give the checkpoint that the training "
            "began with",
            "--settings",
        )
    source, other = (getattr(each.task, "source_start", None) for each in (cfg, told))
    if source in (None, other):
        return word, []
    return None, [
        f"that targets begin with {word} is left out: in --settings it goes with sources that begin with "
        f"{other or 'no symbol'}, and the model's begin with {source}"
    ]


def _row(dictionary: Dictionary, word: str) -> int:
    if word not in dictionary:
        raise UserError(f"the dictionary does not have {word!r}, with which its texts begin: name its folder by --data")
    return dictionary.index(word)


def _words(dictionary: Dictionary, rows: int) -> list[str]:
    words = vocabulary.with_mask(dictionary.symbols, rows)
    if len(words) != rows:
        raise UserError(
            f"the dictionary has {len(words)} words, and the model {rows}: name the model's folder by --data"
        )
    return words


def _order(family: Family, words: list[str], tokens: Tokens | PiecesWithIds | None, embedding: Tensor) -> list[int]:
    """The rows in Hugging Face's order."""
    if tokens is None or tokens.path is None:
        return family.order(words, tokens, embedding)
    return _order_of_tokenizer(words, tokens, embedding)


def _special(order: list[int]) -> dict[str, int | None]:
    """The places of fairseq's special symbols in an order."""
    return {name: order.index(row) if row in order else None for row, name in enumerate(vocabulary.SPECIAL_SYMBOLS)}


def _check_special(source_order: list[int], order: list[int]) -> None:
    """
    Raises:
        UserError: a symbol has another place in sources than in targets.
    """
    of_sources, of_targets = _special(source_order), _special(order)
    if any(of_sources[name] != of_targets[name] for name in ("<pad>", "</s>")):
        raise UserError(
            "<pad> or </s> has one number in sources and another in targets, and in Hugging Face's models it has one: "
            "give the folder of the model's own tokenizer by --data"
        )


def _in_order(name: str, tensor: Tensor, source_order: list[int], order: list[int]) -> Tensor:
    """A tensor. If its rows are words, they are in Hugging Face's order."""
    if not name.endswith(("embed_tokens.weight", "output_projection.weight", OUTPUT_BIAS)):
        return tensor
    rows = source_order if name.startswith("encoder.") else order
    most = max(len(rows), len(tensor))  # a loaded output layer may lack the row of <mask>
    return tensor if rows == list(range(most)) else tensor[rows]


def _order_of_tokenizer(words: list[str], tokens: Tokens | PiecesWithIds, embedding: Tensor) -> list[int]:
    """The rows in the order of the tokenizer's ids; rows without a token in between; see `rows.fairseq_order`.

    Raises:
        UserError: the dictionary lacks tokens, so that the ids of others cannot be kept.
    """
    rows = {word: row for row, word in enumerate(words)}
    order = {number: rows[word] for number, word in tokens.words.items() if word in rows}
    known = set(order.values())
    others = [row for row in range(len(words)) if row not in known]
    added = [row for row in ADDED_ROWS if row in others]
    if are_added_rows(embedding, added):
        others = [row for row in others if row not in added]
    count = len(order) + len(others)
    if max(order, default=0) >= count:
        lacking = next(number for number in range(count) if number not in order)
        raise UserError(
            f"the dictionary lacks tokens of {tokens.path}, such as {tokens.token(lacking)!r}, and "
            "without them the others' numbers cannot be kept: give the folder of the model's own dictionary by --data"
        )
    rest = iter(others)
    return [order[number] if number in order else next(rest) for number in range(count)]
