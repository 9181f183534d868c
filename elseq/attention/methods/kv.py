"""Keys and values: the usual cache of Transformers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from elseq.attention.kernels.decode_step import decode_step
from elseq.attention.memory import SentenceMemory, Stretch
from elseq.attention.methods.method import AttentionSizes, DecodingMethod, is_plain_step
from elseq.attention.multi_head import WIDEST_FUSED_HEAD, Segment, has_step_kernel, multi_head_attention


class KeysAndValues(DecodingMethod):
    """Keys and values [N, G, S, K] are projected once and kept, for every layer and key/value head."""

    name = "kv"
    help = "keys and values are cached"
    tensors_kept = 2
    reads_rounded = True

    def keep(self, attention, hidden: Tensor) -> tuple[Tensor, ...]:
        return attention.keys_and_values(hidden)

    def attend(self, attention, query: Tensor, memory: Sequence[Stretch], **options) -> tuple[Tensor, Tensor | None]:
        *prompts, last = memory
        keys, values = last.tensors
        if last.rows is not None:
            prompt = (*prompts[0].tensors, prompts[0].mask) if prompts else None
            return decode_step(query, prompt, (keys, values, last.rows), options.get("top_k")), None
        is_plain = last.ancestry is None and not prompts and keys.stride(2) == 1
        if is_plain and self.has_cpu_kernel(query, **options):
            return decode_step(query, (keys, values, last.mask), None, options.get("top_k")), None
        return multi_head_attention(query, _segments(memory), **options)

    def has_cpu_kernel(self, query: Tensor, shared: int = 0, **options) -> bool:
        # A subclass may attend in its own way, or keep something else.
        return type(self) is KeysAndValues and is_plain_step(query, **options)

    def has_step_kernel(self, sizes, like: Tensor, hypotheses: int, positions: int, ancestry=None, prompt=()) -> bool:
        number = like.new_empty(1)  # only the shapes count
        query = number.expand(hypotheses, sizes.num_heads, 1, sizes.head_dim)
        keys, values = (number.expand(hypotheses, sizes.num_kv_heads, positions, sizes.head_dim) for _ in range(2))
        segments = _segments([*prompt, Stretch((keys, values), ancestry=ancestry)])
        return type(self) is KeysAndValues and has_step_kernel(query, segments)

    def attend_first(self, attention, query, hidden, kept, **options) -> tuple[Tensor, Tensor | None]:
        return multi_head_attention(query, [Segment(*kept)], causal=True, window=attention.window, **options)

    def lay_out(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        keys, values = tensors
        # The product of a few queries with all keys reads them in this order.
        return keys.transpose(-1, -2).contiguous().transpose(-1, -2), values.contiguous()

    @torch.no_grad()
    def memories(
        self, attentions, hidden: Tensor, mask: Tensor | None, round_to: torch.dtype | None = None
    ) -> list[SentenceMemory]:
        """One block of memory for all layers. Separate tensors would not fit the free blocks that the encoder leaves in
        the heap, and the process would grow."""
        found = []
        block, start = None, 0
        for attention in attentions:
            keys, values = self.rounded(self.keep(attention, hidden), round_to)
            if block is None:
                positions = keys.size(0) * keys.size(2)
                block = keys.new_empty(positions * sum(self.numbers_kept(each.sizes) for each in attentions))
            stored_keys, stored_values = block[start : start + 2 * keys.numel()].view(2, -1)
            start += 2 * keys.numel()
            stored_keys = stored_keys.view(keys.transpose(-1, -2).shape).transpose(-1, -2)
            stored_values = stored_values.view(values.shape)
            found.append(SentenceMemory(self, (stored_keys.copy_(keys), stored_values.copy_(values)), mask))
            del keys, values  # before those of the next layer are made
        return found

    def numbers_kept(self, sizes: AttentionSizes) -> int:
        return 2 * sizes.num_kv_heads * sizes.head_dim

    def operations(self, sizes: AttentionSizes) -> int:
        return 4 * sizes.num_heads * sizes.head_dim

    def numbers_of_step(self, sizes: AttentionSizes, shared: int, own: int) -> int:
        is_fused = not shared and sizes.head_dim <= WIDEST_FUSED_HEAD
        return sizes.num_heads * (2 * sizes.head_dim + (0 if is_fused else 3 * (shared + own)))


def _segments(memory: Sequence[Stretch]) -> list[Segment]:
    return [Segment(*stretch.tensors, stretch.mask, stretch.ancestry) for stretch in memory]


KV = KeysAndValues()
