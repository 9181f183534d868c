"""The mathematics: attention, decoding methods and decoding state. It does not import fairseq."""

from elseq.attention.memory import FixedMemory, GrowingMemory, SelfAttentionMemory, SentenceMemory
from elseq.attention.methods import METHODS, DecodingMethod, register
from elseq.attention.methods.el import el_attention
from elseq.attention.module import Attention
from elseq.attention.multi_head import Segment, multi_head_attention
from elseq.attention.state import DecodeState, LayerState
from elseq.attention.top_k import keep_largest, top_k_attention, top_k_feed_forward

__all__ = [
    "METHODS",
    "Attention",
    "DecodeState",
    "DecodingMethod",
    "FixedMemory",
    "GrowingMemory",
    "LayerState",
    "Segment",
    "SelfAttentionMemory",
    "SentenceMemory",
    "el_attention",
    "keep_largest",
    "multi_head_attention",
    "register",
    "top_k_attention",
    "top_k_feed_forward",
]
