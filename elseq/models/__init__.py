"""fairseq models built from `elseq.attention`. Importing this package registers them and their architectures."""

from elseq.models.bart import ElseqBARTModel
from elseq.models.transformer import Decoder, ElseqTransformerModel, Encoder
from elseq.models.transformer_lm import ElseqTransformerLanguageModel

from elseq.models import architectures  # isort: skip  # registers names for the models above

__all__ = [
    "Decoder",
    "ElseqBARTModel",
    "ElseqTransformerLanguageModel",
    "ElseqTransformerModel",
    "Encoder",
    "architectures",
]
