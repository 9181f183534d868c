"""The decoding state: everything that a decoder keeps of a batch between steps."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from elseq.attention.memory import Cursor, SelfAttentionMemory, SentenceMemory


@dataclass
class LayerState:
    """The state of one decoder layer. With `el` all layers share one `cross_attention` object."""

    self_attention: SelfAttentionMemory
    cross_attention: SentenceMemory | None = None


@dataclass
class DecodeState:
    """Everything that a decoder keeps of a batch."""

    layers: list[LayerState]
    length: int = 0  # tokens decoded so far, without the prompt
    prompt_lengths: Tensor | None = None  # int64 [B]
    longest_prompt: int = 0  # of the sentences, or of those that have left since `measure_prompts`
    cursor: Cursor | None = None  # after `fix`
    round_to: torch.dtype | None = None  # type of the numbers of sentences; see `DecodingMethod.rounded`

    def fix(self, capacity: int, beam: int, hypotheses: Tensor | None = None) -> None:
        """Move the memory of the hypotheses into buffers of fixed addresses. No layer may have a window.

        Afterwards the state takes one token at a time, between `cursor.begin()` and `cursor.end()`. It may be called
        again with a larger capacity or fewer hypotheses.

        Args:
            capacity: number of positions in the buffers.
            beam: hypotheses of each sentence. Afterwards they are reordered only within their sentence.
            hypotheses: int64 [N'], the hypotheses to keep, in this order. Default: all.
        """
        self.cursor = Cursor(self.length, capacity, self._device())
        for layer in self.layers:
            layer.self_attention.fix(self.length, capacity, self.cursor, beam, hypotheses)

    def _device(self) -> torch.device:
        return self.layers[0].self_attention.generated.tensors()[0].device

    def end_prompt(self, mask: Tensor) -> None:
        """Make all tokens so far, one row per sentence, the prompt. mask: bool [B, P], True at padding."""
        self.prompt_lengths = (~mask).sum(dim=1)
        self.longest_prompt = self.length
        self.length = 0
        padding = mask if bool(mask.any()) else None
        for layer in self.layers:
            layer.self_attention.end_prompt(padding, self.round_to)

    def positions(self, hypotheses: int, tokens: int) -> Tensor | range:
        """Position in the text of each of the next tokens, from 0: a range, or int64 [N or 1, T]."""
        if self.cursor is not None:
            starts = 0 if self.prompt_lengths is None else self._starts(hypotheses)
            return starts + self.cursor.position.unsqueeze(0)
        following = range(self.length, self.length + tokens)
        if self.prompt_lengths is None:
            return following
        device = self.prompt_lengths.device
        return self._starts(hypotheses) + torch.arange(following.start, following.stop, device=device)

    def _starts(self, hypotheses: int) -> Tensor:
        """Length of the prompt of each hypothesis, [N, 1]."""
        return self.prompt_lengths.repeat_interleave(hypotheses // self.prompt_lengths.numel()).unsqueeze(1)

    def reorder(self, order: Tensor) -> None:
        """Hypothesis n continues hypothesis order[n], int64 [N']. To drop whole sentences, also call `keep`."""
        spare = None
        for layer in self.layers:
            spare = layer.self_attention.generated.reorder(order, spare)

    def keep(self, sentences: Tensor) -> None:
        """Keep only these sentences, int64 [B']. `reorder` must drop the hypotheses of the others."""
        for state in self._sentence_states():
            state.keep(sentences)
        if self.prompt_lengths is not None:
            self.prompt_lengths = self.prompt_lengths.index_select(0, sentences)

    def measure_prompts(self) -> None:
        """Those of sentences that have left count no more for `longest_prompt`. A GPU is waited for."""
        if self.prompt_lengths is not None:
            self.longest_prompt = int(self.prompt_lengths.max())

    def bytes_of_position(self) -> int:
        """Bytes of a generated position of all hypotheses, in all layers."""
        kept = (tensor for layer in self.layers for tensor in layer.self_attention.generated.tensors())
        return sum(tensor.nbytes // tensor.size(-2) for tensor in kept)

    def size_bytes(self) -> int:
        """Bytes of the state. Memory that layers share counts once."""
        per_hypothesis = sum(layer.self_attention.generated.size_bytes() for layer in self.layers)
        return per_hypothesis + sum(state.size_bytes() for state in self._sentence_states())

    def _sentence_states(self) -> Iterator[SentenceMemory]:
        unique = {}
        for layer in self.layers:
            for state in (layer.self_attention.prompt, layer.cross_attention):
                if state is not None:
                    unique[id(state)] = state
        return iter(unique.values())
