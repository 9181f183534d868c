"""BART: the Transformer with BART's initial values and classification heads."""

from fairseq.models import register_model
from fairseq.models.bart import BARTModel

from elseq.models.config import ElseqBARTConfig
from elseq.models.transformer import EncoderDecoderModel


@register_model("elseq_bart", dataclass=ElseqBARTConfig)
class ElseqBARTModel(EncoderDecoderModel, BARTModel):
    """BART (Lewis et al., 2019) that decodes with keys and values or with EL-attention."""
