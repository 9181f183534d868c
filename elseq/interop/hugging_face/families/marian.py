"""Marian: no norm of the embeddings, a bias of the output layer, sines as positions, and <pad> as decoding's start.

`Sinusoidal` is shared with other families without learned positions. A model that was trained further has three
embeddings, and its positions are no longer sines.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from elseq.errors import UserError
from elseq.interop.hugging_face import options
from elseq.interop.hugging_face.families.bart import LEARNED_POSITIONS, POSITIONS, SIDES, UNTIED, BARTFamily
from elseq.interop.hugging_face.families.family import LANGUAGES
from elseq.interop.hugging_face.rows import OUTPUT_BIAS, fairseq_order
from elseq.interop.hugging_face.sentencepieces import PieceVocabulary, read_pieces
from elseq.interop.hugging_face.tokenizer import CLASSES, Affixes, TokenizerClass, read_config
from elseq.interop.hugging_face.vocabulary import SPECIAL_SYMBOLS, Vocabulary
from elseq.model_files import SOURCE_SPM, TARGET_SPM, TARGET_VOCAB_JSON, VOCAB_JSON
from elseq.subwords.files import read_ids, read_text
from elseq.subwords.pieces import PiecesWithIds
from elseq.subwords.tokens import Tokens

_ENCODER, _DECODER = (f"{side}.embed_tokens.weight" for side in SIDES)
_OUTPUT = "decoder.output_projection.weight"
_SHARED, _SEPARATE = "share_encoder_decoder_embeddings", "separate_vocabs"  # of config.json, of the tokenizer's


class Sinusoidal(BARTFamily):
    """Families with sines of another order, which become a table of positions, and with <pad> as the decoder's start.

    fairseq's decoder reads </s> only as its start, and no output depends on what it reads for <pad>. The embedding of
    </s> there can therefore be that of <pad>. Where the output layer has an embedding of its own, the two are
    exchanged, so that none is lost.
    """

    architecture = "transformer"
    features = BARTFamily.features | {"normalize_embedding": False, "static_position_embeddings": True}
    required = BARTFamily.required | {
        "layernorm_embedding": False,
        "share_all_embeddings": False,
        "share_decoder_input_output_embed": False,
    }
    first_position = 0
    has_embedding_norm = False
    saves_positions = False  # a folder has them as a tensor

    def fairseq_options(self, config: dict) -> dict:
        apart = {"share_all_embeddings": False, "share_decoder_input_output_embed": False}
        return super().fairseq_options(config) | LEARNED_POSITIONS | apart

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

    def affixes(self, config: dict) -> Affixes:
        return Affixes([], [config["eos_token_id"]])

    def fairseq_orders(self, words: Vocabulary, config: dict) -> dict[str, list[int | None]]:
        return {"": self._fairseq_order(words, config, config["vocab_size"])}

    def _fairseq_order(self, words: Vocabulary, config: dict, rows: int) -> list[int | None]:
        no_start = config | {"bos_token_id": None}  # whatever config.json says, no text begins with one
        order = fairseq_order(words, no_start, rows)
        if order[SPECIAL_SYMBOLS.index("<pad>")] is None:
            pad = config["pad_token_id"]
            raise UserError(f"config.json has pad_token_id: {pad}, and the embedding has {rows} rows")
        return order

    def normalize(self, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
        tensors = super().normalize(tensors, config)
        embedding = next((tensors[name] for name in ("shared.weight", *UNTIED) if name in tensors), None)
        if embedding is None:
            return tensors
        table = sines(config["max_position_embeddings"], config["d_model"])  # as transformers has them, in any type
        return {f"{side}.{POSITIONS}": table for side in SIDES} | tensors

    def to_fairseq(self, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
        renamed = super().to_fairseq(tensors, config)
        is_tied = "lm_head.weight" in self.tied_embeddings(config)
        read = _with_row if is_tied else _exchanged  # otherwise no other embedding has the row of </s>
        return renamed | {_DECODER: read(renamed[_DECODER], config["eos_token_id"], config["pad_token_id"])}

    def check_task(self, task, tokens: Tokens | PiecesWithIds | None) -> None:
        super().check_task(task, tokens)
        start = getattr(task, "decoder_start", None)
        if start not in (None, "</s>"):
            raise UserError(
                f"it begins to decode with {start!r} (--decoder-start), and Hugging Face's {self.title} with <pad>, in "
                "the place of </s>"
            )

    def options_of_tensors(self, tensors: dict[str, Tensor], config: dict) -> dict:
        is_shared = torch.equal(tensors[_ENCODER], tensors[_OUTPUT])
        return {"tie_word_embeddings": is_shared and self.is_read_by_decoder(tensors[_OUTPUT], tensors, config)}

    def is_read_by_decoder(self, embedding: Tensor, tensors: dict[str, Tensor], config: dict) -> bool:
        """Whether the decoder's embedding is this one, with the row of <pad> as that of </s>."""
        read = _with_row(embedding, config["eos_token_id"], config["pad_token_id"])
        return torch.equal(tensors[_DECODER], read)

    def from_fairseq(self, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
        is_tied = "lm_head.weight" in self.tied_embeddings(config)
        start = _exchanged(tensors[_DECODER], config["eos_token_id"], config["pad_token_id"])
        renamed = super().from_fairseq(tensors | {_DECODER: tensors[_OUTPUT] if is_tied else start}, config)
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


def _exchanged(embedding: Tensor, row: int, other: int) -> Tensor:
    """A copy with two rows exchanged."""
    embedding = embedding.clone()
    embedding[[row, other]] = embedding[[other, row]]
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


@dataclass(frozen=True)
class PairVocabulary:
    """A vocabulary for each side of a model with separate embeddings."""

    source: PieceVocabulary
    target: PieceVocabulary

    @property
    def notes(self) -> list[str]:
        return self.source.notes


class MarianFamily(Sinusoidal):
    """Its sides share vocabulary and embedding, or have one each."""

    name = "marian"
    title = "Marian"
    model_class = "MarianMTModel"
    tokenizer_class = "MarianTokenizer"
    may_have_two_dictionaries = True
    required = Sinusoidal.required | {"output_bias": True}
    fixed_options = {"output_bias": True}
    defaults = BARTFamily.defaults | {
        "vocab_size": 58101,
        "bos_token_id": None,
        "pad_token_id": 58100,
        "eos_token_id": 0,
        "decoder_start_token_id": 58100,
        _SHARED: True,
    }

    def fairseq_options(self, config: dict) -> dict:
        options.complete(config, {"decoder_vocab_size": None}, {})  # it is checked; the default is vocab_size
        return super().fairseq_options(config)

    def tied_embeddings(self, config: dict) -> dict[str, str]:
        tied = super().tied_embeddings(config)
        return tied if config[_SHARED] or not tied else {"lm_head.weight": _DECODER}

    def target_rows(self, config: dict) -> int:
        """How many words the output layer has."""
        return config["vocab_size"] if config[_SHARED] else config.get("decoder_vocab_size") or config["vocab_size"]

    def read_vocabulary(self, folder: Path, config: dict) -> Vocabulary | PairVocabulary | None:
        names = [SOURCE_SPM, TARGET_SPM, VOCAB_JSON]
        if not any((folder / name).exists() for name in names):
            return None
        has_two, is_shared = bool(read_config(folder).get(_SEPARATE)), config[_SHARED]
        missing = [name for name in [*names, *([TARGET_VOCAB_JSON] if has_two else [])] if not (folder / name).exists()]
        if missing:
            raise UserError(f"{folder / missing[0]}, a part of the tokenizer, is missing: copy it there")
        if has_two and is_shared:
            raise UserError(
                f"config.json has {_SHARED}: True, and the tokenizer in {folder} {_SEPARATE}: it is of another model; "
                "name the folder of the model's own by --data"
            )
        words = read_pieces(folder, MarianClass.tokens, [SOURCE_SPM, TARGET_SPM])
        words = replace(words, affixes=self.affixes(config))
        if is_shared:
            return words
        return PairVocabulary(words, _read_target(folder, words) if has_two else words)

    def check_vocabulary(self, words: Vocabulary | PairVocabulary, config: dict, folder: Path) -> bool:
        if isinstance(words, PairVocabulary):
            super().check_vocabulary(words.target, config, folder)
            words = words.source
        return super().check_vocabulary(words, config, folder)

    def fairseq_orders(self, words: Vocabulary | PairVocabulary, config: dict) -> dict[str, list[int | None]]:
        if not isinstance(words, PairVocabulary):
            return super().fairseq_orders(words, config)
        orders = (
            self._fairseq_order(words.source, config, config["vocab_size"]),
            self._fairseq_order(words.target, config, self.target_rows(config)),
        )
        return {f"{side}.": order for side, order in zip(SIDES, orders, strict=True)}

    def fairseq_files(
        self, words: Vocabulary | PairVocabulary, orders: dict[str, list[int | None]]
    ) -> tuple[dict[str, str | bytes], list[str]]:
        if not isinstance(words, PairVocabulary):
            return super().fairseq_files(words, orders)
        files, notes = {}, []
        for language, side, of_side in zip(LANGUAGES, SIDES, (words.source, words.target), strict=True):
            written, said = self.files_of(of_side, orders[f"{side}."], [f"dict.{language}.txt"])
            files = written | files  # a symbol that only the source's vocabulary has is a symbol for both
            notes += [f"{language}: {note}" for note in said]
        return files, notes

    def shapes(self, config: dict) -> dict[str, tuple[int, ...]]:
        rows, tied = self.target_rows(config), self.tied_embeddings(config)
        of_targets = {tied.get(name, name): (rows, config["d_model"]) for name in UNTIED[1:]}
        return super().shapes(config) | of_targets | {"final_logits_bias": (1, rows)}

    def normalize(self, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
        bias = tensors.get("final_logits_bias", torch.zeros(1, self.target_rows(config)))
        others = {name: tensor for name, tensor in tensors.items() if name != "final_logits_bias"}
        # without _SHARED transformers does not read it
        unread = [] if config[_SHARED] else [name for name in others if name.endswith("shared.weight")]
        left_out = {name: others.pop(name) for name in unread}
        return super().normalize(others, config) | left_out | {"final_logits_bias": bias}

    def to_fairseq(self, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
        return super().to_fairseq(tensors, config) | {OUTPUT_BIAS: tensors["final_logits_bias"].flatten()}

    def options_of_tensors(self, tensors: dict[str, Tensor], config: dict) -> dict:
        is_shared = super().options_of_tensors(tensors, config)["tie_word_embeddings"]
        is_tied = self.is_read_by_decoder(tensors[_OUTPUT], tensors, config)
        # Of two vocabularies each has its own, even if they are equal.
        return {"tie_word_embeddings": is_tied, _SHARED: is_shared and "decoder_vocab_size" not in config}

    def from_fairseq(self, tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
        others = {name: tensor for name, tensor in tensors.items() if name != OUTPUT_BIAS}
        renamed = super().from_fairseq(others, config) | {"final_logits_bias": tensors[OUTPUT_BIAS][None]}
        if not config[_SHARED]:
            del renamed["model.shared.weight"]
        return renamed

    def notes_of_tensors(self, tensors: dict[str, Tensor]) -> list[str]:
        if not any(name.endswith(POSITIONS) for name in tensors):
            return []
        return [
            "training has changed the positions, which were sines: transformers reads them from this folder, and its "
            "save_pretrained leaves them out"
        ]


def _read_target(folder: Path, source: PieceVocabulary) -> PieceVocabulary:
    """The vocabulary of the targets of a folder with two.

    Raises:
        UserError: it cannot be used, or does not have the special tokens of the source's in their places.
    """
    path = folder / TARGET_VOCAB_JSON
    rows = read_ids(path)
    tokens = {row: token for token, row in rows.items()}
    if len(tokens) < len(rows):
        raise UserError(f"{path} has two tokens of the same number: copy it again")
    for token in source.special:
        row = source.rows[token]
        if rows.get(token, row) != row or tokens.get(row, token) != token:
            raise UserError(
                f"{path} does not have {token!r} where {VOCAB_JSON} has it, as number {row}, and a special token has "
                "one number: copy both again"
            )
    return replace(source, rows=rows, files={TARGET_VOCAB_JSON: read_text(path)})


MARIAN = MarianFamily()
