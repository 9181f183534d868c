"""The tokenizers of mBART-25, mBART-50, NLLB and M2M-100; and how transformers 5 makes them of a sentencepiece model.

fairseq's symbols <s>, <pad>, </s> and <unk> replace the first three symbols of the sentencepiece model, so that the
number of a piece is that of this model plus one. The languages and <mask> follow the pieces.
"""

from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer, pre_tokenizers

from elseq.errors import UserError
from elseq.interop.hugging_face.families.multilingual.languages import MBART_25, MBART_50, NLLB
from elseq.interop.hugging_face.options import shown
from elseq.interop.hugging_face.sentencepieces import Model, SentencepieceClass, bpe, normalizer, unigram
from elseq.interop.hugging_face.tokenizer import CLASSES, Affixes, TokenizerClass, extra_tokens, set_affixes, text_of
from elseq.model_files import TOKENIZER_CONFIG

_OWN = 3  # symbols that a model of sentencepiece has first: <unk>, <s> and </s>
_UNKNOWN = 3


class _Multilingual(SentencepieceClass):
    tokens = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "sep_token": "</s>",
        "cls_token": "<s>",
        "mask_token": {"content": "<mask>", "lstrip": True, "normalized": True},
    }
    source_language = "en_XX"  # where tokenizer_config.json has no src_lang

    def symbols(self, named: Mapping[str, str | None]) -> list[str]:
        return [named[name] for name in ("bos_token", "pad_token", "eos_token", "unk_token")]

    def set_affixes(self, tokenizer: Tokenizer, named: Mapping[str, str | None], config: dict) -> None:
        source, end = config.get("src_lang") or self.source_language, named["eos_token"]
        if not isinstance(source, str) or tokenizer.token_to_id(source) is None:
            raise UserError(
                f"{TOKENIZER_CONFIG} has src_lang: {shown(source)}, which is no token: give the code of a language"
            )
        is_first = self.is_language_first(config)
        set_affixes(tokenizer, Affixes([source], [end]) if is_first else Affixes([], [end, source]))

    def is_language_first(self, config: dict) -> bool:
        return True


class MBart50Class(_Multilingual):
    languages = MBART_50

    def tokenizer(self, model: Model, named: Mapping[str, str | None], config: dict) -> Tokenizer:
        after = [*self.languages, *([named["mask_token"]] if named["mask_token"] else [])]
        symbols = [(symbol, 0.0) for symbol in self.symbols(named)]
        tokenizer = unigram([*symbols, *model.pieces[_OWN:], *((symbol, 0.0) for symbol in after)], _UNKNOWN)
        tokenizer.normalizer = normalizer(model.charsmap)
        return tokenizer

    def unnumbered(self, config: dict) -> Sequence[str]:
        return self.languages


class MBartClass(MBart50Class):
    """Without the model's normalization, and with the language after the text."""

    languages = MBART_25

    def tokenizer(self, model: Model, named: Mapping[str, str | None], config: dict) -> Tokenizer:
        tokenizer = super().tokenizer(model, named, config)
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), tokenizer.pre_tokenizer])
        return tokenizer

    def is_language_first(self, config: dict) -> bool:
        return False


class NllbClass(_Multilingual):
    source_language = "eng_Latn"

    def tokenizer(self, model: Model, named: Mapping[str, str | None], config: dict) -> Tokenizer:
        order = {piece: number for number, (piece, _) in enumerate(model.pieces)}
        ids = {piece: token_id for token_id, piece in enumerate(dict.fromkeys([*self.symbols(named), *order]))}
        tokenizer = bpe(ids, order, named["unk_token"])
        if model.charsmap:
            tokenizer.normalizer = normalizer(model.charsmap)
        return tokenizer

    def unnumbered(self, config: dict) -> Sequence[str | dict]:
        languages = [text_of(token) for token in extra_tokens(config)] or NLLB
        mask = self.named(config)["mask_token"]
        return [*languages, *([mask] if mask else [])]

    def is_language_first(self, config: dict) -> bool:
        return not config.get("legacy_behaviour")


class M2M100Class(TokenizerClass):
    """A class for which transformers splits texts by sentencepiece itself, even if there is a tokenizer.json."""

    tokens = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    checks_file = False


CLASSES.update(MBartTokenizer=MBartClass(), MBart50Tokenizer=MBart50Class(), NllbTokenizer=NllbClass())
CLASSES["M2M100Tokenizer"] = M2M100Class()
