"""What attention layers remember while decoding. A memory makes its own masks and knows its own size.

Two lifetimes: a `SentenceMemory` belongs to a sentence and is shared by its hypotheses (the encoder's output, a
prompt); a `GrowingMemory` or `FixedMemory` belongs to a hypothesis. The decoding method decides what the tensors are:
keys and values, or hidden states. No gradient flows through a memory.

Shapes: B sentences, N hypotheses (those of a sentence are adjacent), S positions, T of them appended last, C positions
of capacity. The tensors of a memory are [B or N, ..., S, width].
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from elseq.attention.ancestry import Ancestry, move_rows
from elseq.attention.kernels.reorder import reorder_in_place
from elseq.attention.multi_head import causal_mask

if TYPE_CHECKING:
    from elseq.attention.methods import DecodingMethod
    from elseq.attention.module import Attention

# Buffers grow by this many positions at a time.
GROWTH = 8
# Memory of sentences that leave is given up in so many parts, each of which is copied as a whole.
PARTS = 8


def room_for(positions: int, window: int | None = None, together: int = 1) -> int:
    """The positions of the buffers of a memory after so many.

    Args:
        positions: appended.
        window: as for `GrowingMemory`.
        together: how many are appended at a time.
    """
    held = positions if window is None else min(positions, window + together)
    return -(-held // GROWTH) * GROWTH


class Stretch(NamedTuple):
    """Consecutive positions in one memory.

    Where reordering moves no hypothesis, `rows` or `ancestry` tells where its positions are. `read` returns them to
    those only that asked for it: `DecodingMethod.has_cpu_kernel`, `DecodingMethod.has_step_kernel`.
    """

    tensors: tuple[Tensor, ...]
    mask: Tensor | None = None  # bool [B or 1, T or 1, S], True at positions that are not attended to
    ancestry: Ancestry | None = None
    rows: Tensor | None = None  # int64 [N, P], P <= S: hypothesis n has position s in row rows[n, s], or n from P on


class SentenceMemory:
    """The memory of a sentence, shared by its hypotheses. It is never copied for the beam and never reordered."""

    def __init__(self, method: DecodingMethod, tensors: Iterable[Tensor], mask: Tensor | None = None):
        """
        Args:
            method: computes the attention to this memory.
            tensors: what the method keeps of the positions, rounded by `DecodingMethod.rounded`. The memory owns them
                from now on.
            mask: bool [B, S], True at padding, or None without padding.
        """
        self.method = method
        self.tensors = method.lay_out(tuple(tensors))
        # It is laid out as the tokens are, and a kernel reads rows of it.
        self.mask = None if mask is None else mask.contiguous()

    def attend(self, attention: Attention, hidden: Tensor, query: Tensor, **options) -> tuple[Tensor, Tensor | None]:
        """Attention of a layer to this memory. `query` is the projection of `hidden`. See `DecodingMethod.attend`."""
        return self.method.attend(attention, query, self.read(), **options)

    def read(self) -> list[Stretch]:
        """All positions, as one stretch."""
        return [Stretch(self.tensors, None if self.mask is None else self.mask.unsqueeze(1))]

    @torch.no_grad()
    def keep(self, sentences: Tensor) -> None:
        """Keep these sentences, int64 [B'], in this order. They move to the front of the buffer."""
        if len(sentences) > len(self.tensors[0]):  # fairseq's protocol may repeat sentences
            self.tensors = self.method.lay_out(tuple(tensor.index_select(0, sentences) for tensor in self.tensors))
        else:
            for tensor in self.tensors:
                for part in tensor.split(max(1, -(-tensor.size(1) // PARTS)), dim=1):
                    part[: len(sentences)] = part.index_select(0, sentences)
            self.tensors = tuple(tensor[: len(sentences)] for tensor in self.tensors)
        if self.mask is not None:
            self.mask = self.mask.index_select(0, sentences)

    def empty(self, sentences: int, length: int) -> SentenceMemory:
        """A memory of the same kind, with room for so many sentences and positions, for `load`."""
        shapes = [(sentences, *tensor.shape[1:-2], length, tensor.size(-1)) for tensor in self.tensors]
        tensors = (tensor.new_zeros(shape) for tensor, shape in zip(self.tensors, shapes, strict=True))
        return SentenceMemory(self.method, tensors, self.tensors[0].new_ones(sentences, length, dtype=torch.bool))

    def narrow(self, sentences: int) -> SentenceMemory:
        """The memory of the first sentences, in the same place. The mask must be there."""
        found = copy.copy(self)
        found.tensors, found.mask = tuple(tensor[:sentences] for tensor in self.tensors), self.mask[:sentences]
        return found

    @torch.no_grad()
    def load(self, other: SentenceMemory) -> None:
        """Overwrite with the memory of as many sentences and positions, or fewer. The mask hides the rest."""
        sentences, length = len(other.tensors[0]), other.tensors[0].size(-2)
        for tensor, loaded in zip(self.tensors, other.tensors, strict=True):
            _overwrite(tensor, loaded, length)
        self.mask[:sentences, :length] = False if other.mask is None else other.mask
        self.mask[:sentences, length:] = True
        self.mask[sentences:] = True
        self.mask[sentences:, 0] = False  # an empty softmax is NaN

    def size_bytes(self) -> int:
        """Bytes of the sentences kept, without the mask (one byte per position)."""
        return sum(tensor.nbytes for tensor in self.tensors)


def _overwrite(buffer: Tensor, rows: Tensor, length: int) -> None:
    """With rows [N', ..., S', width] and, behind them, zeros: what was there may have been no number."""
    buffer[: len(rows), ..., :length, :] = rows
    buffer[: len(rows), ..., length:, :] = 0
    buffer[len(rows) :] = 0


class GrowingMemory:
    """The memory of a hypothesis. It grows at every step; with a window it keeps the last positions only."""

    def __init__(self, window: int | None = None):
        """
        Args:
            window: a position sees itself and the window - 1 before it. Default: all before it.
        """
        self.window = window
        self.total = 0  # positions appended
        self.newest = 0  # positions appended by the last call
        self.length = 0  # positions in the buffers
        self.buffers: tuple[Tensor, ...] = ()
        # int64 [N, P]: hypothesis n has position s in row rows[n, s] of the buffers, or in row n from P on.
        self._rows: Tensor | None = None
        self._read_unmoved = False

    def append(self, *new: Tensor) -> None:
        """Add T positions: tensors [N, ..., T, width]."""
        self.reserve(*new)
        for buffer, tensor in zip(self.buffers, new, strict=True):
            buffer[: len(tensor), ..., self.length - self.newest : self.length, :] = tensor

    def reserve(self, *new: Tensor) -> None:
        """Add T positions of these shapes, [N, ..., T, width], whose numbers are written later."""
        added = new[0].size(-2)
        if not self.buffers or self.length + added > self.buffers[0].size(-2):
            self._make_room(new)
        self.length += added
        self.total += added
        self.newest = added

    def _make_room(self, new: tuple[Tensor, ...]) -> None:
        """Allocate larger buffers, without the positions that no later position attends to."""
        if self._rows is not None and len(self._rows) < len(self.buffers[0]):
            self._move_rows()
        first, end = self._first_seen(), self.length
        if self._rows is not None:
            self._rows = self._rows[:, first:]
        self.length -= first
        capacity = room_for(self.length + new[0].size(-2))

        def larger(buffer: Tensor) -> Tensor:
            room = buffer.new_empty(*buffer.shape[:-2], capacity, buffer.size(-1))
            room[..., : self.length, :] = buffer[..., first:end, :]
            return room

        self.buffers = self.buffers or new  # of which nothing is copied yet
        self._replace(larger)

    def _replace(self, make: Callable[[Tensor], Tensor]) -> None:
        """Make other buffers of these, one after the other: only one is in memory twice."""
        buffers, self.buffers = list(self.buffers), ()
        for number in range(len(buffers)):
            buffers[number] = make(buffers[number])
        self.buffers = tuple(buffers)

    def _first_seen(self) -> int:
        return 0 if self.window is None else max(0, self.length - self.newest - self.window + 1)

    def _seen(self) -> tuple[Tensor, ...]:
        return tuple(buffer[..., self._first_seen() : self.length, :] for buffer in self.buffers)

    def tensors(self) -> tuple[Tensor, ...]:
        """All positions that the newest ones attend to, in the format of `append`."""
        if self._rows is not None:
            self._move_rows()
        return self._seen()

    def read(self) -> list[Stretch]:
        """One stretch. Each of the newest positions attends to itself and to the positions before it."""
        tensors = self.tensors()
        return [Stretch(tensors, causal_mask(self.newest, tensors[0].size(-2), self.window, tensors[0].device))]

    def read_unmoved(self) -> Stretch:
        """As `read`, for one newest position, of buffers that `reorder` does not move any more until `read` is called:
        one stretch with its `rows`."""
        self._read_unmoved = True
        hypotheses = len(self.buffers[0])
        rows = self._rows
        if rows is None:
            rows = self.buffers[0].new_empty(hypotheses, 0, dtype=torch.long)
        return Stretch(self._seen(), rows=rows[:, self._first_seen() :])

    @torch.no_grad()
    def reorder(self, order: Tensor, spare: Tensor | None = None) -> Tensor | None:
        """Hypothesis n continues hypothesis order[n], int64 [N'].

        Args:
            order: the hypothesis that each new hypothesis continues.
            spare: an unused tensor, which is overwritten if it has the right shape.

        Returns:
            Another unused tensor of that shape, or None. Writing to recently used memory is much faster than writing to
            new memory.
        """
        if self._read_unmoved and len(order) <= len(self.buffers[0]):
            before = order.new_empty(len(self.buffers[0]), 0) if self._rows is None else self._rows
            others = order.unsqueeze(1).expand(-1, self.length - before.size(1))
            self._rows = torch.cat((before.index_select(0, order), others), dim=1)
            return spare
        self.tensors()

        def reordered(buffer: Tensor) -> Tensor:
            nonlocal spare
            shape = (order.numel(), *buffer.shape[1:])
            if spare is None or spare.shape != shape:
                spare = None
                spare = buffer.new_empty(shape)
            target, spare = spare, buffer if buffer.shape == shape else None
            return torch.index_select(buffer, 0, order, out=target)

        self._replace(reordered)
        return spare

    @torch.no_grad()
    def _move_rows(self) -> None:
        """Every hypothesis gets a row of its own."""
        rows, self._rows, self._read_unmoved = self._rows, None, False
        capacity = self.buffers[0].size(-2)
        own = torch.arange(len(rows), device=rows.device).unsqueeze(1).expand(-1, capacity - rows.size(1))
        rows = torch.cat((rows, own), dim=1)
        self._replace(lambda buffer: move_rows(buffer, rows))

    def size_bytes(self) -> int:
        """Bytes of the buffers, room to grow included."""
        return sum(buffer.nbytes for buffer in self.buffers)


class Cursor:
    """What the layers have in common of buffers of fixed addresses: the position of the next token, which is stored on
    the device, where a replayed step increments it, and where the positions of the hypotheses are."""

    def __init__(self, position: int, capacity: int, device: torch.device, ancestry: Ancestry | None = None):
        """
        Args:
            position: of the next token.
            capacity: C, the number of positions in the buffers.
            device: of the memory.
            ancestry: by which they are found. Default: each hypothesis has a row of its own, and reordering moves it.
        """
        self.ancestry = ancestry
        self.position = torch.full((1,), position, device=device)
        self.ahead = torch.empty(1, 1, capacity, dtype=torch.bool, device=device)  # True at unused positions
        self._positions = torch.arange(capacity, device=device).view(1, 1, -1)

    def begin(self) -> None:
        """Start a token: it may attend to itself and to the positions before it."""
        torch.gt(self._positions, self.position, out=self.ahead)

    def end(self) -> None:
        """All layers have processed the token."""
        self.position += 1

    def reorder(self, order: Tensor) -> None:
        """Hypothesis n continues hypothesis order[n], int64 [N], of its own sentence: as far as nothing is moved."""
        if self.ancestry is not None:
            self.ancestry.reorder(order, self.position)

    def narrow(self, hypotheses: int) -> Cursor:
        """For the first hypotheses, in the same place."""
        found = copy.copy(self)
        found.ancestry = None if self.ancestry is None else self.ancestry.narrow(hypotheses)
        return found


class FixedMemory:
    """As `GrowingMemory`, for one token at a time and without a window. Its buffers never move, so that a CUDA graph
    can replay a decoding step.

    `read` returns all positions of the buffers, and a mask that hides the unused ones. If the cursor has an ancestry,
    that alone is reordered, and tells where they are.
    """

    def __init__(self, tensors: tuple[Tensor, ...], length: int, capacity: int, cursor: Cursor, beam: int):
        """
        Args:
            tensors: S positions, in the format of `GrowingMemory.append`.
            length: number of these positions that are used.
            capacity: C, at least `length`.
            cursor: the cursor that all layers of the decoder share.
            beam: hypotheses of each sentence, which are adjacent.
        """
        self.cursor = cursor
        self.beam = beam
        self.buffers = tuple(self._with_room(tensor[..., :length, :], capacity) for tensor in tensors)

    @staticmethod
    def _with_room(tensor: Tensor, capacity: int) -> Tensor:
        # Unused positions have the weight zero, and zero times uninitialized memory may be NaN.
        buffer = tensor.new_zeros(*tensor.shape[:-2], capacity, tensor.size(-1))
        buffer[..., : tensor.size(-2), :] = tensor
        return buffer

    @classmethod
    def empty(cls, like: tuple[Tensor, ...], hypotheses: int, capacity: int, cursor: Cursor, beam: int) -> FixedMemory:
        """Room for so many hypotheses, for `load`. like: tensors in the format of `append`."""
        shapes = [(hypotheses, *tensor.shape[1:-2], 0, tensor.size(-1)) for tensor in like]
        tensors = tuple(tensor.new_empty(shape) for tensor, shape in zip(like, shapes, strict=True))
        return cls(tensors, 0, capacity, cursor, beam)

    def narrow(self, hypotheses: int, cursor: Cursor) -> FixedMemory:
        """The memory of the first hypotheses, in the same place, with a cursor of its own for them."""
        found = copy.copy(self)
        found.cursor = cursor
        found.buffers = tuple(buffer[:hypotheses] for buffer in self.buffers)
        return found

    @torch.no_grad()
    def load(self, tensors: tuple[Tensor, ...], length: int, hypotheses: Tensor | None) -> None:
        """Overwrite with the first positions of as many hypotheses, or fewer.

        Args:
            tensors: in the format of `append`.
            length: number of positions.
            hypotheses: int64 [N'], those to load, in this order. Default: all.
        """
        for buffer, tensor in zip(self.buffers, tensors, strict=True):
            used = tensor[..., :length, :]
            _overwrite(buffer, used if hypotheses is None else used.index_select(0, hypotheses), length)

    def append(self, *new: Tensor) -> None:
        """Write one position: tensors [N, ..., 1, width]."""
        for buffer, tensor in zip(self.buffers, new, strict=True):
            buffer.index_copy_(-2, self.cursor.position, tensor)

    def tensors(self) -> tuple[Tensor, ...]:
        """All positions, including the unused ones, in the format of `append`."""
        ancestry = self.cursor.ancestry
        return self.buffers if ancestry is None else tuple(map(ancestry.move, self.buffers))

    def read(self) -> list[Stretch]:
        """One stretch, [.., C, width], with the mask [1, 1, C] of the unused positions, and the cursor's ancestry."""
        return [Stretch(self.buffers, self.cursor.ahead, self.cursor.ancestry)]

    @torch.no_grad()
    def reorder(self, order: Tensor, spare: Tensor | None = None) -> Tensor | None:
        """Hypothesis n continues hypothesis order[n], int64 [N], of its own sentence: what the cursor's own `reorder`
        leaves to do. Returns `spare` unused."""
        if self.cursor.ancestry is None:
            for buffer in self.buffers:
                reorder_in_place(buffer, order, self.beam, self.cursor.position)
        return spare

    def size_bytes(self) -> int:
        """Bytes of the buffers, room to grow included."""
        return sum(buffer.nbytes for buffer in self.buffers)


class SelfAttentionMemory:
    """An optional prompt, shared by the hypotheses of a sentence, and the generated tokens of each hypothesis."""

    def __init__(self, method: DecodingMethod, attention: Attention | None = None):
        """
        Args:
            method: defines what is kept, and computes the attention to it.
            attention: the layer that attends. Default: any without a window; in buffers of fixed addresses hypotheses
                are then moved.
        """
        self._attention = attention
        self.method = method
        self.window = None if attention is None else attention.window
        self.prompt: SentenceMemory | None = None
        self.generated: GrowingMemory | FixedMemory = GrowingMemory(self.window)

    def attend(self, attention: Attention, hidden: Tensor, query: Tensor, **options) -> tuple[Tensor, Tensor | None]:
        """Append the positions `hidden` [T, N, D], then compute self-attention. See `DecodingMethod.attend`."""
        kept = self.method.keep(attention, hidden)
        is_first = len(hidden) > 1 and self.is_empty()
        self.append(*kept)
        if is_first:
            return self.method.attend_first(attention, query, hidden, kept, **options)
        if isinstance(self.generated, GrowingMemory) and self.method.has_cpu_kernel(query, **options):
            stretches = [*self._read_prompt(), self.generated.read_unmoved()]
            return self.method.attend(attention, query, stretches, **options)
        return self.method.attend(attention, query, self.read(), **options)

    def append(self, *new: Tensor) -> None:
        self.generated.append(*new)

    def end_prompt(self, mask: Tensor | None, round_to: torch.dtype | None = None) -> None:
        """Make the positions so far, one row per sentence, the prompt.

        Args:
            mask: bool [B, S], True at padding, or None.
            round_to: see `DecodingMethod.rounded`.
        """
        self.prompt = SentenceMemory(self.method, self.method.rounded(self.generated.tensors(), round_to), mask)
        self.generated = GrowingMemory(self.window)

    def reads_by(self, ancestry: Ancestry) -> bool:
        """Whether attention is to find the generated positions by an ancestry, in buffers of fixed addresses."""
        attention = self._attention
        if attention is None or attention.top_k is not None or ancestry.beam == 1:
            return False
        sizes = attention.sizes, next(attention.parameters()), *ancestry.rows.shape
        return self.method.has_step_kernel(*sizes, ancestry, self._read_prompt())

    def fix(self, length: int, capacity: int, cursor: Cursor, beam: int, hypotheses: Tensor | None) -> None:
        """See `DecodeState.fix`. `length` is the number of generated positions."""
        tensors = self.generated.tensors()
        if hypotheses is not None:
            tensors = tuple(tensor.index_select(0, hypotheses) for tensor in tensors)
        self.generated = FixedMemory(tensors, length, capacity, cursor, beam)

    def is_empty(self) -> bool:
        return self.prompt is None and not self.generated.buffers

    def read(self) -> list[Stretch]:
        """The stretches, in the order of the text."""
        return [*self._read_prompt(), *self.generated.read()]

    def _read_prompt(self) -> list[Stretch]:
        if self.prompt is None:
            return []
        [prompt] = self.prompt.read()
        if self.window is not None:
            beyond = self._beyond_window(prompt)
            prompt = prompt._replace(mask=beyond if prompt.mask is None else prompt.mask | beyond)
        return [prompt]

    def _beyond_window(self, prompt: Stretch) -> Tensor:
        """Positions of the prompt, [B or 1, S], outside the window of the newest positions: bool [B or 1, T, S]."""
        length, device = prompt.tensors[0].size(-2), prompt.tensors[0].device
        ends = length if prompt.mask is None else (~prompt.mask).sum(dim=2)
        newest = torch.arange(self.generated.total - self.generated.newest, self.generated.total, device=device)[None]
        first_seen = ends + newest - self.window + 1
        return torch.arange(length, device=device) < first_seen.unsqueeze(2)
