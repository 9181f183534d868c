"""The mathematics: attention, its evaluations, and what it remembers while decoding. Nothing here knows of fairseq."""

from elseq.attention.el import el_attention
from elseq.attention.module import Attention
from elseq.attention.multi_head import Segment, multi_head_attention
from elseq.attention.state import (
    DecodePolicy,
    DecodeState,
    HypothesisState,
    LayerState,
    SelfAttentionState,
    SentenceState,
)
from elseq.attention.top_k import keep_largest, top_k_attention, top_k_feed_forward

__all__ = [
    "Attention",
    "DecodePolicy",
    "DecodeState",
    "HypothesisState",
    "LayerState",
    "Segment",
    "SelfAttentionState",
    "SentenceState",
    "el_attention",
    "keep_largest",
    "multi_head_attention",
    "top_k_attention",
    "top_k_feed_forward",
]
