"""All that a decoder remembers of a batch between steps."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from elseq.attention.memory import Cursor, SelfAttentionMemory, SentenceMemory


@dataclass
class LayerState:
    """What one decoder layer remembers. Under EL all layers hold the same `cross_attention` object."""

    self_attention: SelfAttentionMemory
    cross_attention: SentenceMemory | None = None


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
        return self.layers[0].self_attention.generated.tensors()[0].device

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

    def _sentence_states(self) -> Iterator[SentenceMemory]:
        unique = {}
        for layer in self.layers:
            for state in (layer.self_attention.prompt, layer.cross_attention):
                if state is not None:
                    unique[id(state)] = state
        return iter(unique.values())
