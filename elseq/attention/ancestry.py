"""In which rows of the buffers the positions of hypotheses are, where reordering moves no buffer."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor


class Ancestry:
    """Hypothesis n has position s in row rows[n, s] of the buffers: that of the hypothesis that it was then.

    Two hypotheses of a sentence have their first positions in the same rows, until they part. Where these are read for
    both at once, reordering costs no copy, and the beam few bytes more than one hypothesis. All tensors stay where they
    are, so that a CUDA graph can replay `reorder`.

    Shapes: N hypotheses, those of a sentence adjacent, C positions.
    """

    def __init__(self, hypotheses: int, beam: int, capacity: int, device: torch.device):
        """
        Args:
            hypotheses: N.
            beam: hypotheses of each sentence.
            capacity: C.
            device: of the buffers.
        """
        self.beam = beam
        number = torch.arange(hypotheses, dtype=torch.int32, device=device).unsqueeze(1)
        self._own = number.expand(-1, capacity)
        self._positions = torch.arange(capacity, device=device)
        self._is_itself = number % beam == torch.arange(beam, device=device)
        self.rows = self._own.clone()  # int32 [N, C]
        # int32 [N, beam]: how many first positions it has in common with each of its sentence; C with itself.
        self.shared = torch.empty_like(self._is_itself, dtype=torch.int32)
        self.reset()

    def reset(self) -> None:
        """Every hypothesis has all positions in a row of its own."""
        self.rows.copy_(self._own)
        self.shared.copy_(self._is_itself * len(self._positions))

    def narrow(self, hypotheses: int) -> Ancestry:
        """That of the first hypotheses, in the same place."""
        found = copy.copy(self)
        for name in ("_own", "_is_itself", "rows", "shared"):
            setattr(found, name, getattr(self, name)[:hypotheses])
        return found

    def reorder(self, order: Tensor, taken: Tensor) -> None:
        """Hypothesis n continues hypothesis order[n] of its sentence, with positions of its own from now on.

        Args:
            order: int64 [N].
            taken: int64 [1], the number of used positions.
        """
        continued = self.rows.index_select(0, order)
        self.rows.copy_(torch.where(self._positions < taken, continued, self._own))
        others = (order % self.beam).view(-1, 1, self.beam).expand(-1, self.beam, -1).reshape(len(order), self.beam)
        shared = self.shared.index_select(0, order).gather(1, others)
        self.shared.copy_(torch.where(self._is_itself, self.shared, torch.minimum(shared, taken)))

    def move(self, buffer: Tensor) -> Tensor:
        """A copy of the buffer, [N, ..., C, width], in which every hypothesis has all positions in a row of its own."""
        return move_rows(buffer, self.rows)


def move_rows(buffer: Tensor, rows: Tensor) -> Tensor:
    """A copy [N, ..., C, width] of a buffer [R, ..., C, width]: row n has position s of row rows[n, s], [N, C]."""
    _, *shape, capacity, width = buffer.shape
    heads, device = math.prod(shape), buffer.device
    head, position = torch.arange(heads, device=device).unsqueeze(1), torch.arange(capacity, device=device)
    places = (rows.long().unsqueeze(1) * heads + head) * capacity + position
    return buffer.reshape(-1, width).index_select(0, places.flatten()).view(len(rows), *buffer.shape[1:])
