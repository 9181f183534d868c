"""mBART, M2M-100 and NLLB."""

from elseq.interop.hugging_face.families.multilingual import tokenizers
from elseq.interop.hugging_face.families.multilingual.models import M2M100, MBART

__all__ = ["M2M100", "MBART", "tokenizers"]
