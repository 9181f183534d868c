"""What a hypothesis remembers, in buffers that stay where they are, so that a CUDA graph can replay a decoding step.

Shapes: N hypotheses, C positions of room, G key/value heads, K width of a head, D width of the hidden states.
"""

import torch
from torch import Tensor

from elseq.attention.kernels.reorder import reorder_in_place


class Cursor:
    """The position that the next token takes. It is kept on the device: a replayed step moves it there."""

    def __init__(self, position: int, capacity: int, device: torch.device):
        """
        Args:
            position: of the next token.
            capacity: C, the number of positions that there are.
            device: of the state.
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


class FixedHypothesisState:
    """As `HypothesisState`, for one token at a time and without a window, in buffers that never move.

    It reads all positions that there are, and a mask that hides those not yet taken.
    """

    def __init__(self, tensors: tuple[Tensor, ...], length: int, capacity: int, cursor: Cursor, beam: int):
        """
        Args:
            tensors: keys and values, each [N, G, S, K], or hidden states [N, S, D], with room for S positions.
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
        """Write a position: keys and values, each [N, G, 1, K], or hidden states [N, 1, D]."""
        for buffer, tensor in zip(self._buffers, new, strict=True):
            buffer.index_copy_(-2, self.cursor.position, tensor)

    def read(self) -> list[tuple[tuple[Tensor, ...], Tensor]]:
        """One stretch of memory: all positions, and the mask [1, 1, C] of those not yet taken."""
        return [(self._buffers, self.cursor.ahead)]

    @torch.no_grad()
    def reorder(self, order: Tensor, spare: Tensor | None = None) -> Tensor | None:
        """Hypothesis n continues hypothesis order[n], int64 [N], of its own sentence; `spare` comes back unused."""
        for buffer in self._buffers:
            reorder_in_place(buffer, order, self.beam, self.cursor.position)
        return spare

    def size_bytes(self) -> int:
        """Bytes of the buffers, room to grow included."""
        return sum(buffer.nbytes for buffer in self._buffers)
