"""Decoding steps recorded as CUDA graphs.

A step of a decoder is some hundred small kernels. Up to some hundred hypotheses a GPU is done with them sooner than
Python can launch them; a recorded step is launched as one.
"""

import logging
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from elseq.attention import DecodeState

logger = logging.getLogger(__name__)

# Positions by which the room of a recorded step grows: recording costs as much time as a few steps do unrecorded, and
# every step computes with all the room that there is.
ROOM = 32
# Outputs so short are not worth a recording.
SHORTEST = 8


def can_replay(decoder, max_length: int) -> bool:
    """Whether the steps of an elseq decoder, `max_length` at most, are to be recorded."""
    attentions = [layer.self_attn for layer in decoder.layers]
    return (
        next(decoder.parameters()).is_cuda
        and max_length >= SHORTEST
        and all(attention.window is None for attention in attentions)
        and not any(getattr(module, "apply_during_inference", False) for module in decoder.modules())
    )


class ReplayedSteps:
    """Reads one token after the other into a decoding state. It stands in for `decode` and the state's own methods.

    Shapes: N hypotheses of B sentences are still searched for; V words. A recorded step has a fixed number of
    hypotheses. Sentences that are finished stay in it, unread, until it has to be recorded anew or half of it is idle.
    """

    def __init__(self, decode: Callable[[Tensor, DecodeState], Tensor], state: DecodeState, beam: int, max_length: int):
        """
        Args:
            decode: reads tokens, int64 [N, 1], into the state and returns log-probabilities [N, V].
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
        self._recorder: Recorder | None = None

    def step(self, tokens: Tensor) -> Tensor:
        """Read the last of the tokens, int64 [N, L]; return log-probabilities [N, V]."""
        tokens = tokens[:, -1:]
        if not self._state.length:  # not yet: the state shows its shapes only now
            return self._decode(tokens, self._state)
        if self._state.length >= self._room or self._is_half_idle():
            self._record_anew(len(tokens))
        if self._rows is None:
            self._tokens.copy_(tokens)
        else:
            self._tokens.index_copy_(0, self._rows, tokens)
        length = self._state.length
        self._recorder(self._advance)
        self._state.length = length + 1  # a replayed step moves the cursor on the device and nothing here
        return self._log_probs if self._rows is None else self._log_probs.index_select(0, self._rows)

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

    def _is_half_idle(self) -> bool:
        return self._rows is not None and 2 * len(self._rows) <= len(self._order)

    def _record_anew(self, hypotheses: int) -> None:
        """More room, and only the hypotheses still searched for."""
        order = None
        if self._room:
            order = self._order if self._rows is None else self._order.index_select(0, self._rows)
            if self._sentences is not None:
                self._state.keep(self._sentences)
        self._room = min(-(-(self._state.length + 1) // ROOM) * ROOM, self._max_length)
        self._state.fix(self._room, self._beam, order)
        device = self._state.cursor.position.device
        self._tokens = torch.zeros(hypotheses, 1, dtype=torch.long, device=device)
        self._order = torch.arange(hypotheses, device=device)
        self._sentences = self._rows = None
        self._log_probs = None
        self._recorder = Recorder(device)

    def _advance(self) -> None:
        if self._beam > 1:
            self._state.reorder(self._order)
        self._state.cursor.begin()
        self._log_probs = self._decode(self._tokens, self._state)
        self._state.cursor.end()


class Recorder:
    """Runs the same work again and again: at first as it is, from the second time on as a CUDA graph if that can be.

    The first run lets libraries set themselves up, which cannot be recorded, and tells how much memory a run takes. A
    recording has memory of its own, and running out of it would end the process.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._bytes = 0  # that a run allocates, one after the other; 0: not known yet
        self._graph: torch.cuda.CUDAGraph | None = None
        self._is_recordable = device.type == "cuda"

    def __call__(self, work: Callable[[], None]) -> None:
        """
        Args:
            work: always the same. (It is not kept: it may hold on to what has this recorder.)
        """
        if self._is_recordable and self._graph is None and self._bytes and has_memory(self._device, self._bytes):
            try:
                self._graph = record(work, self._device)
            except RuntimeError as error:
                self._is_recordable = False
                _warn(str(error).splitlines()[0])
        if self._graph is not None:
            self._graph.replay()
        elif self._is_recordable:
            before = self._allocated()
            work()
            self._bytes = self._allocated() - before
        else:
            work()

    def _allocated(self) -> int:
        return torch.cuda.memory_stats(self._device)["allocated_bytes.all.allocated"]


def record(work: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    """
    Raises:
        RuntimeError: the work has something in it that cannot be recorded.
    """
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=_memory(device), capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
    return graph


@lru_cache
def _anchor(device: torch.device) -> tuple:
    """Memory that recordings share, one after the other, and a recording that keeps it theirs: it lasts as long as one
    of them does."""
    pool = torch.cuda.graph_pool_handle()
    nothing = torch.zeros(1, device=device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        nothing.zero_()
    return pool, graph, nothing


def _memory(device: torch.device):
    return _anchor(device)[0]


def has_memory(device: torch.device, size: int) -> bool:
    """Whether so many bytes can be had from the device, be it that the allocator gives back what it holds unused."""
    if _free(device) < size:
        torch.cuda.empty_cache()
    return _free(device) >= size


def _free(device: torch.device) -> int:
    free, total = torch.cuda.mem_get_info(device)
    limit = getattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)(device)
    return min(free, int(limit * total) - torch.cuda.memory_reserved(device))


def release_memory() -> None:
    """Give back the memory that recordings share, once there are none."""
    _anchor.cache_clear()


@lru_cache
def _warn(reason: str) -> None:
    logger.warning("decoding steps are slower, because they cannot be recorded as CUDA graphs: %s", reason)
