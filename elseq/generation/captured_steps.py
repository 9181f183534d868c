"""Decoding steps captured as CUDA graphs.

A step of a decoder is some hundred small kernels. Up to some hundred hypotheses a GPU is done with them sooner than
Python can launch them; a captured step is launched as one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from fairseq.modules import AdaptiveInput
from torch import Tensor, nn

from elseq.attention import DecodeState
from elseq.generation.cuda_graphs import CapturedWork

if TYPE_CHECKING:
    from elseq.generation.kept_steps import Buffers, KeptSteps

# Positions that a captured step has room for at least. The room doubles when it is full: a capture costs as much time
# as a few steps do without, and a step may read all the room that there is.
ROOM = 32
# Bytes of room, in all layers, that need not be saved: to read them in all steps costs less than a capture.
CHEAP = 2**28
# Hypotheses that are left out of a captured step once so many are idle. Fewer cost less than a capture.
IDLE = 64
# Outputs so short are not worth a capture.
SHORTEST_OUTPUT = 8


def can_capture(decoder, max_length: int, positions: int) -> bool:
    """Whether the steps of a search are to be captured.

    Args:
        decoder: an elseq decoder.
        max_length: steps at most.
        positions: of the decoder that the search may come to: a captured step cannot say that there are no more.
    """
    return (
        next(decoder.parameters()).is_cuda
        and max_length >= SHORTEST_OUTPUT
        and decoder.reach(positions)
        and not isinstance(decoder.embed_tokens, AdaptiveInput)  # looks at the tokens
        and all(layer.self_attn.window is None for layer in decoder.layers)
        and not has_active_dropout(decoder)
    )


def has_active_dropout(model: nn.Module) -> bool:
    """Whether dropout stays active while a model decodes."""
    return any(getattr(module, "apply_during_inference", False) for module in model.modules())


def next_room(length: int, bytes_of_position: int, max_length: int) -> int:
    """Positions that a step captured after so many has room for.

    Args:
        length: positions that are used.
        bytes_of_position: of all hypotheses, in all layers.
        max_length: positions that will be used at most.
    """
    return min(max(ROOM << (length // ROOM).bit_length(), CHEAP // bytes_of_position), max_length)


def cost_of_captures(bytes_of_position: int, max_length: int) -> int:
    """The cost of the captures that a batch needs for its growing room, in bytes that its steps could read instead.

    Args:
        bytes_of_position, max_length: as for `next_room`.
    """
    length, captures = 1, 0
    while length < max_length:
        length, captures = next_room(length, bytes_of_position, max_length), captures + 1
    return captures * CHEAP


def is_half_idle(hypotheses: int, searched: int) -> bool:
    """Whether a captured step of so many hypotheses is to be replaced by a smaller one."""
    return hypotheses - searched >= max(IDLE, searched)


class CapturedStep:
    """A step of a fixed number of hypotheses: its graph, and what it reads and writes besides the state."""

    def __init__(self, hypotheses: int, device: torch.device, has_ancestry: bool = False):
        """has_ancestry: whether hypotheses are found by an ancestry, which a graph repeats."""
        self.has_ancestry = has_ancestry
        self.tokens = torch.zeros(hypotheses, 1, dtype=torch.long, device=device)
        self.order = torch.arange(hypotheses, device=device)
        self.output: Tensor | None = None  # until it has run
        self.work = CapturedWork(device)


class CapturedSteps:
    """Reads one token after the other into a decoding state. It stands in for `decode` and the state's own methods.

    Shapes: N hypotheses of B sentences are still searched for; V logits each. A captured step has a fixed number of
    hypotheses. Sentences that are finished stay in it, unread, until it has to be captured anew, or half of it and
    `IDLE` hypotheses are idle. In buffers that are kept there may be idle sentences from the beginning.
    """

    def __init__(
        self,
        decode: Callable[[Tensor, DecodeState], Tensor],
        state: DecodeState,
        beam: int,
        max_length: int,
        kept: KeptSteps | None = None,
    ):
        """
        Args:
            decode: reads tokens, int64 [N, 1], into the state and returns logits or log-probabilities [N, V].
            state: has read nothing yet, but for prompts.
            beam: hypotheses of each sentence.
            max_length: tokens that will be read at most.
            kept: has, or makes, buffers for this batch. Default: all that is captured goes with the batch.
        """
        self.state = state
        self._decode = decode
        self._beam = beam
        self._max_length = max_length
        self._kept = kept
        self._buffers: Buffers | None = None  # that the state lies in, if they are kept
        self._room = 0
        self._sentences: Tensor | None = None  # of those in the state, the ones still searched; None: all
        self._rows: Tensor | None = None  # their hypotheses
        self._step: CapturedStep | None = None

    def step(self, tokens: Tensor) -> Tensor:
        """Read the last of the tokens, int64 [N, L]; return what `decode` returns, [N, V], the caller's to change until
        the next step."""
        tokens = tokens[:, -1:]
        before = self.state
        if not before.length:  # not yet: the state shows its shapes only now
            return self._decode(tokens, before)
        if before.length >= self._room or self._is_half_idle():
            self._prepare(len(tokens))
        # A graph of another batch, which has been right on that alone, is compared with the step itself.
        is_new = before.cursor is None and self._buffers is not None
        is_trial = is_new and self._step.work.is_captured and not self._buffers.is_proved
        output = self._run(tokens)
        if is_trial:
            expected = self._decode(tokens, before)
            if not self._kept.prove(output, expected):
                self._go_on_in(before)
                return expected
            self._buffers.is_proved = True
        return output

    def _run(self, tokens: Tensor) -> Tensor:
        step = self._step
        if self._rows is None:
            step.tokens.copy_(tokens)
        else:
            step.tokens.index_copy_(0, self._rows, tokens)
        length = self.state.length
        step.work(self._advance)
        self.state.length = length + 1  # a replayed step moves the cursor on the device and nothing here
        return step.output if self._rows is None else step.output.index_select(0, self._rows)

    def reorder(self, order: Tensor, sentences: Tensor | None = None) -> None:
        """Hypothesis n continues hypothesis order[n], int64 [N'], at the next step, which reads only these sentences,
        int64 [B'], or all."""
        if not self._room:
            if sentences is not None:
                self.state.keep(sentences)
            return self.state.reorder(order)
        if self._rows is not None:
            order = self._rows.index_select(0, order)
        if sentences is not None:
            hypotheses = torch.arange(len(self._step.order), device=order.device)
            self._sentences = sentences if self._sentences is None else self._sentences.index_select(0, sentences)
            self._rows = hypotheses.view(-1, self._beam).index_select(0, self._sentences).flatten()
            self._step.order.copy_(hypotheses)  # idle ones stay where they are, which moves nothing
        if self._rows is None:
            self._step.order.copy_(order)
        else:
            self._step.order.index_copy_(0, self._rows, order)  # a sentence keeps its place

    def _is_half_idle(self) -> bool:
        return self._rows is not None and is_half_idle(len(self._step.order), len(self._rows))

    def _prepare(self, hypotheses: int) -> None:
        """Another step: with more room, or with fewer idle hypotheses."""
        order = None
        if self._room:
            order = self._step.order
            if self._rows is not None:
                order = order.index_select(0, self._rows)
                self.state.keep(self._sentences)
        elif self._kept is not None:
            self._buffers = self._kept.buffers(self.state)
        self._sentences = self._rows = None
        if self._buffers is not None:
            self._use_buffers(hypotheses, order)
        else:
            self._room = next_room(self.state.length, self.state.bytes_of_position(), self._max_length)
            self.state.fix(self._room, self._beam, order)
            self._step = CapturedStep(hypotheses, self.state.cursor.position.device)

    def _use_buffers(self, hypotheses: int, order: Tensor | None) -> None:
        sentences = hypotheses // self._beam
        state, self._step = self._buffers.part(sentences)
        state.load(self.state, order)
        self.state, self._room = state, self._buffers.sizes.target_length
        rows = torch.arange(len(self._step.order), device=self._step.order.device)
        self._step.order.copy_(rows)
        if hypotheses < len(rows):
            self._sentences, self._rows = rows[:sentences], rows[:hypotheses]

    def _go_on_in(self, state: DecodeState) -> None:
        """Instead of the buffers."""
        self.state, self._kept, self._buffers = state, None, None
        self._room, self._sentences, self._rows = 0, None, None

    def _advance(self) -> None:
        if self._beam > 1:
            self.state.reorder(self._step.order)
        self.state.cursor.begin()
        output = self._decode(self._step.tokens, self.state)
        self.state.cursor.end()
        if self._step.output is None:
            self._step.output = output
        else:
            # What is made in a capture may be overwritten by another, of another model in an ensemble.
            self._step.output.copy_(output)
