"""Blenderbot-small: BART's layers, a norm of the decoder's words before positions, and ParlAI's words and symbols.

transformers 5 has no class of the library `tokenizers` for it, and splits texts in Python. `tokenizer` makes an
equivalent tokenizer.json. Its pieces have other names: "in" inside a word and "in</w>" at its end, for "in@@" and "in".
"""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from elseq.errors import UserError
from elseq.interop.hugging_face.families.bart import LEARNED_POSITIONS, BARTFamily
from elseq.interop.hugging_face.families.blenderbot import BlenderbotFamily
from elseq.interop.hugging_face.families.family import other_affixes
from elseq.interop.hugging_face.rows import fairseq_order
from elseq.interop.hugging_face.tokenizer import (
    CLASSES,
    TokenizerClass,
    added_tokens,
    affixes_of,
    class_of,
    extra_tokens,
    read_config,
    text_of,
    texts_of,
    tokens_checked,
)
from elseq.interop.hugging_face.vocabulary import Vocabulary, config_of, merges_of, pieces_and_merges
from elseq.model_files import MERGES_TXT, TOKENIZER_JSON, VOCAB_JSON
from elseq.subwords.files import read_ids, read_text
from elseq.subwords.pieces import PiecesWithIds
from elseq.subwords.tokens import Tokens

_INSIDE, _LAST = "@@", "</w>"  # after a piece inside a word, in vocab.json; after one at its end, in merges.txt
_PUNCTUATION = "[.,!?()]"
# A capital sigma at the end of a word, as Python's str.lower finds it: Unicode, section 3.13, Final_Sigma.
_IGNORED = r"[\p{Case_Ignorable}&&[^.,!?()']]*"
_FINAL_SIGMA = rf"\p{{Cased}}{_IGNORED}\KΣ(?!{_IGNORED}\p{{Cased}})"
# What transformers replaces in a text by clean_up_tokenization_spaces, in this order.
_CLEANED = {f" {it}": it for it in ".?!,"} | {" ' ": "'"} | {f" {it}": it for it in ("n't", "'m", "'s", "'ve", "'re")}


class BlenderbotSmallClass(TokenizerClass):
    """A class for which transformers reads vocab.json and merges.txt even if there is a tokenizer.json."""

    tokens = {"bos_token": "__start__", "eos_token": "__end__", "unk_token": "__unk__", "pad_token": "__null__"}
    checks_file = False


CLASSES["BlenderbotSmallTokenizer"] = BlenderbotSmallClass()


class BlenderbotSmallFamily(BlenderbotFamily):
    name = "blenderbot-small"
    title = "Blenderbot-small"
    model_class = "BlenderbotSmallForConditionalGeneration"
    tokenizer_class = "BlenderbotSmallTokenizer"
    features = BARTFamily.features | {"do_blenderbot_90_layernorm": True}
    has_embedding_norm = True
    has_final_norms = False
    required = BARTFamily.required | {"norm_before_positions": True}
    fixed_options = LEARNED_POSITIONS | {"layernorm_embedding": True, "norm_before_positions": True}
    symbol_names = {f"{name}_id": text for name, text in BlenderbotSmallClass.tokens.items()}
    defaults = BlenderbotFamily.defaults | {
        "vocab_size": 50265,
        "max_position_embeddings": 512,
        "d_model": 512,
        "encoder_layers": 8,
        "encoder_ffn_dim": 2048,
        "encoder_attention_heads": 16,
        "decoder_layers": 8,
        "decoder_ffn_dim": 2048,
        "decoder_attention_heads": 16,
    }

    def read_vocabulary(self, folder: Path, config: dict) -> Vocabulary | None:
        """Read vocab.json and merges.txt. Without them, or with another class, read as other families do."""
        missing = [name for name in (VOCAB_JSON, MERGES_TXT) if not (folder / name).exists()]
        if len(missing) == 2 or not isinstance(_class(folder), BlenderbotSmallClass):
            return super().read_vocabulary(folder, config)
        if missing:
            instead = (
                "" if not (folder / TOKENIZER_JSON).exists() else f", or remove the other to follow {TOKENIZER_JSON}"
            )
            raise UserError(f"{folder / missing[0]}, a part of the tokenizer, is missing: copy it there{instead}")
        return read_words(folder)

    def check_vocabulary(self, words: Vocabulary, config: dict, folder: Path) -> bool:
        self.check_symbols(words, config, folder, ("bos_token_id", "pad_token_id", "eos_token_id"))
        if words.affixes not in (([], []), ([], [end := config["eos_token_id"]])):
            raise other_affixes(words, folder, f"nothing before and nothing or {end} after it (eos_token_id)")
        return False

    def fairseq_orders(self, words: Vocabulary, config: dict) -> dict[str, list[int | None]]:
        unknown = words.rows.get(text_of(words.config.get("unk_token", BlenderbotSmallClass.tokens["unk_token"])))
        nameless = replace(words, rows={})  # fairseq's names are not those of its symbols
        return {"": fairseq_order(nameless, config | {"unk_token_id": unknown}, config["vocab_size"])}

    def checkpoint_configuration(
        self, configuration: dict, settings: dict, words: Vocabulary, add_bos_token: bool
    ) -> dict:
        cfg = super().checkpoint_configuration(configuration, settings, words, add_bos_token)
        cfg["task"]["append_source_eos"] = None if words.affixes.suffix else "no"
        return cfg

    def check_task(self, task, tokens: Tokens | PiecesWithIds | None) -> None:
        ends = getattr(task, "append_source_eos", None) != "no"
        # of vocab.json and merges.txt transformers makes a tokenizer that puts nothing around a text
        is_followed = isinstance(tokens, Tokens) and not _is_of_words(tokens)
        has_end = is_followed and bool(affixes_of(tokens.tokenizer).suffix)
        if ends and not has_end:
            raise UserError(
                f"it was trained with the end symbol after sources, and Hugging Face's {self.title} reads none: train "
                "it with --append-source-eos no"
            )
        if has_end and not ends:
            raise UserError(
                f"its sources have no end symbol (--append-source-eos no), and {tokens.path} puts one there: train it "
                "without that option, or give the folder of another tokenizer by --data"
            )

    def tokenizer_files(self, tokens: Tokens | PiecesWithIds, words: list[str], task) -> dict[str, str | bytes]:
        if not _is_of_words(tokens):
            return super().tokenizer_files(tokens, words, task)
        content = json.loads(tokens.tokenizer.to_str())
        known, first = set(words), {token["content"] for token in content["added_tokens"]}
        names = {
            number: piece if piece in first else _name(piece)
            for piece, number in content["model"]["vocab"].items()
            if tokens.words[number] in known  # of a merge alone it is not
        }
        rows = {name: number for number, name in sorted(names.items())}
        return pieces_and_merges(rows, merges_of(tokens)) | config_of(tokens)


def _class(folder: Path) -> TokenizerClass:
    return class_of(read_config(folder), BlenderbotSmallFamily.tokenizer_class)[1]


def _is_of_words(tokens: Tokens | PiecesWithIds) -> bool:
    """Whether a converted tokenizer is one that transformers makes of vocab.json and merges.txt."""
    return (
        isinstance(tokens, Tokens)
        and isinstance(_class(tokens.path.parent), BlenderbotSmallClass)
        and json.loads(tokens.tokenizer.to_str())["model"].get("end_of_word_suffix") == _LAST
    )


def read_words(folder: Path) -> Vocabulary:
    """Of vocab.json, merges.txt and tokenizer_config.json, by the ids that transformers gives.

    Raises:
        UserError: a file that cannot be used.
    """
    config, ids, merges = read_config(folder), read_ids(folder / VOCAB_JSON), _read_merges(folder / MERGES_TXT)
    with tokens_checked(folder):
        added = added_tokens(folder, config)
        special = texts_of([*_class(folder).named(config).values(), *extra_tokens(config)])
        # found in a text as it is, whatever it says of normalized
        first = {token.content: _as_it_is(token) for token in added.values()}
    rows = ids | {token.content: row for row, token in added.items()}
    for text in filter(None, dict.fromkeys(special)):
        rows.setdefault(text, len(rows))
        first.setdefault(text, AddedToken(text, special=True, normalized=False))
    if len(set(rows.values())) < len(rows):
        raise UserError(f"{folder} has two tokens of the same number: copy its tokenizer again")
    unknown = text_of(config.get("unk_token", BlenderbotSmallClass.tokens["unk_token"]))
    made = tokenizer(rows, merges, list(first.values()), unknown, bool(config.get("clean_up_tokenization_spaces")))
    if made is None:
        raise UserError(f"{folder / VOCAB_JSON} has two pieces that are spelt alike: copy it again")
    known = set(rows.values())
    found = {piece: number for piece, number in made.get_vocab().items() if number in known}
    return Vocabulary(found, [], tokenizer=made, config=config)


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """The merges as transformers reads them: without the first line, and without text after the last line end."""
    merges = [tuple(line.split()) for line in read_text(path).split("\n")[1:-1] if line.strip()]
    wrong = next((merge for merge in merges if len(merge) != 2), None)
    if wrong is not None:
        raise UserError(f"{path} has the line {' '.join(wrong)[:60]!r}, which is no pair of pieces: copy it again")
    return list(reversed(dict.fromkeys(reversed(merges))))  # of a pair that is there twice, the later place counts


def _as_it_is(token: AddedToken) -> AddedToken:
    flags = {name: getattr(token, name) for name in ("lstrip", "rstrip", "single_word", "special")}
    return AddedToken(token.content, normalized=False, **flags)


def tokenizer(
    rows: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    first: Sequence[AddedToken],
    unknown: str,
    cleans_spaces: bool = False,
) -> Tokenizer | None:
    """transformers' BlenderbotSmallTokenizer as a tokenizer of the library; None if two pieces get the same spelling.

    Args:
        rows: of the pieces in the spelling of vocab.json, and of `first`.
        merges: best first.
        first: tokens that are found in a text before BPE.
        unknown: the piece for unknown words.
        cleans_spaces: take away the spaces before punctuation in decoding.
    """
    made, added = {left + right for left, right in merges}, {token.content for token in first}
    vocab = {name if name in added else _piece(name, made): row for name, row in rows.items()}
    if len(vocab) < len(rows):
        return None
    # What merges make on the way, and vocab.json lacks, is unknown where it remains.
    others = itertools.count(max(rows.values()) + 1)
    for left, right in merges:
        for piece in (left, right, left + right):
            if piece not in vocab:
                vocab[piece] = next(others)
    result = Tokenizer(BPE(vocab=vocab, merges=list(merges), unk_token=unknown, end_of_word_suffix=_LAST))
    result.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"(?<=[^\s'])\n"), " __newln__ "),
            normalizers.Replace(Regex(_FINAL_SIGMA), "ς"),
            normalizers.Lowercase(),
        ]
    )
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(_PUNCTUATION), "merged_with_next"),
            pre_tokenizers.Split("'", "isolated"),
        ]
    )
    result.decoder = _decoder(added, cleans_spaces)
    result.add_tokens(list(first))
    return result


def _piece(name: str, made: set[str]) -> str:
    """A name in vocab.json as merges.txt spells it."""
    last = f"{name}{_LAST}"
    is_inside = name.endswith(_INSIDE) and name != _INSIDE and last not in made
    return name.removesuffix(_INSIDE) if is_inside else last


def _name(piece: str) -> str:
    return piece.removesuffix(_LAST) if piece.endswith(_LAST) else f"{piece}{_INSIDE}"


def _decoder(added: Iterable[str], cleans_spaces: bool) -> decoders.Decoder:
    """Words with spaces between them; of a text that ends inside a word, the last piece keeps its "@@"."""
    whole = "".join(rf"|(?<=\A{re.escape(token)})\z" for token in added)
    cleaned = _CLEANED.items() if cleans_spaces else ()
    return decoders.Sequence(
        [
            decoders.Replace(Regex(rf"{_LAST}\z{whole}"), " "),
            decoders.Replace(Regex(r"(?<! )\z"), f"{_INSIDE} "),
            decoders.Fuse(),
            decoders.Replace(Regex(r" \z"), ""),
            decoders.Replace(f"{_INSIDE} ", ""),
            *(decoders.Replace(old, new) for old, new in cleaned),
        ]
    )


BLENDERBOT_SMALL = BlenderbotSmallFamily()
