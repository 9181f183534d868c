"""`--bpe hugging_face`: the tokenizer of a converted model for fairseq's commands."""

from dataclasses import dataclass
from pathlib import Path

from fairseq.data.encoders import register_bpe
from fairseq.dataclass import FairseqDataclass

from elseq.models.config import option
from elseq.subwords.finding import read_converted


@dataclass
class HuggingFaceTokenizerConfig(FairseqDataclass):
    tokenizer_json: str = option(
        "tokenizer.json or vocab.json of a converted model, with the files that elseq-convert from-hf put beside", "???"
    )


@register_bpe("hugging_face", dataclass=HuggingFaceTokenizerConfig)
def _build(cfg):
    return read_converted(Path(cfg.tokenizer_json))
