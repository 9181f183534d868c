"""A folder's tokenizer as transformers 5 loads it: from tokenizer.json, vocab.json with merges.txt, or sentencepiece.

tokenizer.json is followed, whatever its kind. For the classes of GPT-2, BART and RoBERTa, however, transformers makes
the tokenizer anew from the vocabulary, without the normalizer and the pre-tokenizer of tokenizer.json. If these differ,
the folder is refused, because only the author of the model knows which of the two it was trained with.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors

from elseq.errors import UserError
from elseq.files import read_json
from elseq.interop.hugging_face.options import shown
from elseq.model_files import ADDED_TOKENS, SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG, TOKENIZER_JSON, VOCAB_JSON
from elseq.subwords.gpt2 import byte_level
from elseq.subwords.tokens import END_OF_TEXT, parse_tokenizer

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Options of a BPE model that GPT-2's has not.
_UNLIKE_GPT2 = ("ignore_merges", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
_FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")


class Affixes(NamedTuple):
    """What a tokenizer puts before and after a text: tokens, or their rows."""

    prefix: list
    suffix: list


class TokenizerClass:
    """A class of transformers' tokenizers, and how it reads a folder. By default it follows tokenizer.json."""

    tokens: Mapping[str, str | dict] = {}  # its special tokens, for those missing in tokenizer_config.json
    model_file: str | None = None  # the file of sentencepiece that it can be made of
    checks_file = True  # `contradiction` tells all that it would make otherwise

    def contradiction(self, content: dict, config: dict) -> str | None:
        """A part of tokenizer.json that the class, with tokenizer_config.json, would make in another way, in words."""
        return None

    def named(self, config: dict) -> dict:
        """The special tokens by their options in tokenizer_config.json."""
        return self.tokens | {
            name: token for name, token in config.items() if name in _NAMED or _is_special(name, token)
        }

    def make(self, folder: Path, config: dict, pieces: Mapping[str, int], merges: Sequence[str]) -> Tokenizer | None:
        """The tokenizer of a folder without tokenizer.json, or None if the class makes none.

        Args:
            config: tokenizer_config.json.
            pieces, merges: of vocab.json and merges.txt.
        """
        return None

    def unnumbered(self, config: dict) -> Sequence[str | dict]:
        """Special tokens that follow the pieces if no file gives them ids. The named ones follow them."""
        return ()

    def set_affixes(self, tokenizer: Tokenizer, named: Mapping[str, str | None], config: dict) -> None:
        """Let a tokenizer of `make` put the class's affixes on a text; `named` are its special tokens."""


class GPT2Class(TokenizerClass):
    """Made anew from the pieces and merges."""

    tokens = dict.fromkeys(("unk_token", "bos_token", "eos_token"), END_OF_TEXT)
    add_prefix_space = False  # where tokenizer_config.json says nothing

    def contradiction(self, content: dict, config: dict) -> str | None:
        cutting = content.get("pre_tokenizer") or {}
        model = content.get("model") or {}
        wanted = self._has_space_before(config)
        if content.get("normalizer"):
            return f"the normalizer {content['normalizer'].get('type')}"
        if cutting.get("type") != "ByteLevel" or not cutting.get("use_regex", True):
            return f"the pre_tokenizer {cutting.get('type')}"
        if bool(cutting.get("add_prefix_space")) != wanted:
            return f"add_prefix_space {not wanted}"
        return next((name for name in _UNLIKE_GPT2 if model.get(name)), None)

    def make(self, folder: Path, config: dict, pieces: Mapping[str, int], merges: Sequence[str]) -> Tokenizer:
        return byte_level(pieces, merges, folder / VOCAB_JSON, self._has_space_before(config))

    def _has_space_before(self, config: dict) -> bool:
        return bool(config.get("add_prefix_space", self.add_prefix_space))

    def set_affixes(self, tokenizer: Tokenizer, named: Mapping[str, str | None], config: dict) -> None:
        tokens = (
            [named[name]] if config.get(f"add_{name}") and named.get(name) else []
            for name in ("bos_token", "eos_token")
        )
        if any(affixes := Affixes(*tokens)):
            set_affixes(tokenizer, affixes)


class RobertaClass(GPT2Class):
    """GPT-2's with other symbols."""

    tokens = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "cls_token": "<s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    }

    def set_affixes(self, tokenizer: Tokenizer, named: Mapping[str, str | None], config: dict) -> None:
        ends = [(named[name], tokenizer.token_to_id(named[name])) for name in ("sep_token", "cls_token")]
        tokenizer.post_processor = processors.RobertaProcessing(*ends)


class BertClass(TokenizerClass):
    """It makes the normalizer anew."""

    def contradiction(self, content: dict, config: dict) -> str | None:
        normalizer = content.get("normalizer") or {}
        wanted = {
            "type": "BertNormalizer",
            "lowercase": config.get("do_lower_case", True),
            "strip_accents": config.get("strip_accents"),
            "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
        }
        differing = next((name for name, value in wanted.items() if normalizer.get(name) != value), None)
        return None if differing is None else f"a normalizer with {differing}: {normalizer.get(differing)!r}"


# By their names without "Fast". The modules of families add their own classes.
CLASSES: dict[str, TokenizerClass] = {
    "PreTrainedTokenizer": TokenizerClass(),
    "TokenizersBackend": TokenizerClass(),
    "BertTokenizer": BertClass(),
    "GPT2Tokenizer": GPT2Class(),
    "BartTokenizer": RobertaClass(),
    "RobertaTokenizer": RobertaClass(),
}


def read_config(folder: Path) -> dict:
    """tokenizer_config.json, with what older folders have in special_tokens_map.json.

    Raises:
        UserError: a file that cannot be used.
    """
    config = read_json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).exists() else {}
    if not config.get("extra_special_tokens") and "additional_special_tokens" in config:
        config["extra_special_tokens"] = config["additional_special_tokens"]
    if "added_tokens_decoder" not in config and (folder / SPECIAL_TOKENS_MAP).exists():
        config |= {name: _marked(token) for name, token in read_json(folder / SPECIAL_TOKENS_MAP).items()}
    if config.get("split_special_tokens"):
        raise UserError(
            f"{folder / TOKENIZER_CONFIG} has split_special_tokens, with which special symbols in a text are no symbols"
        )
    return config


def _marked(token):
    """A token of special_tokens_map.json, or a list of them, as tokenizer_config.json has it."""
    if isinstance(token, list):
        return [_marked(each) for each in token]
    return {"__type": "AddedToken", **token} if isinstance(token, dict) and "content" in token else token


def read_tokenizer(folder: Path, default: str, pieces: Mapping[str, int], merges: Sequence[str]):
    """
    Args:
        folder: of the tokenizer.
        default: its class, if tokenizer_config.json has none.
        pieces, merges: of vocab.json and merges.txt, if there is no tokenizer.json.

    Returns:
        The tokenizer, and the tokens that are not in the folder: defaults of its class.

    Raises:
        UserError: files that cannot be used, or that contradict one another.
    """
    config, path = read_config(folder), folder / TOKENIZER_JSON
    kind, made = class_of(config, default)
    if path.exists():
        content = read_json(path)
        tokenizer = parse_tokenizer(content, path)
        if (contradiction := made.contradiction(content, config)) is not None:
            raise UserError(
                f"{path} has {contradiction}, which transformers does not use for a {kind}, the class in "
                f'{TOKENIZER_CONFIG}: write "tokenizer_class": "PreTrainedTokenizerFast" there, if {TOKENIZER_JSON} is '
                "right, else remove that from it"
            )
    else:
        path = folder / VOCAB_JSON
        tokenizer = made.make(folder, config, pieces, merges)
    if tokenizer is None:
        raise UserError(
            f"{folder} has a tokenizer of the class {kind}, which {TOKENIZER_JSON} describes, and that is missing: "
            "write it by the save_pretrained of transformers"
        )
    named = made.named(config)
    with tokens_checked(folder):
        added = added_tokens(folder, config)
        unnumbered = [_token(each) for each in made.unnumbered(config)]
        _add(tokenizer, [added[number] for number in sorted(added)] or unnumbered)
        if not (folder / TOKENIZER_JSON).exists() and unnumbered:
            _check_ids(tokenizer, added, folder)
        known = set(tokenizer.get_vocab())
        _add(tokenizer, [_token(each) for each in named.values() if each is not None])
        _add(tokenizer, [_token(each) for each in extra_tokens(config)])
    if not (folder / TOKENIZER_JSON).exists():
        made.set_affixes(tokenizer, {name: text_of(token) for name, token in named.items()}, config)
    given = {text_of(token) for name, token in config.items() if name in named}
    return tokenizer, set(tokenizer.get_vocab()) - known - given - set(map(text_of, extra_tokens(config)))


def _check_ids(tokenizer: Tokenizer, added: Mapping[int, AddedToken], folder: Path) -> None:
    """
    Raises:
        UserError: a folder records another number for a token than the tokenizer that is made of its other files has.
    """
    for number, token in sorted(added.items()):
        found = tokenizer.token_to_id(token.content)
        if found != number:
            raise UserError(
                f"{folder} records the number {number} for {token.content!r}, and its sentencepiece model leads to "
                f"{found}: copy the files of one model together, or write {TOKENIZER_JSON} by the save_pretrained of "
                "transformers"
            )


@contextlib.contextmanager
def tokens_checked(folder: Path) -> Iterator[None]:
    """
    Raises:
        UserError: a token in tokenizer_config.json that is none.
    """
    try:
        yield
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / TOKENIZER_CONFIG} has a token that is none ({shown(str(error))}): copy it again"
        ) from error


def class_of(config: dict, default: str) -> tuple[str, TokenizerClass]:
    """The name of a tokenizer's class in tokenizer_config.json, or else the default, and the class."""
    kind = config.get("tokenizer_class") or default
    kind = kind.removesuffix("Fast") if isinstance(kind, str) else default
    return kind, CLASSES.get(kind, TokenizerClass())


def class_unlike_file(config: dict) -> str | None:
    """A class of tokenizers that transformers may make anew, otherwise than tokenizer.json says."""
    kind = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    return None if not kind or (kind in CLASSES and CLASSES[kind].checks_file) else kind


def set_affixes(tokenizer: Tokenizer, affixes: Affixes) -> None:
    """Let a tokenizer put these tokens before and after a text."""
    prefix, suffix = affixes
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*prefix, "$A", *suffix],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in {*prefix, *suffix}],
    )


def affixes_of(tokenizer: Tokenizer) -> Affixes:
    """The rows of the tokens that a tokenizer puts before and after a text."""
    text, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    for start in range(len(whole) - len(text) + 1):
        if whole[start : start + len(text)] == text:
            return Affixes(whole[:start], whole[start + len(text) :])
    return Affixes(whole, [])


def _is_special(name: str, token) -> bool:
    """Whether an option is a special token. transformers decides this by its name."""
    return name.endswith("_token") and isinstance(token, str | dict) and not name.startswith("add_")


def added_tokens(folder: Path, config: dict) -> dict[int, AddedToken]:
    """The tokens beside the pieces, by their ids in the files of a folder.

    Raises:
        UserError: a file that cannot be used.
    """
    if "added_tokens_decoder" in config:
        decoder = config["added_tokens_decoder"]
        if not isinstance(decoder, dict) or not all(re.fullmatch("[0-9]{1,7}", number) for number in decoder):
            raise UserError(f"{folder / TOKENIZER_CONFIG} does not give each added token a number: copy it again")
        return {int(number): _token(token) for number, token in config["added_tokens_decoder"].items()}
    if not (folder / ADDED_TOKENS).exists():
        return {}
    special = {text_of(config[name]) for name in _NAMED if config.get(name)}
    special |= set(map(text_of, _listed(config.get("extra_special_tokens"))))
    return {
        number: AddedToken(token, normalized=token not in special, special=token in special)
        for token, number in read_json(folder / ADDED_TOKENS).items()
    }


def extra_tokens(config: dict) -> list:
    """The special tokens without an option of their own."""
    # special_tokens_map.json has the old name; as in transformers, `added_tokens` does not know it yet.
    return _listed(config.get("extra_special_tokens") or config.get("additional_special_tokens"))


def _listed(tokens: list | dict | None) -> list:
    return list(tokens.values() if isinstance(tokens, dict) else tokens or [])


def text_of(token: str | dict | None) -> str | None:
    """The text of a token of tokenizer_config.json."""
    return token.get("content") if isinstance(token, dict) else token


def texts_of(tokens: Iterable) -> list[str | None]:
    """Of tokens of tokenizer_config.json.

    Raises:
        TypeError: one that is none; see `tokens_checked`.
    """
    texts = [text_of(token) for token in tokens]
    wrong = next((token for token in texts if not isinstance(token, str | None)), None)
    if wrong is not None:
        raise TypeError(wrong)
    return texts


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
