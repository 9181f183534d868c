"""The decoding state: everything that a decoder keeps of a batch between steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from elseq.attention.ancestry import Ancestry
from elseq.attention.memory import Cursor, FixedMemory, GrowingMemory, SelfAttentionMemory, SentenceMemory


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
    cursor: Cursor | None = None  # after `fix`, `empty` and `narrow`
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
        like = self._like()
        count = len(like if hypotheses is None else hypotheses)
        ancestry = Ancestry(count, beam, capacity, like.device)
        cursor = Cursor(self.length, capacity, like.device, ancestry if self._reads_by(ancestry) else None)
        for layer in self.layers:
            layer.self_attention.fix(self.length, capacity, cursor, beam, hypotheses)
        self.cursor = cursor

    def _reads_by(self, ancestry: Ancestry) -> bool:
        """Whether all layers find the positions of hypotheses by an ancestry."""
        return all(layer.self_attention.reads_by(ancestry) for layer in self.layers)

    def empty(self, sentences: int, beam: int, source_length: int, prompt_length: int, capacity: int) -> DecodeState:
        """Buffers of fixed addresses for the state of any batch of the same kind and at most these sizes, for `narrow`.

        Args:
            sentences: B.
            beam: hypotheses of each.
            source_length, prompt_length: positions of sources and prompts.
            capacity: positions of generated tokens.
        """
        device = self._like().device
        cursor = Cursor(0, capacity, device, Ancestry(sentences * beam, beam, capacity, device))
        state = self._of(
            lambda memory, is_prompt: memory.empty(sentences, prompt_length if is_prompt else source_length),
            lambda memory: FixedMemory.empty(memory.tensors(), sentences * beam, capacity, cursor, beam),
        )
        if self.prompt_lengths is not None:
            state.prompt_lengths = self.prompt_lengths.new_zeros(sentences)
        state.cursor = cursor
        return state

    def narrow(self, sentences: int, beam: int, has_ancestry: bool | None = None) -> DecodeState:
        """The first sentences of `empty`, in the same place. What is kept, fixed or dropped of it does not change the
        buffers themselves.

        Args:
            sentences, beam: as for `empty`.
            has_ancestry: whether hypotheses are found by an ancestry, as was decided for these sizes. Default: to be
                decided.
        """
        hypotheses = sentences * beam
        cursor = self.cursor.narrow(hypotheses)
        state = self._of(
            lambda memory, is_prompt: memory.narrow(sentences), lambda memory: memory.narrow(hypotheses, cursor)
        )
        if has_ancestry is False or has_ancestry is None and not state._reads_by(cursor.ancestry):
            cursor.ancestry = None
        state.cursor = cursor
        if self.prompt_lengths is not None:
            state.prompt_lengths = self.prompt_lengths[:sentences]
        return state

    @torch.no_grad()
    def load(self, other: DecodeState, hypotheses: Tensor | None = None) -> None:
        """Continue another state of as many sentences, or fewer, in the buffers of this one, made by `empty` or
        `narrow`.

        Args:
            other: does not change. It may lie in the same buffers.
            hypotheses: int64 [N'], those of the other to continue, in this order. Default: all.
        """
        for memory, loaded in zip(self._sentence_memories(), other._sentence_memories(), strict=True):
            memory.load(loaded)
        for layer, loaded in zip(self.layers, other.layers, strict=True):
            tensors = loaded.self_attention.generated.tensors()
            layer.self_attention.generated.load(tensors, other.length, hypotheses)
        if other.prompt_lengths is not None:
            self.prompt_lengths[: len(other.prompt_lengths)] = other.prompt_lengths
            self.prompt_lengths[len(other.prompt_lengths) :] = 0
        self.longest_prompt, self.length = other.longest_prompt, other.length
        self.cursor.position.fill_(other.length)
        if self.cursor.ancestry is not None:
            self.cursor.ancestry.reset()

    def _of(
        self,
        sentence: Callable[[SentenceMemory, bool], SentenceMemory],
        hypothesis: Callable[[GrowingMemory | FixedMemory], FixedMemory],
    ) -> DecodeState:
        """A state of other memories, made of the memories of this one (the bool: whether it is a prompt's). Layers
        share what they share here."""
        made: dict[int, SentenceMemory] = {}

        def make(memory: SentenceMemory | None, is_prompt: bool) -> SentenceMemory | None:
            if memory is not None and id(memory) not in made:
                made[id(memory)] = sentence(memory, is_prompt)
            return made.get(id(memory))

        layers = []
        for layer in self.layers:
            own = copy.copy(layer.self_attention)
            own.prompt, own.generated = make(own.prompt, True), hypothesis(own.generated)
            layers.append(LayerState(own, make(layer.cross_attention, False)))
        return replace(self, layers=layers)

    def _like(self) -> Tensor:
        """What a layer keeps of the hypotheses, in their order or not."""
        memory = self.layers[0].self_attention.generated
        return memory.buffers[0] if isinstance(memory, FixedMemory) else memory.tensors()[0]

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
        if self.cursor is not None:
            self.cursor.reorder(order)
        spare = None
        for layer in self.layers:
            spare = layer.self_attention.generated.reorder(order, spare)

    def keep(self, sentences: Tensor) -> None:
        """Keep only these sentences, int64 [B']. `reorder` must drop the hypotheses of the others."""
        for memory in self._sentence_memories():
            memory.keep(sentences)
        if self.prompt_lengths is not None:
            self.prompt_lengths = self.prompt_lengths.index_select(0, sentences)

    def measure_prompts(self) -> None:
        """Those of sentences that have left count no more for `longest_prompt`. A GPU is waited for."""
        if self.prompt_lengths is not None:
            self.longest_prompt = int(self.prompt_lengths.max())

    def bytes_of_position(self) -> int:
        """Bytes of a generated position of all hypotheses, in all layers."""
        kept = (buffer for layer in self.layers for buffer in layer.self_attention.generated.buffers)
        return sum(buffer.nbytes // buffer.size(-2) for buffer in kept)

    def size_bytes(self) -> int:
        """Bytes of the state. Memory that layers share counts once."""
        per_hypothesis = sum(layer.self_attention.generated.size_bytes() for layer in self.layers)
        return per_hypothesis + sum(memory.size_bytes() for memory in self._sentence_memories())

    def _sentence_memories(self) -> Iterator[SentenceMemory]:
        unique = {}
        for layer in self.layers:
            for memory in (layer.self_attention.prompt, layer.cross_attention):
                if memory is not None:
                    unique[id(memory)] = memory
        return iter(unique.values())
