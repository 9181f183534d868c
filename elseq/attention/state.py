"""What a decoder remembers between steps.

Two lifetimes: a `SentenceState` belongs to a sentence and is shared by its hypotheses (the encoder's output, a prompt);
a `HypothesisState` belongs to a hypothesis and grows with it. Neither knows whether its tensors are keys and values
(two tensors) or hidden states (one, which serves as both): `evaluation` says so. No gradient flows through a memory.

Shapes: B sentences, N hypotheses (those of a sentence stand together), G key/value heads, S positions, K width of a
head, D width of the hidden states.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from elseq.attention.fixed_state import Cursor, FixedHypothesisState

Evaluation = Literal["kv", "el"]


class DecodePolicy(NamedTuple):
    """The evaluation of each kind of attention in a decoder."""

    self_attention: Evaluation
    cross_attention: Evaluation


# Buffers grow by this many positions at a time.
GROWTH = 8


class SentenceState:
    """Memory of a sentence, shared by its hypotheses: never copied for a beam, never reordered by one."""

    def __init__(self, evaluation: Evaluation, tensors: Iterable[Tensor], mask: Tensor | None = None):
        """
        Args:
            evaluation: what the tensors are.
            tensors: kv: keys and values, each [B, G, S, K]; el: hidden states [B, S, D]. They are the state's own from
                now on, and stored without gaps, since they are read at every step.
            mask: bool [B, S], True at padding, or None where there is none.
        """
        self.evaluation = evaluation
        if evaluation == "kv":
            keys, values = tensors
            # The product of a few queries with all keys reads them in this order.
            keys = keys.transpose(-1, -2).contiguous().transpose(-1, -2)
            self.tensors = keys, values.contiguous()
        else:
            self.tensors = tuple(tensor.contiguous() for tensor in tensors)
        self.mask = mask

    def read(self) -> list[tuple[tuple[Tensor, ...], Tensor | None]]:
        """One stretch of memory: its tensors, and its mask as [B, 1, S] or None."""
        return [(self.tensors, None if self.mask is None else self.mask.unsqueeze(1))]

    @classmethod
    @torch.no_grad()
    def of_layers(
        cls, projected: Iterable[tuple[Tensor, Tensor]], layers: int, mask: Tensor | None
    ) -> list["SentenceState"]:
        """States with keys and values for each of so many layers.

        They are in one block of memory. In many pieces they would not fit the holes that the encoder leaves in the
        heap, and the process would grow by what it has free.

        Args:
            projected: keys and values of each layer, each [B, G, S, K].
            layers: how many layers.
            mask: as for one state.
        """
        states = []
        block = None
        for layer, (keys, values) in enumerate(projected):
            if block is None:
                block = keys.new_empty(layers, 2, keys.numel())
            stored_keys = block[layer, 0].view(keys.transpose(-1, -2).shape).transpose(-1, -2)
            stored_values = block[layer, 1].view(values.shape)
            states.append(cls("kv", (stored_keys.copy_(keys), stored_values.copy_(values)), mask))
        return states

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


class HypothesisState:
    """Memory of a hypothesis: one position more at every step, or the last of them if attention has a window."""

    def __init__(self, evaluation: Evaluation, window: int | None = None):
        """
        Args:
            evaluation: what the tensors are.
            window: a position sees itself and the window - 1 before it. Default: all before it.
        """
        self.evaluation = evaluation
        self.window = window
        self.total = 0  # positions appended
        self.newest = 0  # of these, by the last call
        self.length = 0  # positions in the buffers
        self._buffers: tuple[Tensor, ...] = ()

    def append(self, *new: Tensor) -> None:
        """Add positions: keys and values, each [N, G, T, K], or hidden states [N, T, D]. T positions are added."""
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
        [(seen, _)] = self.read()
        self.length -= self._first_seen()
        capacity = -(-(self.length + new[0].size(-2)) // GROWTH) * GROWTH
        self._buffers = tuple(tensor.new_empty(*tensor.shape[:-2], capacity, tensor.size(-1)) for tensor in new)
        for buffer, tensor in zip(self._buffers, seen, strict=False):  # nothing is seen at first
            buffer[..., : self.length, :] = tensor

    def _first_seen(self) -> int:
        return 0 if self.window is None else max(0, self.length - self.newest - self.window + 1)

    def read(self) -> list[tuple[tuple[Tensor, ...], None]]:
        """One stretch of memory: the tensors as `append` was given them, with all positions that the newest see."""
        first = self._first_seen()
        return [(tuple(buffer[..., first : self.length, :] for buffer in self._buffers), None)]

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


class SelfAttentionState:
    """A prompt that the hypotheses of a sentence share, if there is one, and what each has generated."""

    def __init__(self, evaluation: Evaluation, window: int | None = None):
        """For the arguments see `HypothesisState`."""
        self.evaluation = evaluation
        self.window = window
        self.prompt: SentenceState | None = None
        self.generated: HypothesisState | FixedHypothesisState = HypothesisState(evaluation, window)

    def append(self, *new: Tensor) -> None:
        self.generated.append(*new)

    def end_prompt(self, mask: Tensor | None) -> None:
        """Declare what was appended so far, one row a sentence, the prompt. mask: bool [B, S], True at padding."""
        [(tensors, _)] = self.generated.read()
        self.prompt = SentenceState(self.evaluation, tensors, mask)
        self.generated = HypothesisState(self.evaluation, self.window)

    def fix(self, length: int, capacity: int, cursor: Cursor, beam: int, hypotheses: Tensor | None) -> None:
        """See `DecodeState.fix`; `length` positions were generated."""
        [(tensors, _)] = self.generated.read()
        if hypotheses is not None:
            tensors = tuple(tensor.index_select(0, hypotheses) for tensor in tensors)
        self.generated = FixedHypothesisState(tensors, length, capacity, cursor, beam)

    @property
    def is_fixed(self) -> bool:
        return isinstance(self.generated, FixedHypothesisState)

    def is_empty(self) -> bool:
        return not self.is_fixed and self.prompt is None and self.generated.total == 0

    def read(self) -> list[tuple[tuple[Tensor, ...], Tensor | None]]:
        """The stretches of memory, in the order of the text: see `SentenceState.read` and `HypothesisState.read`.

        A mask is bool [B or 1, T or 1, S]: T positions were appended last. Where the state is fixed, the masks say all
        that the newest position does not see; otherwise it is for the caller to see to the order in time.
        """
        if self.prompt is None:
            return self.generated.read()
        [(tensors, mask)] = self.prompt.read()
        if self.window is not None:
            beyond = self._beyond_window(tensors[0].size(-2), mask)
            mask = beyond if mask is None else mask | beyond
        return [(tensors, mask), *self.generated.read()]

    def _beyond_window(self, length: int, mask: Tensor | None) -> Tensor:
        """Positions of the prompt, [B or 1, S], that the newest positions no longer see: bool [B or 1, T, S]."""
        device = self.prompt.tensors[0].device
        ends = torch.tensor([[length]], device=device) if mask is None else (~mask).sum(dim=2)
        newest = torch.arange(self.generated.total - self.generated.newest, self.generated.total, device=device)
        first_seen = ends + newest - self.window + 1
        return torch.arange(length, device=device) < first_seen.unsqueeze(2)


@dataclass
class LayerState:
    """What one decoder layer remembers. Under EL all layers hold the same `cross_attention` object."""

    self_attention: SelfAttentionState
    cross_attention: SentenceState | None = None


@dataclass
class DecodeState:
    """All that a decoder remembers of a batch."""

    layers: list[LayerState]
    length: int = 0  # tokens read so far, the prompt apart
    prompt_lengths: Tensor | None = None  # int64 [B]
    longest_prompt: int = 0
    cursor: Cursor | None = None  # once it is fixed

    def fix(self, capacity: int, beam: int, hypotheses: Tensor | None = None) -> None:
        """Move what the hypotheses remember into buffers that will stay where they are; no layer may have a window.

        From then on it takes one token at a time, between `cursor.begin()` and `cursor.end()`. May be called again, for
        more room or fewer hypotheses.

        Args:
            capacity: positions that there is to be room for.
            beam: hypotheses of each sentence; from now on they change places only among themselves.
            hypotheses: int64 [N'], those to keep, in this order. Default: all.
        """
        self.cursor = Cursor(self.length, capacity, self._device())
        for layer in self.layers:
            layer.self_attention.fix(self.length, capacity, self.cursor, beam, hypotheses)

    def _device(self) -> torch.device:
        [(tensors, _)] = self.layers[0].self_attention.generated.read()
        return tensors[0].device

    def end_prompt(self, mask: Tensor) -> None:
        """Declare all tokens read so far, one row a sentence, the prompt. mask: bool [B, P], True at padding."""
        self.prompt_lengths = (~mask).sum(dim=1)
        self.longest_prompt = self.length
        self.length = 0
        padding = mask if bool(mask.any()) else None
        for layer in self.layers:
            layer.self_attention.end_prompt(padding)

    def positions(self, hypotheses: int, tokens: int) -> Tensor | range:
        """Index in the text, counted from 0, of each of the next tokens: a range, or int64 [N or 1, T]."""
        if self.cursor is not None:
            starts = 0 if self.prompt_lengths is None else self._starts(hypotheses)
            return starts + self.cursor.position.unsqueeze(0)
        following = range(self.length, self.length + tokens)
        if self.prompt_lengths is None:
            return following
        return self._starts(hypotheses) + torch.tensor(following, device=self.prompt_lengths.device)

    def _starts(self, hypotheses: int) -> Tensor:
        """Length of the prompt of each hypothesis, [N, 1]."""
        return self.prompt_lengths.repeat_interleave(hypotheses // self.prompt_lengths.numel()).unsqueeze(1)

    def reorder(self, order: Tensor) -> None:
        """Hypothesis n continues hypothesis order[n], int64 [N']. Sentences that lose all theirs: see `keep`."""
        spare = None
        for layer in self.layers:
            spare = layer.self_attention.generated.reorder(order, spare)

    def keep(self, sentences: Tensor) -> None:
        """Drop the sentences that are not among these, int64 [B']; `reorder` must drop their hypotheses."""
        for state in self._sentence_states():
            state.keep(sentences)
        if self.prompt_lengths is not None:
            self.prompt_lengths = self.prompt_lengths.index_select(0, sentences)
            self.longest_prompt = int(self.prompt_lengths.max())

    def size_bytes(self) -> int:
        """Bytes held, what layers share counted once."""
        per_hypothesis = sum(layer.self_attention.generated.size_bytes() for layer in self.layers)
        return per_hypothesis + sum(state.size_bytes() for state in self._sentence_states())

    def _sentence_states(self) -> Iterator[SentenceState]:
        unique = {}
        for layer in self.layers:
            for state in (layer.self_attention.prompt, layer.cross_attention):
                if state is not None:
                    unique[id(state)] = state
        return iter(unique.values())
