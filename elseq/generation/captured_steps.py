"""Decoding steps captured as CUDA graphs.

A step of a decoder is some hundred small kernels. Up to some hundred hypotheses a GPU is done with them sooner than
Python can launch them; a captured step is launched as one.
"""

from collections.abc import Callable

import torch
from fairseq.modules import AdaptiveInput
from torch import Tensor

from elseq.attention import DecodeState
from elseq.generation.cuda_graphs import CapturedWork

# Positions that a captured step has room for at least. The room doubles when it is full: a capture costs as much time
# as a few steps do without, and a step may read all the room that there is.
ROOM = 32
# Bytes of room, in all layers, that need not be saved: to read them in all steps costs less than a capture.
CHEAP = 2**28
# Hypotheses that are left out of a captured step once so many are idle. Fewer cost less than a capture.
IDLE = 64
# Outputs so short are not worth a capture.
SHORTEST = 8


def can_capture(decoder, max_length: int, positions: int) -> bool:
    """Whether the steps of a search are to be captured.

    Args:
        decoder: an elseq decoder.
        max_length: steps at most.
        positions: of the decoder that the search may come to: a captured step cannot say that there are no more.
    """
    return (
        next(decoder.parameters()).is_cuda
        and max_length >= SHORTEST
        and decoder.reach(positions)
        and not isinstance(decoder.embed_tokens, AdaptiveInput)  # looks at the tokens
        and all(layer.self_attn.window is None for layer in decoder.layers)
        and not any(getattr(module, "apply_during_inference", False) for module in decoder.modules())
    )


class CapturedSteps:
    """Reads one token after the other into a decoding state. It stands in for `decode` and the state's own methods.

    Shapes: N hypotheses of B sentences are still searched for; V words. A captured step has a fixed number of
    hypotheses. Sentences that are finished stay in it, unread, until it has to be captured anew, or half of it and
    `IDLE` hypotheses are idle.
    """

    def __init__(self, decode: Callable[[Tensor, DecodeState], Tensor], state: DecodeState, beam: int, max_length: int):
        """
        Args:
            decode: reads tokens, int64 [N, 1], into the state and returns logits or log-probabilities [N, V].
            state: has read nothing yet, but for prompts.
            beam: hypotheses of each sentence.
            max_length: tokens that will be read at most.
        """
        self._decode = decode
        self._state = state
        self._beam = beam
        self._max_length = max_length
        self._room = 0
        self._sentences: Tensor | None = None  # of those in the state, the ones still searched; None: all
        self._rows: Tensor | None = None  # their hypotheses
        self._work: CapturedWork | None = None

    def step(self, tokens: Tensor) -> Tensor:
        """Read the last of the tokens, int64 [N, L]; return what `decode` returns, [N, V], the caller's to change until
        the next step."""
        tokens = tokens[:, -1:]
        if not self._state.length:  # not yet: the state shows its shapes only now
            return self._decode(tokens, self._state)
        if self._state.length >= self._room or self._is_half_idle():
            self._capture_anew(len(tokens))
        if self._rows is None:
            self._tokens.copy_(tokens)
        else:
            self._tokens.index_copy_(0, self._rows, tokens)
        length = self._state.length
        self._work(self._advance)
        self._state.length = length + 1  # a replayed step moves the cursor on the device and nothing here
        return self._output if self._rows is None else self._output.index_select(0, self._rows)

    def reorder(self, order: Tensor) -> None:
        """Hypothesis n continues hypothesis order[n], int64 [N]: at the next step."""
        if not self._room:
            self._state.reorder(order)
        elif self._rows is None:
            self._order.copy_(order)
        else:
            # A sentence keeps its place, so the hypotheses that it has now are among those it had before.
            self._order.index_copy_(0, self._rows, self._rows_before.index_select(0, order))
            self._rows_before = self._rows

    def keep(self, sentences: Tensor) -> None:
        """Read no more of the sentences that are not among these, int64 [B']; called before `reorder`."""
        if not self._room:
            return self._state.keep(sentences)
        hypotheses = torch.arange(len(self._order), device=sentences.device)
        self._rows_before = hypotheses if self._rows is None else self._rows
        self._sentences = sentences if self._sentences is None else self._sentences.index_select(0, sentences)
        self._rows = hypotheses.view(-1, self._beam).index_select(0, self._sentences).flatten()
        self._order.copy_(hypotheses)  # idle ones stay where they are, which moves nothing

    def _is_half_idle(self) -> bool:
        if self._rows is None:
            return False
        idle = len(self._order) - len(self._rows)
        return idle >= max(IDLE, len(self._rows))

    def _capture_anew(self, hypotheses: int) -> None:
        """More room, and only the hypotheses still searched for."""
        order = None
        if self._room:
            order = self._order
            if self._rows is not None:
                order = order.index_select(0, self._rows)
                self._state.keep(self._sentences)
        cheap = CHEAP // self._state.bytes_of_position()
        self._room = min(max(ROOM << (self._state.length // ROOM).bit_length(), cheap), self._max_length)
        self._state.fix(self._room, self._beam, order)
        device = self._state.cursor.position.device
        self._tokens = torch.zeros(hypotheses, 1, dtype=torch.long, device=device)
        self._order = torch.arange(hypotheses, device=device)
        self._sentences = self._rows = None
        self._output: Tensor | None = None
        self._work = CapturedWork(device)

    def _advance(self) -> None:
        if self._beam > 1:
            self._state.reorder(self._order)
        self._state.cursor.begin()
        output = self._decode(self._tokens, self._state)
        self._state.cursor.end()
        if self._output is None:
            self._output = output
        else:
            # What is made in a capture may be overwritten by another, of another model in an ensemble.
            self._output.copy_(output)
