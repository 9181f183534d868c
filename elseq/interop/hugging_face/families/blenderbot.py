"""Blenderbot: BART's layers with the norms first and a last one, and <s> as decoding's start."""

from collections.abc import Mapping

from tokenizers import Tokenizer

from elseq.errors import UserError
from elseq.interop.hugging_face.families.bart import LEARNED_POSITIONS, NORMS_FIRST, BARTFamily
from elseq.interop.hugging_face.tokenizer import CLASSES, Affixes, GPT2Class, RobertaClass, set_affixes
from elseq.interop.hugging_face.vocabulary import Vocabulary


class BlenderbotClass(GPT2Class):
    """Puts a space before a text and the end symbol after it, as the models were trained.

    (From vocab.json and merges.txt, older versions of transformers do the same. Version 5 adds no end symbol.)
    """

    tokens = RobertaClass.tokens | {"mask_token": {"content": "<mask>", "lstrip": True}}
    add_prefix_space = True

    def set_affixes(self, tokenizer: Tokenizer, named: Mapping[str, str | None], config: dict) -> None:
        set_affixes(tokenizer, Affixes([], [named["eos_token"]]))


CLASSES["BlenderbotTokenizer"] = BlenderbotClass()


class BlenderbotFamily(BARTFamily):
    name = "blenderbot"
    title = "Blenderbot"
    model_class = "BlenderbotForConditionalGeneration"
    tokenizer_class = "BlenderbotTokenizer"
    architecture = "transformer"
    features = BARTFamily.features | {
        "normalize_before": True,
        "normalize_embedding": False,
        "add_final_layer_norm": True,
    }
    first_position = 0
    has_embedding_norm = False
    has_final_norms = True
    required = BARTFamily.required | NORMS_FIRST | {"layernorm_embedding": False}
    fixed_options = NORMS_FIRST | LEARNED_POSITIONS
    defaults = BARTFamily.defaults | {
        "vocab_size": 8008,
        "max_position_embeddings": 128,
        "d_model": 2560,
        "encoder_layers": 2,
        "encoder_ffn_dim": 10240,
        "encoder_attention_heads": 32,
        "decoder_layers": 24,
        "decoder_ffn_dim": 10240,
        "decoder_attention_heads": 32,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }

    def check_start(self, config: dict) -> None:
        starts = config["bos_token_id"], config["eos_token_id"]
        if config["decoder_start_token_id"] not in starts:
            raise UserError(
                f"config.json has decoder_start_token_id: {config['decoder_start_token_id']}, and the family's models "
                f"begin to decode with bos_token_id or eos_token_id, {starts[0]} or {starts[1]}"
            )

    def affixes(self, config: dict) -> Affixes:
        return Affixes([], [config["eos_token_id"]])

    def fixed_symbols(self, config: dict, words: Vocabulary) -> dict[str, tuple[int, ...]]:
        starts = config["bos_token_id"], config["eos_token_id"]
        return super().fixed_symbols(config, words) | {"decoder_start_token_id": starts}

    def checkpoint_configuration(
        self, configuration: dict, settings: dict, words: Vocabulary, add_bos_token: bool
    ) -> dict:
        cfg = super().checkpoint_configuration(configuration, settings, words, add_bos_token)
        is_end = settings.get("decoder_start_token_id") == words.rows[self.symbol_names["eos_token_id"]]
        cfg["task"]["decoder_start"] = None if is_end else "<s>"
        return cfg


BLENDERBOT = BlenderbotFamily()
