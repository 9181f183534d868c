"""The interface of a decoding method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import elseq.native as native
from elseq.attention.kernels.decode_step import TYPES, computes_step
from elseq.attention.memory import SentenceMemory, Stretch
from elseq.attention.multi_head import Segment, multi_head_attention

if TYPE_CHECKING:
    from elseq.attention.ancestry import Ancestry
    from elseq.attention.module import Attention


@dataclass(frozen=True)
class AttentionSizes:
    """The sizes of an attention layer on which the cost of a method depends."""

    num_heads: int
    head_dim: int
    num_kv_heads: int
    memory_width: int  # width of the hidden states that are projected to keys and values


class DecodingMethod(ABC):
    """Defines what is kept of each position, how attention reads it, and what that costs.

    Shapes: N sequences, H heads, G key/value heads, T positions of the query, S of the memory, K width of a head, D
    width of the hidden states.
    """

    name: str
    help: str  # completes "how attention is evaluated while decoding: "
    shares_memory = False  # one memory of the source serves the cross-attention of all layers
    projects_memory = True  # keys and values of a source are projected once, not at every step
    tensors_kept = 1  # by `keep`, of the same size
    reads_rounded = False  # `attend` takes numbers of sentences in a narrower type than the query

    @abstractmethod
    def keep(self, attention: Attention, hidden: Tensor) -> tuple[Tensor, ...]:
        """What a layer keeps of hidden states [S, N, D]: tensors [N, ..., S, width]."""

    @abstractmethod
    def attend(
        self, attention: Attention, query: Tensor, memory: Sequence[Stretch], **options
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to what was kept.

        Args:
            attention: the layer that projected the query.
            query: [N, H, T, K], projected and scaled.
            memory: stretches of what `keep` returned. Their masks hide everything that is not attended to. `rows` and
                `ancestry` are in the last one only.
            options: top_k, query_chunk_size, dropout, need_weights; see `multi_head_attention`.

        Returns:
            [N, H, T, K], and the weights [N, H, T, S] or None.
        """

    def has_cpu_kernel(self, query: Tensor, shared: int = 0, **options) -> bool:
        """Whether `attend` is a kernel of a CPU in a decoding step. It finds the generated positions by `Stretch.rows`:
        hypotheses are then not moved when they are reordered.

        Args:
            query, options: as for `attend`.
            shared: positions of the sentence that it attends to, at least.
        """
        return False

    def has_step_kernel(
        self,
        sizes: AttentionSizes,
        like: Tensor,
        hypotheses: int,
        positions: int,
        ancestry: Ancestry | None = None,
        prompt: Sequence[Stretch] = (),
    ) -> bool:
        """Whether a GPU has a kernel for a step of self-attention in buffers of fixed addresses. It does not read the
        positions behind those that are attended to.

        Args:
            sizes: of the layer.
            like: a tensor of the type and on the device of what is kept.
            hypotheses, positions: of the buffers.
            ancestry: of the hypotheses. By it `attend` is to find their positions, which are then not moved when
                hypotheses are reordered. Default: each has a row of its own.
            prompt: what is attended to under the same softmax.
        """
        return False

    def attend_first(
        self, attention: Attention, query: Tensor, hidden: Tensor, kept: tuple[Tensor, ...], **options
    ) -> tuple[Tensor, Tensor | None]:
        """Causal self-attention of positions that nothing precedes, such as a prompt.

        By default keys and values are projected, which is faster for many queries.

        Args:
            hidden: the positions, [T, N, D].
            kept: what `keep` returned for them.
            attention, query, options: as for `attend`.
        """
        segment = Segment(*attention.keys_and_values(hidden))
        return multi_head_attention(query, [segment], causal=True, window=attention.window, **options)

    def lay_out(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The tensors that `keep` returned, in the layout that is fastest to read at every step."""
        return tuple(tensor.contiguous() for tensor in tensors)

    def rounded(self, tensors: Sequence[Tensor], to: torch.dtype | None) -> tuple[Tensor, ...]:
        """Round the tensors that `keep` returned for a source or a prompt to a narrower type, if the method
        `reads_rounded`. They need not be stored in that type.

        Args:
            tensors: what `keep` returned.
            to: the type; None: their own.
        """
        if to is None or not self.reads_rounded:
            return tuple(tensors)
        return tuple(tensor.to(to).to(self.dtype_kept(tensor.dtype, to)) for tensor in tensors)

    def dtype_kept(self, dtype: torch.dtype, round_to: torch.dtype | None) -> torch.dtype:
        """The type of the tensors that `rounded` returns for tensors of a type."""
        # Without the kernels, every step would have to convert what it reads.
        is_narrow = self.reads_rounded and round_to in TYPES and native.library() is not None
        return round_to if is_narrow else dtype

    def memories(
        self, attentions: Sequence[Attention], hidden: Tensor, mask: Tensor | None, round_to: torch.dtype | None = None
    ) -> list[SentenceMemory]:
        """The memory of a source for the cross-attention of each layer.

        Args:
            attentions: one per layer.
            hidden: the encoder's output, [S, B, D]: B sentences.
            mask: bool [B, S], True at padding, or None.
            round_to: see `rounded`.
        """
        found = []
        for attention in attentions[:1] if self.shares_memory else attentions:
            found.append(SentenceMemory(self, self.rounded(self.keep(attention, hidden), round_to), mask))
        return found * len(attentions) if self.shares_memory else found

    @abstractmethod
    def numbers_kept(self, sizes: AttentionSizes) -> int:
        """How many numbers `keep` returns for a position."""

    @abstractmethod
    def operations(self, sizes: AttentionSizes) -> int:
        """Floating-point operations of a step per position: scores and weighted sums of all heads."""

    def bytes_of_cpu_kernel(self, sizes: AttentionSizes, hypotheses: int, positions: int, top_k: int | None) -> int:
        """What `attend` holds at a time where it `has_cpu_kernel`, besides query, memory and result, for so many
        positions of a sentence and of a hypothesis."""
        return 0

    @abstractmethod
    def numbers_of_step(self, sizes: AttentionSizes, shared: int, own: int) -> int:
        """The most numbers that `attend` holds at a time for the query of a hypothesis, besides query and memory: the
        expanded query, the scores, the result.

        Args:
            sizes: of the layer.
            shared, own: the positions of the sentence, and those of the hypothesis, that it attends to.
        """


def is_plain_step(query: Tensor, dropout: float = 0.0, need_weights: bool = False, **_) -> bool:
    """Whether the kernels of a CPU can attend in a decoding step; arguments: as for `DecodingMethod.attend`."""
    return not dropout and not need_weights and computes_step(query)
