"""What attention layers remember while decoding. A memory makes its own masks and knows its own size.

Two lifetimes: a `SentenceMemory` belongs to a sentence and is shared by its hypotheses (the encoder's output, a
prompt); a `GrowingMemory` or `FixedMemory` belongs to a hypothesis. What their tensors are, keys and values or hidden
states, is for the decoding method to know. No gradient flows through a memory.

Shapes: B sentences, N hypotheses (those of a sentence stand together), S positions, T of them appended last, C
positions of room. The tensors of a memory are [B or N, ..., S, width].
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from elseq.attention.kernels.reorder import reorder_in_place
from elseq.attention.multi_head import causal_mask

if TYPE_CHECKING:
    from elseq.attention.methods import DecodingMethod
    from elseq.attention.module import Attention

# Buffers grow by this many positions at a time.
GROWTH = 8


class Stretch(NamedTuple):
    """Positions that stand together in memory."""

    tensors: tuple[Tensor, ...]
    mask: Tensor | None = None  # bool [B or 1, T or 1, S]: True is not attended to
    bias: Tensor | None = None  # added to the scores; see `Segment`


class SentenceMemory:
    """Of a sentence, shared by its hypotheses: never copied for a beam, never reordered by one."""

    def __init__(self, method: DecodingMethod, tensors: Iterable[Tensor], mask: Tensor | None = None):
        """
        Args:
            method: how it is attended to.
            tensors: what the method keeps of the positions. They are the memory's own from now on.
            mask: bool [B, S], True at padding, or None where there is none.
        """
        self.method = method
        self.tensors = method.lay_out(tuple(tensors))
        self.mask = mask

    def attend(self, attention: Attention, hidden: Tensor, query: Tensor, **options) -> tuple[Tensor, Tensor | None]:
        """Attention of the layer to this memory; the query was made of `hidden`. See `DecodingMethod.attend`."""
        return self.method.attend(attention, query, self.read(), **options)

    def read(self) -> list[Stretch]:
        """One stretch."""
        return [Stretch(self.tensors, None if self.mask is None else self.mask.unsqueeze(1))]

    @torch.no_grad()
    def keep(self, sentences: Tensor) -> None:
        """Keep these sentences, int64 [B'], in this order. They move up; the room of the others stays unused."""
        self.tensors = tuple(_move_up(tensor, sentences) for tensor in self.tensors)
        if self.mask is not None:
            self.mask = self.mask.index_select(0, sentences)

    def size_bytes(self) -> int:
        """Bytes of the sentences kept; the mask, a byte a position, is not counted."""
        return sum(tensor.nbytes for tensor in self.tensors)


def _move_up(tensor: Tensor, rows: Tensor) -> Tensor:
    selected = tensor.index_select(0, rows)
    if len(rows) > len(tensor):  # fairseq's protocol lets sentences be repeated
        return selected
    return tensor[: len(rows)].copy_(selected)


class GrowingMemory:
    """Of a hypothesis: some positions more at every step, or the last of them if attention has a window."""

    def __init__(self, window: int | None = None):
        """
        Args:
            window: a position sees itself and the window - 1 before it. Default: all before it.
        """
        self.window = window
        self.total = 0  # positions appended
        self.newest = 0  # of these, by the last call
        self.length = 0  # positions in the buffers
        self._buffers: tuple[Tensor, ...] = ()

    def append(self, *new: Tensor) -> None:
        """Add T positions: tensors [N, ..., T, width]."""
        added = new[0].size(-2)
        if not self._buffers or self.length + added > self._buffers[0].size(-2):
            self._make_room(new)
        for buffer, tensor in zip(self._buffers, new, strict=True):
            buffer[..., self.length : self.length + added, :] = tensor
        self.length += added
        self.total += added
        self.newest = added

    def _make_room(self, new: tuple[Tensor, ...]) -> None:
        """New buffers, without what no later position will see."""
        seen = self.tensors()
        self.length -= self._first_seen()
        capacity = -(-(self.length + new[0].size(-2)) // GROWTH) * GROWTH
        self._buffers = tuple(tensor.new_empty(*tensor.shape[:-2], capacity, tensor.size(-1)) for tensor in new)
        for buffer, tensor in zip(self._buffers, seen, strict=False):  # nothing is seen at first
            buffer[..., : self.length, :] = tensor

    def _first_seen(self) -> int:
        return 0 if self.window is None else max(0, self.length - self.newest - self.window + 1)

    def tensors(self) -> tuple[Tensor, ...]:
        """All positions that the newest see, as `append` was given them."""
        return tuple(buffer[..., self._first_seen() : self.length, :] for buffer in self._buffers)

    def read(self) -> list[Stretch]:
        """One stretch; of the newest positions each sees itself and what is before it."""
        tensors = self.tensors()
        return [Stretch(tensors, causal_mask(self.newest, tensors[0].size(-2), self.window, tensors[0].device))]

    @torch.no_grad()
    def reorder(self, order: Tensor, spare: Tensor | None = None) -> Tensor | None:
        """Hypothesis n continues hypothesis order[n], int64 [N'].

        Args:
            order: of the hypotheses.
            spare: a tensor that is no longer needed, to be written over if it has the right shape.

        Returns:
            Another such tensor. Memory that was just in use is much faster to write to than fresh memory.
        """
        buffers = []
        for buffer in self._buffers:
            shape = (order.numel(), *buffer.shape[1:])
            target = spare if spare is not None and spare.shape == shape else buffer.new_empty(shape)
            buffers.append(torch.index_select(buffer, 0, order, out=target))
            spare = buffer
        self._buffers = tuple(buffers)
        return spare

    def size_bytes(self) -> int:
        """Bytes of the buffers, room to grow included."""
        return sum(buffer.nbytes for buffer in self._buffers)


class Cursor:
    """The position that the next token takes. It is kept on the device: a replayed step moves it there."""

    def __init__(self, position: int, capacity: int, device: torch.device):
        """
        Args:
            position: of the next token.
            capacity: C, the number of positions that there are.
            device: of the memory.
        """
        self.position = torch.tensor([position], device=device)  # [1]
        self.ahead = torch.empty(1, 1, capacity, dtype=torch.bool, device=device)  # true at positions not yet taken
        self._positions = torch.arange(capacity, device=device).view(1, 1, -1)

    def begin(self) -> None:
        """A token is about to be read: it may see itself and what is before it."""
        torch.gt(self._positions, self.position, out=self.ahead)

    def end(self) -> None:
        """All layers have read the token."""
        self.position += 1


class FixedMemory:
    """As `GrowingMemory`, for one token at a time and without a window, in buffers that never move, so that a CUDA
    graph can replay a decoding step.

    It reads all positions that there are, and a mask that hides those not yet taken.
    """

    def __init__(self, tensors: tuple[Tensor, ...], length: int, capacity: int, cursor: Cursor, beam: int):
        """
        Args:
            tensors: as `GrowingMemory.append` is given them, with room for S positions.
            length: how many of these positions are taken.
            capacity: C, at least as many.
            cursor: what all layers of a decoder share.
            beam: hypotheses of each sentence, which stand together.
        """
        self.cursor = cursor
        self.beam = beam
        self._buffers = tuple(self._with_room(tensor[..., :length, :], capacity) for tensor in tensors)

    @staticmethod
    def _with_room(tensor: Tensor, capacity: int) -> Tensor:
        # Positions not yet taken have the weight zero, and zero times whatever was in the memory may be no number.
        buffer = tensor.new_zeros(*tensor.shape[:-2], capacity, tensor.size(-1))
        buffer[..., : tensor.size(-2), :] = tensor
        return buffer

    def append(self, *new: Tensor) -> None:
        """Write a position: tensors [N, ..., 1, width]."""
        for buffer, tensor in zip(self._buffers, new, strict=True):
            buffer.index_copy_(-2, self.cursor.position, tensor)

    def tensors(self) -> tuple[Tensor, ...]:
        """All positions, those not yet taken among them."""
        return self._buffers

    def read(self) -> list[Stretch]:
        """One stretch, [.., C, width], and the mask [1, 1, C] of the positions not yet taken."""
        return [Stretch(self._buffers, self.cursor.ahead)]

    @torch.no_grad()
    def reorder(self, order: Tensor, spare: Tensor | None = None) -> Tensor | None:
        """Hypothesis n continues hypothesis order[n], int64 [N], of its own sentence; `spare` comes back unused."""
        for buffer in self._buffers:
            reorder_in_place(buffer, order, self.beam, self.cursor.position)
        return spare

    def size_bytes(self) -> int:
        """Bytes of the buffers, room to grow included."""
        return sum(buffer.nbytes for buffer in self._buffers)


class SelfAttentionMemory:
    """A prompt that the hypotheses of a sentence share, if there is one, and what each has generated."""

    def __init__(self, method: DecodingMethod, window: int | None = None):
        """
        Args:
            method: what is kept and how it is attended to.
            window: as for `GrowingMemory`.
        """
        self.method = method
        self.window = window
        self.prompt: SentenceMemory | None = None
        self.generated: GrowingMemory | FixedMemory = GrowingMemory(window)

    def attend(self, attention: Attention, hidden: Tensor, query: Tensor, **options) -> tuple[Tensor, Tensor | None]:
        """Append the positions `hidden` [T, N, D], then self-attention of the layer. See `DecodingMethod.attend`."""
        kept = self.method.keep(attention, hidden)
        is_first = self.is_empty() and len(hidden) > 1
        self.append(*kept)
        if is_first:
            return self.method.attend_first(attention, query, hidden, kept, **options)
        return self.method.attend(attention, query, self.read(), **options)

    def append(self, *new: Tensor) -> None:
        self.generated.append(*new)

    def end_prompt(self, mask: Tensor | None) -> None:
        """Declare what was appended so far, one row a sentence, the prompt. mask: bool [B, S], True at padding."""
        self.prompt = SentenceMemory(self.method, self.generated.tensors(), mask)
        self.generated = GrowingMemory(self.window)

    def fix(self, length: int, capacity: int, cursor: Cursor, beam: int, hypotheses: Tensor | None) -> None:
        """See `DecodeState.fix`; `length` positions were generated."""
        tensors = self.generated.tensors()
        if hypotheses is not None:
            tensors = tuple(tensor.index_select(0, hypotheses) for tensor in tensors)
        self.generated = FixedMemory(tensors, length, capacity, cursor, beam)

    def is_empty(self) -> bool:
        return self.prompt is None and not self.generated.tensors()

    def read(self) -> list[Stretch]:
        """In the order of the text."""
        if self.prompt is None:
            return self.generated.read()
        [prompt] = self.prompt.read()
        if self.window is not None:
            beyond = self._beyond_window(prompt)
            prompt = prompt._replace(mask=beyond if prompt.mask is None else prompt.mask | beyond)
        return [prompt, *self.generated.read()]

    def _beyond_window(self, prompt: Stretch) -> Tensor:
        """Positions of the prompt, [B or 1, S], that the newest positions no longer see: bool [B or 1, T, S]."""
        length, device = prompt.tensors[0].size(-2), prompt.tensors[0].device
        ends = torch.tensor([[length]], device=device) if prompt.mask is None else (~prompt.mask).sum(dim=2)
        newest = torch.arange(self.generated.total - self.generated.newest, self.generated.total, device=device)
        first_seen = ends + newest - self.window + 1
        return torch.arange(length, device=device) < first_seen.unsqueeze(2)
