"""A folder's tokenizer as transformers 5 loads it, from tokenizer.json, or from vocab.json with merges.txt.

tokenizer.json is followed, whatever its kind. Those of the classes of GPT-2, BART and RoBERTa, however, transformers
makes anew from the vocabulary, so that another normalizer or another cutting into words, that tokenizer.json may have,
is not theirs: such a folder is refused, since which of the two the model was trained by is not known.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors

from elseq.errors import UserError
from elseq.files import TOKENIZER, read_json
from elseq.interop.hugging_face.options import shown
from elseq.subwords.gpt2 import byte_level
from elseq.subwords.tokens import END_OF_TEXT, parse_tokenizer

CONFIG, ADDED, SPECIAL_MAP = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_BART = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_GPT2 = dict.fromkeys(("unk_token", "bos_token", "eos_token"), END_OF_TEXT)
# What the classes that transformers makes anew have where tokenizer_config.json says nothing.
_DEFAULTS = {"GPT2Tokenizer": _GPT2, "BartTokenizer": _BART, "RobertaTokenizer": _BART}
_FOLLOWED = ("PreTrainedTokenizer", "TokenizersBackend", "BertTokenizer")
# Options of a BPE model that GPT-2's has not.
_UNLIKE_GPT2 = ("ignore_merges", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
_FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")


def read_config(folder: Path) -> dict:
    """tokenizer_config.json, with what older folders have in special_tokens_map.json.

    Raises:
        UserError: a file that cannot be used.
    """
    config = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    if not config.get("extra_special_tokens") and "additional_special_tokens" in config:
        config["extra_special_tokens"] = config["additional_special_tokens"]
    if "added_tokens_decoder" not in config and (folder / SPECIAL_MAP).exists():
        config |= read_json(folder / SPECIAL_MAP)
    if config.get("split_special_tokens"):
        raise UserError(
            f"{folder / CONFIG} has split_special_tokens, with which special symbols in a text are no symbols"
        )
    return config


def read_tokenizer(folder: Path, default: str, pieces: Mapping[str, int], merges: Sequence[str]):
    """
    Args:
        folder: of the tokenizer.
        default: its class, where tokenizer_config.json tells none.
        pieces, merges: of vocab.json and merges.txt, if there is no tokenizer.json.

    Returns:
        The tokenizer, and the tokens that are nowhere in the folder: its class has them by default.

    Raises:
        UserError: files that cannot be used, or that contradict one another.
    """
    config, path = read_config(folder), folder / TOKENIZER
    kind = config.get("tokenizer_class") or default
    kind = kind.removesuffix("Fast") if isinstance(kind, str) else default
    is_made_anew = kind in _DEFAULTS
    if path.exists():
        content = read_json(path)
        tokenizer = parse_tokenizer(content, path)
        if kind == "BertTokenizer":
            _check_bert(path, content, config)
        if is_made_anew:
            _check_made_anew(path, content, kind, config)
    elif is_made_anew:
        path = folder / "vocab.json"
        tokenizer = byte_level(pieces, merges, path, bool(config.get("add_prefix_space")))
    else:
        raise UserError(
            f"{folder} has a tokenizer of the class {kind}, which {TOKENIZER} describes, and that is missing: write it "
            "by the save_pretrained of transformers"
        )
    named = (_DEFAULTS[kind] if is_made_anew else {}) | {
        name: token for name, token in config.items() if name in _NAMED or _is_special(name, token)
    }
    try:
        _add(tokenizer, [each for _, each in sorted(_added(folder, config, path).items())])
        known = set(tokenizer.get_vocab())
        _add(tokenizer, [_token(each) for each in named.values() if each is not None])
        _add(tokenizer, [_token(each) for each in _extra(config)])
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} has a token that is none ({shown(str(error))}): copy it again") from error
    if is_made_anew and not (folder / TOKENIZER).exists():
        _surround(tokenizer, kind, {name: _text(token) for name, token in named.items()}, config)
    given = {_text(token) for name, token in config.items() if name in named} | set(map(_text, _extra(config)))
    return tokenizer, set(tokenizer.get_vocab()) - known - given


def class_unlike_file(config: dict) -> str | None:
    """A class of tokenizers that transformers may make anew in a way that is not known here."""
    kind = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    return None if kind in ("", *_FOLLOWED, *_DEFAULTS) else kind


def surroundings(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What a tokenizer puts before and after a text."""
    text, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    for start in range(len(whole) - len(text) + 1):
        if whole[start : start + len(text)] == text:
            return whole[:start], whole[start + len(text) :]
    return whole, []


def _check_made_anew(path: Path, content: dict, kind: str, config: dict) -> None:
    cutting = content.get("pre_tokenizer") or {}
    model = content.get("model") or {}
    wanted = bool(config.get("add_prefix_space"))
    contradiction = None
    if content.get("normalizer"):
        contradiction = f"the normalizer {content['normalizer'].get('type')}"
    elif cutting.get("type") != "ByteLevel" or not cutting.get("use_regex", True):
        contradiction = f"the pre_tokenizer {cutting.get('type')}"
    elif bool(cutting.get("add_prefix_space")) != wanted:
        contradiction = f"add_prefix_space {not wanted}"
    else:
        contradiction = next((name for name in _UNLIKE_GPT2 if model.get(name)), None)
    if contradiction is not None:
        raise _contradiction(path, contradiction, kind)


def _check_bert(path: Path, content: dict, config: dict) -> None:
    normalizer = content.get("normalizer") or {}
    wanted = {
        "type": "BertNormalizer",
        "lowercase": config.get("do_lower_case", True),
        "strip_accents": config.get("strip_accents"),
        "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
    }
    for name, value in wanted.items():
        if normalizer.get(name) != value:
            raise _contradiction(path, f"a normalizer with {name}: {normalizer.get(name)!r}", "BertTokenizer")


def _contradiction(path: Path, contradiction: str, kind: str) -> UserError:
    return UserError(
        f"{path} has {contradiction}, which transformers does not use for a {kind}, the class in {CONFIG}: write "
        f'"tokenizer_class": "PreTrainedTokenizerFast" there, if {TOKENIZER} is right, else remove that from it'
    )


def _is_special(name: str, token) -> bool:
    """transformers takes every option of such a name for a special token."""
    return name.endswith("_token") and isinstance(token, str | dict) and not name.startswith("add_")


def _added(folder: Path, config: dict, path: Path) -> dict[int, AddedToken]:
    if "added_tokens_decoder" in config:
        decoder = config["added_tokens_decoder"]
        if not isinstance(decoder, dict) or not all(re.fullmatch("[0-9]{1,7}", number) for number in decoder):
            raise UserError(f"{folder / CONFIG} does not give each added token a number: copy it again")
        return {int(number): _token(token) for number, token in config["added_tokens_decoder"].items()}
    if not (folder / ADDED).exists():
        return {}
    special = {_text(config[name]) for name in _NAMED if config.get(name)}
    special |= set(map(_text, _listed(config.get("extra_special_tokens"))))
    return {
        number: AddedToken(token, normalized=token not in special, special=token in special)
        for token, number in read_json(folder / ADDED).items()
    }


def _extra(config: dict) -> list:
    return _listed(config.get("extra_special_tokens") or config.get("additional_special_tokens"))


def _listed(tokens: list | dict | None) -> list:
    return list(tokens.values() if isinstance(tokens, dict) else tokens or [])


def _text(token) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _token(token) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True, normalized=False)
    if not isinstance(token, dict) or not isinstance(token.get("content"), str):
        raise TypeError(token)
    flags = {name: bool(token[name]) for name in _FLAGS if name in token}
    return AddedToken(token["content"], **{"special": True, "normalized": False} | flags)


def _add(tokenizer: Tokenizer, tokens: list[AddedToken]) -> None:
    there = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    new = {token.content: token for token in tokens if token.content not in there}
    tokenizer.add_tokens(list(new.values()))


def _surround(tokenizer: Tokenizer, kind: str, named: dict, config: dict) -> None:
    if _DEFAULTS[kind] is _BART:
        ends = [(named[name], tokenizer.token_to_id(named[name])) for name in ("sep_token", "cls_token")]
        tokenizer.post_processor = processors.RobertaProcessing(*ends)
        return
    before, after = (
        [named[name]] if config.get(f"add_{name}") and named.get(name) else [] for name in ("bos_token", "eos_token")
    )
    if before or after:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join([*before, "$A", *after]),
            special_tokens=[(each, tokenizer.token_to_id(each)) for each in {*before, *after}],
        )


def is_byte_level(content: dict) -> bool:
    """Whether the pieces of a tokenizer.json are spelt in the letters of bytes and joined by merges, as GPT-2's."""
    model = content.get("model") or {}
    return model.get("type", "BPE") == "BPE" and "ByteLevel" in json.dumps(content.get("pre_tokenizer"))


def is_plain(tokenizer: Tokenizer) -> bool:
    """Whether fairseq's own GPT-2 BPE says the same, but for special symbols."""
    cutting = tokenizer.pre_tokenizer
    if tokenizer.normalizer is not None or not isinstance(cutting, pre_tokenizers.ByteLevel):
        return False
    content = json.loads(tokenizer.to_str())["model"]
    return not cutting.add_prefix_space and cutting.use_regex and not any(map(content.get, _UNLIKE_GPT2))
