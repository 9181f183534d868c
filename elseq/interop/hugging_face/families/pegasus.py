"""Pegasus: BART's layers with the norms first and a last one, sines as positions, and <pad> as decoding's start."""

from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer, normalizers

from elseq.errors import UserError
from elseq.interop.hugging_face.families.bart import NORMS_FIRST, BARTFamily
from elseq.interop.hugging_face.families.marian import Sinusoidal
from elseq.interop.hugging_face.options import shown
from elseq.interop.hugging_face.sentencepieces import Model, SentencepieceClass, normalizer, unigram
from elseq.interop.hugging_face.tokenizer import CLASSES, Affixes, set_affixes
from elseq.model_files import TOKENIZER_CONFIG

_OWN = 2  # symbols that the model of sentencepiece has first: <pad> and </s>
_OFFSET = 103  # added to the number of a piece; symbols of the pretraining come before the pieces
_MOST = 1000


class PegasusClass(SentencepieceClass):
    model_file = "spiece.model"
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask_2>"}

    def tokenizer(self, model: Model, named: Mapping[str, str | None], config: dict) -> Tokenizer:
        symbols = [named["pad_token"], named["eos_token"], *_of_pretraining(named["mask_token"], config)]
        pieces = [*((symbol, 0.0) for symbol in symbols), *model.pieces[_OWN:]]
        unknown = next((number for number, (piece, _) in enumerate(pieces) if piece == named["unk_token"]), None)
        if unknown is None:
            raise UserError(f"{self.model_file} has no piece {named['unk_token']!r}: copy it again")
        tokenizer = unigram(pieces, unknown)
        lines = [] if model.charsmap else [normalizers.Replace("\n", " ")]
        tokenizer.normalizer = normalizer(model.charsmap, *lines)
        return tokenizer

    def unnumbered(self, config: dict) -> Sequence[str | dict]:
        return _of_pretraining(None, config)

    def set_affixes(self, tokenizer: Tokenizer, named: Mapping[str, str | None], config: dict) -> None:
        set_affixes(tokenizer, Affixes([], [named["eos_token"]]))


def _of_pretraining(mask: str | None, config: dict) -> list[str]:
    """The symbols after <pad> and </s>: the masks of a sentence and of a word, and unused ones."""
    offset = config.get("offset", _OFFSET)
    if type(offset) is not int or not _OWN <= offset <= _MOST:
        raise UserError(
            f"{TOKENIZER_CONFIG} has offset: {shown(offset)}, where a whole number from {_OWN} to {_MOST} is needed"
        )
    masks = [config.get("mask_token_sent", "<mask_1>"), mask]
    return [symbol for symbol in masks if symbol is not None] + [f"<unk_{number}>" for number in range(_OWN, offset)]


CLASSES["PegasusTokenizer"] = PegasusClass()


class PegasusFamily(Sinusoidal):
    name = "pegasus"
    title = "Pegasus"
    model_class = "PegasusForConditionalGeneration"
    tokenizer_class = "PegasusTokenizer"
    has_final_norms = True
    saves_positions = True
    features = Sinusoidal.features | {"normalize_before": True, "add_final_layer_norm": True}
    required = Sinusoidal.required | NORMS_FIRST
    fixed_options = NORMS_FIRST
    defaults = BARTFamily.defaults | {
        "bos_token_id": None,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


PEGASUS = PegasusFamily()
