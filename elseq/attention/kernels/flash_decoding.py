"""Flash-decoding: on a GPU, attention of one position of each hypothesis in one pass over keys and values.

Blocks of positions are read one after the other, and scores, softmax and weighted sum of each are computed at once
(online softmax, 2205.14135, section 3.1). All queries that attend to the same keys are rows of the same matrix
products. With EL-attention these are the heads of all hypotheses of a sentence, and the values are the keys, so each
hidden state is read once for both. If a GPU has more processors than there are such matrices, several processors share
the positions of each, and their results are joined (as in Flash-Decoding, Dao et al. 2023). The results for several
segments are joined in the same way. Hypotheses of a sentence that have an `Ancestry` are read like one sequence, each
from where it parts from those before it.

Shapes: N hypotheses (those of a sentence are adjacent) of M sequences, H heads, G key/value heads, S positions, K width
of keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

import elseq.gpu as gpu
import elseq.native as native
from elseq.attention.ancestry import Ancestry
from elseq.attention.kernels.reorder import reorder_in_place
from elseq.kernel_trials import Pair, Trial, draw, usable
from elseq.measurements import power_of_two

if TYPE_CHECKING:
    from elseq.attention.multi_head import Segment

TYPES = (torch.float16, torch.bfloat16, torch.float32)  # of the inputs; sums are in float32
WIDEST = 1024
SHARED_MEMORY = 99 * 1024  # bytes that a program can have on GPUs since compute capability 8.0, at least
MOST_NUMBERS = 2**31  # of a sequence's head, which the kernel counts by 32 bits: wider ones would spill registers
FEWEST_POSITIONS = 64  # that have a trial of their own
# The largest sizes at which results are compared with float64.
COMPARED_SEQUENCES = 16
COMPARED_POSITIONS = 512
TIMED_NUMBERS = 2**27  # that are read: more than a GPU caches. Beyond, the time is proportional to them
BYTES_OF_NUMBER = 16  # while it is drawn, with what PyTorch makes of it
GENERATIONS = 4  # of which a drawn ancestry consists, times the beam: the hypotheses have one ancestor before


def computes(
    query: Tensor, segments: Sequence[Segment], plain: Callable[[Tensor, Sequence[Segment]], tuple[Tensor, None]]
) -> bool:
    """Whether `flash_decoding` is to compute this attention: one position of each hypothesis on a GPU, without
    gradients, numbers of one type, keys as wide as values. The kernel has then been tried on the GPU at about these
    sizes.

    Args:
        query, segments: as for `flash_decoding`.
        plain: the same attention by PyTorch, in any type, and None; for the trial.
    """
    return (
        query.is_cuda
        and query.size(2) == 1
        and query.dtype in TYPES
        and 0 < query.size(3) <= WIDEST
        and query.size(0) > 0
        and not torch.is_autocast_enabled(query.device.type)
        and not native.is_recorded()
        and all(_computes_segment(query, segment) for segment in segments)
        and all(_is_usable(query, segment, plain) for segment in segments)
    )


def flash_decoding(query: Tensor, segments: Sequence[Segment]) -> Tensor:
    """Attend to all segments under one softmax.

    Args:
        query: [N, H, 1, K], already scaled. Head h uses key/value head h // (H / G).
        segments: keys and values [M, G, S, K] of the query's type, S at least 1; M = N with an ancestry. Where the
            value is the key, the same object, it is read once. What a mask hides at both ends is not read, but for a
            part of a block of keys, which is ignored; also when it is another mask at each replay of a CUDA graph. In
            between there have to be finite numbers, as for PyTorch.

    Returns:
        [N, H, 1, K] in the type of the query; zero where all positions are masked.
    """
    from elseq.attention.kernels.flash_decoding_triton import GPU, launch  # cannot be imported without Triton

    limits = GPU(1, SHARED_MEMORY, False)  # Triton's interpreter
    if query.is_cuda:
        found = torch.cuda.get_device_properties(query.device)
        shared_memory = getattr(found, "shared_memory_per_block_optin", SHARED_MEMORY)  # since PyTorch 2.5
        is_hopper = found.major == 9 and torch.version.hip is None
        limits = GPU(found.multi_processor_count, shared_memory, is_hopper)
    with gpu.on_device(query.device):
        return launch(query, segments, limits)


def _computes_segment(query: Tensor, segment: Segment) -> bool:
    key, value, mask, ancestry = segment
    rows = 1 if ancestry is None else ancestry.beam
    return (
        key.dtype == value.dtype == query.dtype
        and key.shape == value.shape
        and key.numel() > 0
        and max(_reach(key, rows), _reach(value, rows)) < MOST_NUMBERS
        and not (torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value)))
    )


def _reach(tensor: Tensor, rows: int) -> int:
    """The distance in memory, in numbers, of the last number of a sequence's head, in so many rows, from its first."""
    of_row = sum((size - 1) * stride for size, stride in zip(tensor.shape[2:], tensor.stride()[2:], strict=True))
    return of_row + (rows - 1) * tensor.stride(0)


class Sizes(NamedTuple):
    """Sizes of an attention, rounded: one trial is valid for all attentions of about these sizes."""

    dtype: torch.dtype
    width: int
    heads: int
    kv_heads: int
    sequences: int
    hypotheses: int  # of each sequence
    positions: int
    has_one_tensor: bool  # the values are the keys
    is_transposed: bool  # the positions of the keys are adjacent
    has_ancestry: bool = False  # each hypothesis has a row of keys, and its positions are in several

    @classmethod
    def of(cls, query: Tensor, segment: Segment) -> Sizes:
        hypotheses, heads, _, width = query.shape
        _, kv_heads, positions, _ = segment.key.shape
        return cls(
            query.dtype,
            width,
            heads,
            kv_heads,
            power_of_two(segment.sequences),
            hypotheses // segment.sequences,
            max(FEWEST_POSITIONS, power_of_two(positions)),
            segment.value is segment.key,
            segment.key.stride(2) == 1 < width,
            segment.ancestry is not None,
        )

    @property
    def compared(self) -> Sizes:
        return self._replace(
            sequences=min(self.sequences, COMPARED_SEQUENCES), positions=min(self.positions, COMPARED_POSITIONS)
        )

    def timed(self, free: int | None) -> Sizes:
        """Sizes that are timed: with more numbers than needed or than fit, fewer sequences, then fewer positions.

        Args:
            free: bytes of which half may be used. None: any number.
        """
        most = TIMED_NUMBERS if free is None else min(TIMED_NUMBERS, free // 2 // BYTES_OF_NUMBER)
        sizes = self
        while sizes._numbers() > most and sizes.sequences > 1:
            sizes = sizes._replace(sequences=sizes.sequences // 2)
        while sizes._numbers() > most and sizes.positions > FEWEST_POSITIONS:
            sizes = sizes._replace(positions=sizes.positions // 2)
        return sizes

    def _numbers(self) -> int:
        """The number of numbers in keys, values and scores."""
        of_row = self.kv_heads * self.width * (1 if self.has_one_tensor else 2)
        return self.positions * (self._rows * of_row + self.sequences * self.hypotheses * self.heads)

    @property
    def _rows(self) -> int:
        return self.sequences * (self.hypotheses if self.has_ancestry else 1)

    def draw(self, device: torch.device, segment: Segment) -> tuple[Tensor, Segment]:
        """A query and a segment of these sizes. Half of its sequences are padded; with an ancestry all are."""
        query = draw(self.sequences * self.hypotheses, self.heads, 1, self.width, device=device, dtype=self.dtype)
        shape = self._rows, self.kv_heads, self.positions, self.width
        key = draw(*shape, device=device, dtype=self.dtype, seed=1)
        if self.is_transposed:
            key = key.transpose(2, 3).contiguous().transpose(2, 3)
        shorter = self.positions - self.positions // 3
        lengths = torch.full((1 if self.has_ancestry else self.sequences,), shorter, device=device)
        if not self.has_ancestry:
            lengths[::2] = self.positions
        mask = torch.arange(self.positions, device=device) >= lengths.view(-1, 1, 1)
        value = key if self.has_one_tensor else draw(*shape, device=device, dtype=self.dtype, seed=2)
        drawn = segment._replace(key=key, value=value, mask=mask)
        if self.has_ancestry:
            drawn = drawn._replace(ancestry=self._draw_ancestry(device, shorter))
        return query / self.width**0.5, drawn

    def _draw_ancestry(self, device: torch.device, length: int) -> Ancestry:
        """Of a search that has come so far, and began with one hypothesis `GENERATIONS` times the beam ago at most."""
        ancestry = Ancestry(self._rows, self.hypotheses, self.positions, device)
        first = torch.arange(self._rows, device=device).view(self.sequences, -1)[:, :1]
        generator = torch.Generator(device).manual_seed(0)
        start = max(1, length - GENERATIONS * self.hypotheses)
        chosen = torch.zeros(self.sequences, self.hypotheses, dtype=torch.long, device=device)
        for position in range(start, length):
            ancestry.reorder((first + chosen).flatten(), torch.full((1,), position, device=device))
            chosen = torch.randint(self.hypotheses, chosen.shape, generator=generator, device=device).sort(dim=1)[0]
        return ancestry


def _is_usable(query: Tensor, segment: Segment, plain) -> bool:
    sizes = Sizes.of(query, segment)
    return usable("flash-decoding", query.device, lambda: _trial(sizes, query, segment, plain), sizes)


def _trial(sizes: Sizes, like: Tensor, segment: Segment, plain) -> Trial:
    """like: a query of about these sizes."""
    device = like.device
    timed = sizes.timed(gpu.free_bytes(device) if device.type == "cuda" else None)
    query, drawn = sizes.compared.draw(device, segment)
    key = drawn.key.double()
    wide = drawn._replace(key=key, value=key if sizes.has_one_tensor else drawn.value.double())
    exact = plain(query.double(), [wide])[0]

    def by_torch(query: Tensor, segments: Sequence[Segment]) -> Tensor:
        return plain(query, segments)[0]

    def timed_pair() -> Pair:
        attend = by_torch
        if sizes.has_ancestry:
            is_fast = computes(like, [segment._replace(ancestry=None)], plain)
            attend = partial(_attend_after_moving, flash_decoding if is_fast else by_torch)
        return _pair(attend, *timed.draw(device, segment))

    return Trial(*_pair(by_torch, query, drawn), exact, timed_pair, timed)


def _pair(attend: Callable[[Tensor, Sequence[Segment]], Tensor], query: Tensor, segment: Segment) -> Pair:
    return lambda: flash_decoding(query, [segment]), lambda: attend(query, [segment])


def _attend_after_moving(attend: Callable, query: Tensor, segments: Sequence[Segment]) -> Tensor:
    """What a step does without an ancestry: the positions of each hypothesis are copied to the rows of those that
    continue it."""
    [segment] = segments
    key, value, mask, ancestry = segment
    taken = (~mask).sum().view(1)
    order = ancestry.rows.gather(1, (taken - 2).expand(len(ancestry.rows), 1)).squeeze(1).long()
    for buffer in (key,) if value is key else (key, value):
        reorder_in_place(buffer, order, ancestry.beam, taken)
    return attend(query, [segment._replace(ancestry=None)])
