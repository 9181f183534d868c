"""Sources longer than an encoder's positions: overlapping windows are encoded one by one and their states are joined.

The encoder reads each window as a text of its own. The decoder attends to the joined states of the whole source, as in
Unlimiformer (2305.01625): its own positions are those of the output, so the source may have any length.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from elseq.errors import UserError
from elseq.gpu import device_kind

# Tokens that the encoder reads in one pass, on a CPU and elsewhere, or those of one window if it has more. The memory
# of a pass does not grow with the source.
MOST_TOKENS = {"cpu": 4096, "other": 16384}
UNLIMITED = 10**9  # positions, of a source in windows


class Window(NamedTuple):
    """A part of a source that is encoded, and the part of it whose states are used, as indices of tokens."""

    row: int  # of the batch
    start: int
    stop: int
    first: int  # used
    end: int  # the first that is not used any more


@dataclass(frozen=True)
class SourceWindows:
    """How a source is cut into windows.

    Shapes: B sentences, S positions, C width of the encoder.
    """

    length: int  # tokens of a window
    overlap: int  # tokens that neighbouring windows have in common, at least
    trained: int | None = None  # random windows of a source through which training has gradients; None: all

    def __post_init__(self):
        """
        Raises:
            UserError: a window of no tokens, an overlap that is not shorter, or a training through no window.
        """
        if self.length < 1:
            raise UserError(f"{self.length} is not possible: give 1 or more, or 0 for none", "source_window")
        if not 0 <= self.overlap < self.length:
            raise UserError(
                f"{self.overlap} does not go with windows of {self.length} tokens: give 0 to {self.length - 1}",
                "source_window_overlap",
            )
        if self.trained is not None and self.trained < 1:
            raise UserError(f"{self.trained} is not possible: give 1 or more", "train_windows")

    def cut(self, lengths: Sequence[int]) -> list[Window]:
        """The windows of sources of these lengths.

        A source of more than one window has windows of the same length. The last one ends with the source. The state of
        a token comes from the window whose middle is nearest to it: there the shorter side of its context is longest.
        """
        return [window for row, length in enumerate(lengths) for window in self._cut(row, length)]

    def _cut(self, row: int, length: int) -> Iterator[Window]:
        last = max(0, length - self.length)
        starts = [*range(0, last, self.length - self.overlap), last]
        middles = [(start + after + self.length + 1) // 2 for start, after in pairwise(starts)]  # of what two share
        for start, first, end in zip(starts, [0, *middles], [*middles, length], strict=True):
            yield Window(row, start, min(start + self.length, length), first, end)

    def passes(self, windows: Sequence[Window], device: torch.device) -> Iterator[Sequence[Window]]:
        """The windows that are encoded together."""
        together = max(1, MOST_TOKENS[device_kind(device)] // self.length)
        for start in range(0, len(windows), together):
            yield windows[start : start + together]

    def encode(self, encode: Callable[[Tensor], dict], tokens: Tensor, pad: int) -> dict:
        """The encoder's output for sources. At least one of them has several windows.

        Args:
            encode: fairseq's forward pass of the encoder, of int64 [windows, tokens].
            tokens: int64 [B, S], padded on one side.
            pad: the word that is padding.

        Returns:
            As fairseq's encoder, without embeddings: `encoder_out` and each of `encoder_states` is [S, B, C], and
            zero at padding.
        """
        padding = tokens.eq(pad)
        lengths = (~padding).sum(dim=1)
        begins = (~padding).int().argmax(dim=1).tolist()  # the first token of each row
        with_gradients, others = self._divided(self.cut(lengths.tolist()), tokens, pad)
        joined = None  # the memory of the decoder and, if wanted, the states of each layer
        # In this order: autocast would use weights that it converted without gradients also for windows with gradients.
        for windows, has_gradients in ((with_gradients, torch.is_grad_enabled()), (others, False)):
            for some in self.passes(windows, tokens.device):
                texts = [tokens[each.row, begins[each.row] :][each.start : each.stop] for each in some]
                with torch.set_grad_enabled(has_gradients):
                    encoded = encode(pad_sequence(texts, batch_first=True, padding_value=pad))
                layers = encoded["encoder_out"] + encoded["encoder_states"]
                if joined is None:
                    # In the order in which EL-attention keeps it, which then needs no copy.
                    joined = [each.new_zeros(*tokens.shape, each.size(-1)).transpose(0, 1) for each in layers]
                for number, (row, start, _, first, end) in enumerate(some):
                    for hidden, states in zip(joined, layers, strict=True):
                        used = states[first - start : end - start, number]
                        hidden[begins[row] + first : begins[row] + end, row] = used
                del encoded, layers, states, used  # before the next ones
        return {
            "encoder_out": joined[:1],
            "encoder_padding_mask": [padding],
            "encoder_embedding": [],
            "encoder_states": joined[1:],
            "fc_results": [],
            "src_tokens": [],
            "src_lengths": [lengths.to(torch.int32).unsqueeze(1)],
        }

    def _divided(self, windows: list[Window], tokens: Tensor, pad: int) -> tuple[list[Window], list[Window]]:
        """The windows through which training has gradients, and the others.

        The draw depends only on the seed of the update and on the source. Several processes therefore train as one with
        the batches of all of them.
        """
        if self.trained is None or not torch.is_grad_enabled():
            return windows, []
        drawn = set()
        for row, of_row in groupby(windows, key=lambda window: window.row):
            own = list(of_row)
            source = tokens[row][tokens[row].ne(pad)].tolist()
            generator = random.Random(hash((torch.initial_seed(), *source)))
            drawn.update(generator.sample(own, min(self.trained, len(own))))
        return [each for each in windows if each in drawn], [each for each in windows if each not in drawn]


def chosen_windows(
    positions: int,
    long_input: bool = False,
    source_window: int | None = None,
    source_window_overlap: int | None = None,
    train_windows: int | None = None,
) -> SourceWindows | None:
    """The windows that options ask for, or None.

    Args:
        positions: of the encoder.
        long_input: windows of as many tokens, unless source_window is given.
        source_window: tokens of a window; 0: no windows.
        source_window_overlap: default: half of the window.
        train_windows: see `SourceWindows.trained`.

    Raises:
        UserError: options that do not go together, or a window longer than the positions.
    """
    if source_window == 0 or source_window is None and not long_input:
        for name, value in (("source_window_overlap", source_window_overlap), ("train_windows", train_windows)):
            if value is not None:
                raise UserError(
                    f"{value} is for sources in windows: also give source_window or long_input",
                    name,
                    ("source_window", "long_input"),
                )
        if long_input:
            raise UserError("0 does not go with long_input: leave out one", "source_window", ("long_input",))
        return None
    length = source_window or positions
    if length > positions:
        raise UserError(
            f"{length} is more than the encoder's {positions} positions: give these or fewer", "source_window"
        )
    overlap = length // 2 if source_window_overlap is None else source_window_overlap
    return SourceWindows(length, overlap, train_windows)
