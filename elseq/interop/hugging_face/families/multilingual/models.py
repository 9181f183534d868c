"""mBART, M2M-100 and NLLB: BART's layers with the norms first, and symbols of languages beside source and target."""

import json
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from elseq.errors import UserError
from elseq.files import to_json
from elseq.interop.hugging_face.families.bart import LEARNED_POSITIONS, NORMS_FIRST, BARTFamily
from elseq.interop.hugging_face.families.family import other_affixes
from elseq.interop.hugging_face.families.multilingual.languages import M2M_100
from elseq.interop.hugging_face.families.multilingual.tokenizers import M2M100Class
from elseq.interop.hugging_face.options import shown
from elseq.interop.hugging_face.sentencepieces import read_pieces
from elseq.interop.hugging_face.tokenizer import Affixes, affixes_of, read_config, set_affixes
from elseq.interop.hugging_face.vocabulary import Vocabulary
from elseq.model_files import SENTENCEPIECE_BPE_MODEL, TOKENIZER_CONFIG, TOKENIZER_JSON, VOCAB_JSON
from elseq.subwords.pieces import PiecesWithIds
from elseq.subwords.tokens import Tokens
from elseq.tasks.translation import LANGUAGE

_FEATURES = {"static_position_embeddings": False, "is_encoder_decoder": True}


class Multilingual(BARTFamily):
    """A source is its language's symbol, the text and </s>; decoding begins with </s> and the target's language.

    In mBART-25 a source is the text, </s> and the language, and decoding begins with the target's language alone.
    """

    architecture = "transformer"
    features = _FEATURES
    has_final_norms = True

    def read_vocabulary(self, folder: Path, config: dict) -> Vocabulary | None:
        words = super().read_vocabulary(folder, config)
        if words is None:
            return None
        added = {token.content for token in words.tokenizer.get_added_tokens_decoder().values()}
        languages = tuple(sorted((name for name in added if LANGUAGE.fullmatch(name)), key=words.rows.get))
        return replace(words, languages=languages)

    def check_start(self, config: dict) -> None:
        """Checks nothing: the start may be a language, which `check_vocabulary` knows."""

    def check_vocabulary(self, words: Vocabulary, config: dict, folder: Path) -> bool:
        languages = {row for name in words.languages if (row := words.rows[name]) < config["vocab_size"]}
        if config["decoder_start_token_id"] not in languages:
            super().check_start(config)
        source = _source_language(words, config)
        if source is None:
            wanted = (
                f"the number of a language before and {config['eos_token_id']} after it, or both after it: set "
                "src_lang, and save the tokenizer by the save_pretrained of transformers"
            )
            raise other_affixes(words, folder, wanted)
        if words.rows[source] not in languages:
            raise UserError(
                f"{folder} puts {source} beside a text, which has the number {words.rows[source]}, and the embedding "
                f"has {config['vocab_size']} rows: set src_lang in {TOKENIZER_CONFIG} to another language, or name "
                "the folder of the model's own tokenizer by --data"
            )
        return False

    def fixed_symbols(self, config: dict, words: Vocabulary) -> dict[str, tuple[int, ...]]:
        symbols = super().fixed_symbols(config, words)
        starts = *symbols["decoder_start_token_id"], *(words.rows[name] for name in words.languages)
        return symbols | {"decoder_start_token_id": starts}

    def forced_symbols(self, config: dict) -> dict[str, int | range | None]:
        return super().forced_symbols(config) | {"forced_bos_token_id": range(config["vocab_size"])}

    def checkpoint_configuration(
        self, configuration: dict, settings: dict, words: Vocabulary, add_bos_token: bool
    ) -> dict:
        cfg = super().checkpoint_configuration(configuration, settings, words, add_bos_token)
        names = {words.rows[name]: name for name in words.languages}
        prefix, suffix = words.affixes
        symbols = {
            "source_start": prefix[0] if prefix else None,
            "source_end": suffix[1] if suffix[1:] else None,
            "target_start": settings.get("forced_bos_token_id"),
            "decoder_start": settings.get("decoder_start_token_id"),
        }
        for option, row in symbols.items():
            cfg["task"][option] = names.get(row[0] if isinstance(row, list) else row)
        cfg["task"]["force_bos"] = "no"
        return cfg

    def tokenizer_files(self, tokens: Tokens | PiecesWithIds, words: list[str], task) -> dict[str, str | bytes]:
        """The files with the language that the task puts beside a source, instead of the tokenizer's.

        Raises:
            UserError: the tokenizer does not have it.
        """
        files = super().tokenizer_files(tokens, words, task)
        start, end = (getattr(task, option, None) for option in ("source_start", "source_end"))
        language = start or end
        if language is None:
            return files
        if isinstance(tokens, Tokens):
            if language not in tokens.ids:
                raise UserError(
                    f"{tokens.path} does not have {language!r}, which stands beside the sources of the model: name the "
                    "folder of the model's own tokenizer by --data"
                )
            tokenizer = Tokenizer.from_str(files[TOKENIZER_JSON])
            code, last = (tokens.ids[word] for word in (language, "</s>"))
            affixes = Affixes([code], [last]) if start else Affixes([], [last, code])
            if affixes_of(tokenizer) == affixes:
                return files
            set_affixes(tokenizer, Affixes(*(list(map(tokenizer.id_to_token, rows)) for rows in affixes)))
            files |= {TOKENIZER_JSON: tokenizer.to_str()}
        return files | {
            TOKENIZER_CONFIG: to_json(json.loads(files[TOKENIZER_CONFIG]) | {"src_lang": language.strip("_")})
        }


def _source_language(words: Vocabulary, config: dict) -> str | None:
    """The language that the tokenizer puts beside a text, if it puts only this and </s> there."""
    prefix, suffix = words.affixes
    if suffix[:1] != [config["eos_token_id"]] or len(prefix + suffix) != 2:
        return None
    return next((name for name in words.languages if words.rows[name] in prefix + suffix[1:]), None)


class MBARTFamily(Multilingual):
    name = "mbart"
    title = "mBART"
    model_class = "MBartForConditionalGeneration"
    tokenizer_class = "MBartTokenizer"
    defaults = BARTFamily.defaults | {"decoder_start_token_id": None}
    required = BARTFamily.required | NORMS_FIRST
    fixed_options = NORMS_FIRST | LEARNED_POSITIONS | {"layernorm_embedding": True}


class M2M100Family(Multilingual):
    name = "m2m_100"
    title = "M2M-100"
    model_class = "M2M100ForConditionalGeneration"
    tokenizer_class = "M2M100Tokenizer"
    defaults = BARTFamily.defaults | {
        "vocab_size": 128112,
        "encoder_layerdrop": 0.05,
        "decoder_layerdrop": 0.05,
        "activation_function": "relu",
        "attention_dropout": 0.1,
        "scale_embedding": True,
    }
    required = (
        BARTFamily.required
        | NORMS_FIRST
        | {"encoder_learned_pos": False, "decoder_learned_pos": False, "layernorm_embedding": False}
    )
    fixed_options = NORMS_FIRST
    has_learned_positions = False
    has_embedding_norm = False
    has_output_bias = False
    forces_end = False

    def read_vocabulary(self, folder: Path, config: dict) -> Vocabulary | None:
        """Without tokenizer.json, of vocab.json and the sentencepiece model beside it."""
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if TOKENIZER_JSON in names or not {SENTENCEPIECE_BPE_MODEL, VOCAB_JSON} <= names:
            return super().read_vocabulary(folder, config)
        settings = read_config(folder)
        kind = settings.get("language_codes") or "m2m100"
        if kind not in [*M2M_100]:
            raise UserError(
                f"{TOKENIZER_CONFIG} has language_codes: {shown(kind)}, which are none of {', '.join(M2M_100)}"
            )
        languages = [f"__{code}__" for code in M2M_100[kind]]
        words = read_pieces(folder, M2M100Class.tokens, [SENTENCEPIECE_BPE_MODEL], languages)
        self.check_symbols(words, config, folder, ("bos_token_id", "pad_token_id", "eos_token_id"))
        source = f"__{settings.get('src_lang') or 'en'}__"
        if source not in languages:
            raise UserError(
                f"{TOKENIZER_CONFIG} has src_lang: {shown(source.strip('_'))}, which is none of its languages"
            )
        return replace(words, affixes=Affixes([words.rows[source]], [config["eos_token_id"]]))


MBART, M2M100 = MBARTFamily(), M2M100Family()
