"""`--bpe hugging_face`: the tokenizer of a converted model for fairseq's commands."""

from dataclasses import dataclass, field
from pathlib import Path

from fairseq.data.encoders import register_bpe
from fairseq.dataclass import FairseqDataclass

from elseq.subwords.base import Subwords
from elseq.subwords.pieces import NUMBERS, NumberedPieces
from elseq.subwords.tokens import read_tokens


@dataclass
class HuggingFaceTokenizerConfig(FairseqDataclass):
    tokenizer_json: str = field(
        default="???",
        metadata={
            "help": "tokenizer.json or vocab.json of a converted model, with the files that elseq-convert from-hf put "
            "beside"
        },
    )


def read_converted(path: Path) -> Subwords:
    """
    Args:
        path: tokenizer.json, or where there is none vocab.json, of a converted model.

    Raises:
        UserError: a file is missing or cannot be used.
    """
    return NumberedPieces(path.parent) if path.name == NUMBERS else read_tokens(path)


@register_bpe("hugging_face", dataclass=HuggingFaceTokenizerConfig)
def _build(cfg):
    return read_converted(Path(cfg.tokenizer_json))
