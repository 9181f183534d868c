"""mBART-50, M2M-100 and NLLB: BART's layers with the norms first; a language's symbol begins source and target."""

import re
from dataclasses import replace
from pathlib import Path

from elseq.interop.hugging_face.families.bart import BARTFamily
from elseq.interop.hugging_face.families.family import other_surroundings
from elseq.interop.hugging_face.tokenizer import surroundings
from elseq.interop.hugging_face.vocabulary import Vocabulary

# en_XX of mBART, __en__ of M2M-100, eng_Latn of NLLB
_LANGUAGE = re.compile(r"[a-z]{2}_[A-Z]{2}|__[a-z]{2,3}__|[a-z]{3}_[A-Z][a-z]{3}")
_NORMS_FIRST = {"encoder_normalize_before": True, "decoder_normalize_before": True}
_FEATURES = {"static_position_embeddings": False, "is_encoder_decoder": True}


class Multilingual(BARTFamily):
    """A source is its language's symbol, the text and </s>; decoding begins with </s> and the target's language."""

    architecture = "transformer"
    tokenizer_class = "TokenizersBackend"
    features = _FEATURES
    has_final_norms = True

    def read_vocabulary(self, folder: Path, config: dict) -> Vocabulary | None:
        words = super().read_vocabulary(folder, config)
        if words is None:
            return None
        added = {token.content for token in words.tokenizer.get_added_tokens_decoder().values()}
        languages = tuple(sorted((name for name in added if _LANGUAGE.fullmatch(name)), key=words.rows.get))
        return replace(words, languages=languages)

    def check_vocabulary(self, words: Vocabulary, config: dict, folder: Path) -> bool:
        if _source_language(words, config) is None:
            wanted = (
                f"the number of a language before and {config['eos_token_id']} after it: set src_lang, and save the "
                "tokenizer by the save_pretrained of transformers"
            )
            raise other_surroundings(words, folder, wanted)
        return False

    def forced_symbols(self, config: dict) -> dict[str, int | range | None]:
        return super().forced_symbols(config) | {"forced_bos_token_id": range(config["vocab_size"])}

    def checkpoint_configuration(
        self, configuration: dict, settings: dict, words: Vocabulary, add_bos_token: bool
    ) -> dict:
        cfg = super().checkpoint_configuration(configuration, settings, words, add_bos_token)
        (source,), _ = surroundings(words.tokenizer)
        names = {row: name for name, row in words.rows.items() if name in words.languages}
        target = settings.get("forced_bos_token_id")
        target = target[0] if isinstance(target, list) else target
        cfg["task"] |= {"force_bos": "no", "source_start": names[source], "target_start": names.get(target)}
        return cfg

    def task_arguments(self, task: dict) -> list[str]:
        starts = [f"--{side}-start={task[f'{side}_start']}" for side in ("source", "target") if task[f"{side}_start"]]
        return [*super().task_arguments(task), *starts]


def _source_language(words: Vocabulary, config: dict) -> str | None:
    """That which the tokenizer puts before a text, if it puts nothing else around it but </s> after it."""
    before, after = surroundings(words.tokenizer)
    if after != [config["eos_token_id"]] or len(before) != 1:
        return None
    return next((name for name in words.languages if words.rows[name] == before[0]), None)


class MBARTFamily(Multilingual):
    name = "mbart"
    title = "mBART"
    model_class = "MBartForConditionalGeneration"
    defaults = BARTFamily.defaults | {"decoder_start_token_id": None}
    required = BARTFamily.required | _NORMS_FIRST
    fixed_options = _NORMS_FIRST | {
        "encoder_learned_pos": True,
        "decoder_learned_pos": True,
        "layernorm_embedding": True,
    }


class M2M100Family(Multilingual):
    name = "m2m_100"
    title = "M2M-100"
    model_class = "M2M100ForConditionalGeneration"
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
        | _NORMS_FIRST
        | {"encoder_learned_pos": False, "decoder_learned_pos": False, "layernorm_embedding": False}
    )
    fixed_options = _NORMS_FIRST
    has_learned_positions = False
    has_embedding_norm = False
    has_output_bias = False


MBART, M2M100 = MBARTFamily(), M2M100Family()
