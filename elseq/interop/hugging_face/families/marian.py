"""Marian: no norm of the embeddings, a bias of the output layer, sines as positions, and <pad> as decoding's start.

What it shares with other families without learned positions: `Sinusoidal`. A model that was trained further has three
embeddings, and positions that are no longer sines.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from elseq.errors import UserError
from elseq.interop.hugging_face.families.bart import POSITIONS, SIDES, UNTIED, BARTFamily
from elseq.interop.hugging_face.options import shown
from elseq.interop.hugging_face.rows import OUTPUT_BIAS, fairseq_order
from elseq.interop.hugging_face.sentencepieces import read_pieces
from elseq.interop.hugging_face.tokenizer import CLASSES, TokenizerClass, read_config
from elseq.interop.hugging_face.vocabulary import Vocabulary
from elseq.subwords.pieces import NUMBERS, SOURCE_MODEL, TARGET_MODEL


class Sinusoidal(BARTFamily):
    """Sines in an order of their own, as a table of positions; and the row of <pad> as that from which decoding starts.

    fairseq's decoder reads </s> only there, so that its embedding there can be another than where it is generated.
    """

    architecture = "transformer"
    first_position = 0
    has_embedding_norm = False
    saves_positions = False  # a folder has them as a tensor

    def fairseq_options(self, config: dict) -> dict:
        apart = {"share_all_embeddings": False, "share_decoder_input_output_embed": False}
        learned = {f"{side}_learned_pos": True for side in SIDES}
        return super().fairseq_options(config) | learned | apart

    def check_start(self, config: dict) -> None:
        if config["decoder_start_token_id"] != config["pad_token_id"]:
            raise UserError(
                f"config.json has decoder_start_token_id: {config['decoder_start_token_id']}, and the family's models "
                f"begin to decode with pad_token_id, which is {config['pad_token_id']}"
            )

    def fixed_symbols(self, config: dict, words: Vocabulary) -> dict[str, tuple[int, ...]]:
        return {"eos_token_id": (config["eos_token_id"],), "decoder_start_token_id": (config["pad_token_id"],)}

    def check_vocabulary(self, words: Vocabulary, config: dict, folder: Path) -> bool:
        self.check_symbols(words, config, folder, ("pad_token_id", "eos_token_id"))
        return super().check_vocabulary(words, config, folder)

    def surroundings(self, config: dict) -> tuple[list[int], list[int]]:
        return [], [config["eos_token_id"]]

    def fairseq_orders(self, words: Vocabulary, config: dict) -> dict[str, list[int | None]]:
        no_start = config | {"bos_token_id": None}  # whatever config.json says, no text begins with one
        return {"": fairseq_order(words, no_start, config["vocab_size"])}

    def normalize(self, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
        tensors = super().normalize(tensors, config)
        embedding = next((tensors[name] for name in ("shared.weight", *UNTIED) if name in tensors), None)
        if embedding is None:
            return tensors
        table = sines(config["max_position_embeddings"], config["d_model"]).to(embedding.dtype)
        return {f"{side}.{POSITIONS}": table for side in SIDES} | tensors

    def to_fairseq(self, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
        renamed = super().to_fairseq(tensors, config)
        embedding = _with_row(renamed["decoder.embed_tokens.weight"], config["eos_token_id"], config["pad_token_id"])
        return renamed | {"decoder.embed_tokens.weight": embedding}

    def options_of_tensors(self, tensors: dict[str, Tensor], config: dict) -> dict:
        encoder, decoder = (tensors[f"{side}.embed_tokens.weight"] for side in SIDES)
        is_one = torch.equal(encoder, tensors["decoder.output_projection.weight"]) and torch.equal(
            decoder, _with_row(encoder, config["eos_token_id"], config["pad_token_id"])
        )
        return {"tie_word_embeddings": is_one}

    def from_fairseq(self, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
        encoder, decoder = (tensors[f"{side}.embed_tokens.weight"] for side in SIDES)
        start = _with_row(decoder, config["pad_token_id"], config["eos_token_id"])
        embedding = encoder if self.has_one_embedding(config) else start
        renamed = super().from_fairseq(tensors | {"decoder.embed_tokens.weight": embedding}, config)
        for name in [f"model.{side}.{POSITIONS}" for side in SIDES if not self.saves_positions]:
            if torch.equal(renamed[name], sines(*renamed[name].shape).to(renamed[name].dtype)):
                del renamed[name]
        return renamed

    def decoding_symbols(self, symbols: dict[str, int | None], forced_start: bool) -> dict:
        pad = symbols["pad_token_id"]
        own = {"decoder_start_token_id": pad, "bad_words_ids": [[pad]]}
        return super().decoding_symbols(symbols, forced_start) | own


def _with_row(embedding: Tensor, row: int, other: int) -> Tensor:
    """A copy with another row in the place of one."""
    embedding = embedding.clone()
    embedding[row] = embedding[other]
    return embedding


def sines(positions: int, width: int) -> Tensor:
    """[P, C]: sin(p / 10000^(2i/C)) for each i below C/2, and after these the cosines; by 1706.03762, section 3.5."""
    angles = torch.arange(positions, dtype=torch.float64)[:, None]
    angles = angles / 10000 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.cat((angles.sin(), angles[:, : width // 2].cos()), dim=1).float()


class MarianClass(TokenizerClass):
    """With it transformers reads a text by sentencepiece itself."""

    tokens = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}
    checks_file = False


CLASSES["MarianTokenizer"] = MarianClass()


class MarianFamily(Sinusoidal):
    name = "marian"
    title = "Marian"
    model_class = "MarianMTModel"
    tokenizer_class = "MarianTokenizer"
    features = {
        "normalize_before": False,
        "normalize_embedding": False,
        "add_final_layer_norm": False,
        "add_bias_logits": False,
        "static_position_embeddings": True,
        "is_encoder_decoder": True,
    }
    required = BARTFamily.required | {
        "layernorm_embedding": False,
        "share_all_embeddings": False,
        "share_decoder_input_output_embed": False,
        "output_bias": True,
    }
    fixed_options = {"output_bias": True}
    defaults = BARTFamily.defaults | {
        "vocab_size": 58101,
        "bos_token_id": None,
        "pad_token_id": 58100,
        "eos_token_id": 0,
        "decoder_start_token_id": 58100,
        "share_encoder_decoder_embeddings": True,
    }

    def has_one_embedding(self, config: dict) -> bool:
        return config["tie_word_embeddings"] and config["share_encoder_decoder_embeddings"]

    def fairseq_options(self, config: dict) -> dict:
        if (rows := config.get("decoder_vocab_size")) not in (None, config["vocab_size"]):
            raise UserError(
                f"config.json has vocab_size: {config['vocab_size']} and decoder_vocab_size: {shown(rows)}: only "
                "models with one vocabulary are converted"
            )
        return super().fairseq_options(config)

    def read_vocabulary(self, folder: Path, config: dict) -> Vocabulary | None:
        names = SOURCE_MODEL, TARGET_MODEL, NUMBERS
        missing = [name for name in names if not (folder / name).exists()]
        if len(missing) == len(names):
            return None
        if missing:
            raise UserError(f"{folder / missing[0]}, a part of the tokenizer, is missing: copy it there")
        if read_config(folder).get("separate_vocabs"):
            raise UserError(
                f"the tokenizer in {folder} has separate_vocabs: only models with one vocabulary are converted"
            )
        words = read_pieces(folder, MarianClass.tokens, [SOURCE_MODEL, TARGET_MODEL])
        return replace(words, around=([], [config["eos_token_id"]]))

    def shapes(self, config: dict) -> dict[str, tuple[int, ...]]:
        return super().shapes(config) | {"final_logits_bias": (1, config["vocab_size"])}

    def normalize(self, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
        bias = tensors.get("final_logits_bias", torch.zeros(1, config["vocab_size"]))
        is_shared, (_, decoder, output) = config["share_encoder_decoder_embeddings"], UNTIED
        others = {name: tensor for name, tensor in tensors.items() if name != "final_logits_bias"}
        if not is_shared:  # then transformers has no such tensor
            others = {name: tensor for name, tensor in others.items() if not name.endswith("shared.weight")}
        tensors = super().normalize(others, config) | {"final_logits_bias": bias}
        if config["tie_word_embeddings"] and not is_shared and decoder in tensors:
            tensors[output] = tensors[decoder]
        return tensors

    def to_fairseq(self, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
        return super().to_fairseq(tensors, config) | {OUTPUT_BIAS: tensors["final_logits_bias"].flatten()}

    def options_of_tensors(self, tensors: dict[str, Tensor], config: dict) -> dict:
        given = super().options_of_tensors(tensors, config)
        return given | {"share_encoder_decoder_embeddings": given["tie_word_embeddings"]}

    def from_fairseq(self, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
        others = {name: tensor for name, tensor in tensors.items() if name != OUTPUT_BIAS}
        renamed = super().from_fairseq(others, config) | {"final_logits_bias": tensors[OUTPUT_BIAS][None]}
        if not self.has_one_embedding(config):
            del renamed["model.shared.weight"]
        return renamed

    def notes_of_tensors(self, tensors: dict[str, Tensor]) -> list[str]:
        if not any(name.endswith(POSITIONS) for name in tensors):
            return []
        return [
            "training has changed the positions, which were sines: transformers reads them from this folder, and its "
            "save_pretrained leaves them out"
        ]


MARIAN = MarianFamily()
