"""How many bytes a batch will take, beside the model, and so how many sentences fit a budget."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from elseq.attention import DecodingMethod
from elseq.attention.kernels.largest import fits
from elseq.attention.memory import GROWTH, PARTS
from elseq.attention.methods import AUTO, EL, KV
from elseq.attention.multi_head import WIDEST_FUSED_HEAD
from elseq.attention.top_k import MOST_QUERIES, MOST_SCORES
from elseq.errors import UserError
from elseq.generation.batches import largest
from elseq.generation.beam_search import BeamSearch
from elseq.generation.method_choice import Choice
from elseq.generation.next_words import NextWords
from elseq.generation.planner import Workload, decoding_state_bytes
from elseq.generation.search import SequenceGenerator
from elseq.models import Decoder
from elseq.models.layers import IN_PLACE, WIDEST
from elseq.precision import Product, kind_of_product

INDEX_BYTES = 8
SCALARS = 1024  # bytes, of single numbers


def write_bytes(size: float) -> str:
    """For people: 1.5 GiB."""
    unit = min(4, max(0, int(size).bit_length() - 1) // 10)
    return f"{size / 1024**unit:.{min(unit, 1)}f} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


def capacity(models, search, budget: int, name: Callable[[int], str], extra: int = 0) -> Callable[[int], int]:
    """How many sentences of a length a batch may have.

    Args:
        models: what decodes, an ensemble if several.
        search: their generator.
        budget: bytes.
        name: what to call the longest sentence of a length in an error.
        extra: positions that the task adds to each source.

    Raises:
        UserError: the model is not decoded by elseq's own state; or, when called, a sentence that is too long for the
            budget, even alone.
    """
    ours = all(isinstance(getattr(model, "decoder", None), Decoder) for model in models)
    if not isinstance(search, SequenceGenerator) or not ours:
        raise UserError("a memory budget needs a model that elseq decodes by kv or el: give a number of tokens instead")

    def sentences(length: int) -> int:
        def needed(number: int) -> int:
            return sum(batch_bytes(model, search, number, length + extra) for model in models)

        number = largest(lambda number: needed(number) <= budget)
        if not number:
            least, given = write_bytes(needed(1)), write_bytes(budget)
            raise UserError(f"{name(length)} alone needs about {least} of memory and the budget is {given}: raise it")
        return number

    return sentences


def batch_bytes(model, search: SequenceGenerator, sentences: int, length: int) -> int:
    """The most that the tensors of a batch take at any time while it is decoded, the model's parameters apart.

    The decoding state is predicted exactly. What is computed beside it is estimated from above, by what each part of a
    search holds at its worst moment: the encoder or the reading of a prompt, the projection of keys and values, and the
    steps of decoding with their logits, the words and scores so far, and the finished hypotheses. Not in it: what an
    allocator loses between tensors, and what CUDA needs for itself.

    Args:
        model: an elseq model.
        search: its generator.
        sentences: in the batch.
        length: tokens of each source, or of each prompt, with the symbols that the task adds.
    """
    name = model.decoder.decode_attention
    methods = [Choice(KV, KV), Choice(KV, EL), Choice(EL, EL)] if name == AUTO else [Choice.named(name)]
    return max(_Batch(model, search, sentences, length, method).bytes() for method in methods)


@dataclass(frozen=True)
class _Rows:
    """Activations of some rows, which are positions of sentences or hypotheses, in bytes."""

    count: int
    itemsize: int
    product: type[Product]
    is_cpu: bool  # where wide activations are computed in blocks; see `FeedForwardLayer`

    def tensor(self, width: int) -> int:
        return self.count * width * self.itemsize

    def output(self, linear) -> int:
        """Of a linear layer."""
        return self.product.output_bytes(self.count, linear.out_features, self.itemsize)

    def input(self, linear) -> int:
        """See `Product.input_bytes`."""
        return self.product.input_bytes(self.count, linear.in_features, self.itemsize)

    def multiplying(self, linear, is_scattered: bool = False) -> int:
        """By a linear layer; see `Product.multiplying_bytes`."""
        sizes = linear.in_features, linear.out_features
        return self.product.multiplying_bytes(self.count, *sizes, self.itemsize, is_scattered)

    def attention(self, attention, attending: int, projects: bool = True, keeps: bool = False) -> int:
        """The most that an attention layer holds at a time, its output included, its input not.

        Args:
            attention: the layer.
            attending: what its method holds, besides queries, and keys and values of these rows.
            projects: whether these rows have keys and values.
            keeps: whether they are still there when the output is made.
        """
        query = self.tensor(attention.q_proj.out_features)
        key, value = (self.output(each) if projects else 0 for each in (attention.k_proj, attention.v_proj))
        return max(
            self.multiplying(attention.q_proj),
            self.output(attention.q_proj) + query,  # as it is scaled
            query + key + self.multiplying(attention.v_proj) if projects else 0,
            query + key + value + attending + self.input(attention.q_proj),
            query + keeps * (key + value) + query + self.multiplying(attention.out_proj, is_scattered=True),
        )

    def feed_forward(self, layer) -> int:
        """The most that the feed-forward part of a layer holds at a time, its output included, its input not."""
        most, copies = self.count, 3
        if layer.ffn_top_k is not None:
            most = layer.ffn_chunk_size or MOST_QUERIES["cpu" if self.is_cpu else "other"]
        else:
            if self.is_cpu:
                most = max(1, WIDEST // layer.fc1.out_features)
            if layer.activation in (*IN_PLACE, *self.product.activations):
                copies = 0
        rows = replace(self, count=min(most, self.count))
        whole = self.tensor(layer.fc2.out_features) if most < self.count else 0
        inner = rows.output(layer.fc1)
        return whole + inner * copies + max(rows.multiplying(layer.fc1), inner + rows.multiplying(layer.fc2))

    def layer(self, layer, *attentions: int) -> int:
        """The most that a layer holds at a time: with its input, of which it adds the result to a copy that may be
        normalized."""
        hidden = self.tensor(layer.embed_dim)
        own, *cross = attentions
        parts = (own, *(hidden + part for part in (*cross, self.feed_forward(layer))))
        return hidden * (1 + layer.normalize_before) + max(parts)


class _Batch:
    """What a batch takes at each stage of a search, in bytes."""

    def __init__(self, model, search: SequenceGenerator, sentences: int, length: int, methods: Choice):
        self.decoder, self.encoder = model.decoder, getattr(model, "encoder", None)
        self.search, self.methods = search, methods
        self.sentences, self.length, self.beam = sentences, length, search.beam_size
        weight = next(self.decoder.parameters())
        self.dtype, self.device = weight.dtype, weight.device
        self.wide = max(torch.float32.itemsize, self.dtype.itemsize)  # of what is float32 at least
        self.product = kind_of_product(model, self.decoder.decode_dtype)
        prompt = None if self.encoder is not None else torch.full((1, length), search.eos)
        [limit] = search.length_limits(torch.tensor([length]), prompt)
        self.steps = limit + 1
        source, prompt = (length, 0) if self.encoder is not None else (0, length - 1)
        self.workload = Workload(sentences, self.beam, source, self.steps, prompt)

    def bytes(self) -> int:
        """At most at a time."""
        reading = self._reading_prompts() if self.encoder is None else self._encoding()
        step = self._state(self.workload) + self._step()
        # On a GPU a captured step has memory of its own, which reading the source cannot use.
        return SCALARS + self._hypotheses() + (max(reading, step) if self.device.type == "cpu" else reading + step)

    def _state(self, workload: Workload) -> int:
        return decoding_state_bytes(self.decoder, workload, self.methods.own, self.dtype, self.methods.cross)

    def _rows(self, count: int) -> _Rows:
        return _Rows(count, self.dtype.itemsize, self.product, self.device.type == "cpu")

    def _hypotheses(self) -> int:
        """Words and scores, and the attention to the source, of those that are searched and of the finished ones."""
        finished = min(self.search.stopping.finished(self.beam), self.beam * self.steps)
        each = self.steps * (INDEX_BYTES + self.wide) + 5 * INDEX_BYTES + self._alignment()
        return self.sentences * (1 + self.beam + finished) * each

    def _alignment(self) -> int:
        """The attention of a hypothesis to the source."""
        return self.length * (self.steps + 1) * self.wide if self.search.print_alignment else 0

    def _encoding(self) -> int:
        """The encoder, and the memory that is made of its output."""
        whole = self._rows(self.sentences * self.length)
        hidden = whole.tensor(self.encoder.layers[0].embed_dim)
        windows = self.encoder.source_windows
        is_cut = windows is not None and self.length > windows.length
        remembering = hidden + self._state(replace(self.workload, target_length=0))
        projected = [layer.encoder_attn for layer in self.decoder.layers if layer.encoder_attn is not None]
        if projected and self.methods.cross.projects_memory:
            is_scattered = is_cut and self.sentences > 1
            remembering += max(self._projecting(whole, attention, is_scattered) for attention in projected)
        elif is_cut:
            remembering -= hidden  # it is the memory itself
        if not is_cut:
            return whole.count + hidden + max(self._layers(whole, self.length), remembering)
        # Beside the states of all windows, some are encoded, with their tokens and embeddings.
        cut = windows.cut([self.length] * self.sentences)
        some = self._rows(windows.length * max(len(each) for each in windows.passes(cut, self.device)))
        encoding = some.count * (1 + 2 * INDEX_BYTES) + some.tensor(self.encoder.layers[0].embed_dim)
        return whole.count + max(hidden + encoding + self._layers(some, windows.length), remembering)

    def _layers(self, rows: _Rows, length: int) -> int:
        """The most that the encoder holds at a time, beside a mask and the embeddings.

        Args:
            rows: the positions that it reads.
            length: how many of them attend to one another.
        """
        layers = [
            rows.layer(
                layer,
                rows.attention(layer.self_attn, self._attending_to_all(rows, layer.self_attn, length), keeps=True),
            )
            for layer in self.encoder.layers
        ]
        return max(3 * rows.tensor(self.encoder.layers[0].embed_dim), *layers)

    def _projecting(self, rows: _Rows, attention, is_scattered: bool) -> int:
        """Keys and values of a source, and the same rounded. is_scattered: see `Product.multiplying_bytes`."""
        key, value = rows.output(attention.k_proj), rows.output(attention.v_proj)
        rounding = rows.input(attention.v_proj) + value + self._rounding(rows, attention, self.methods.cross)
        return key + max(rows.multiplying(attention.v_proj, is_scattered), rounding)

    def _rounding(self, rows: _Rows, attention, method: DecodingMethod) -> int:
        to, kept = self.decoder.round_to, method.dtype_kept(self.dtype, self.decoder.round_to)
        if to is None:
            return 0
        return rows.count * method.numbers_kept(attention.sizes) * (to.itemsize + (kept != to) * kept.itemsize)

    def _reading_prompts(self) -> int:
        """The decoder over whole prompts, and the memory that is made of them."""
        length = self.workload.prompt_length
        if not length:
            return 0
        rows, own = self._rows(self.sentences * length), self.methods.own
        layers = [
            rows.layer(layer, rows.attention(layer.self_attn, self._attending_to_all(rows, layer.self_attn, length)))
            for layer in self.decoder.layers
        ]
        ending = [
            self._rounding(rows, layer.self_attn, own)
            + rows.count
            * own.numbers_kept(layer.self_attn.sizes)
            * own.dtype_kept(self.dtype, self.decoder.round_to).itemsize
            for layer in self.decoder.layers
        ]
        # As the prompt is read it is remembered like what a hypothesis has, one for each sentence.
        room = -(-length // GROWTH) * GROWTH
        numbers = sum(own.numbers_kept(layer.self_attn.sizes) for layer in self.decoder.layers)
        remembered = self.sentences * room * numbers * self.dtype.itemsize
        return remembered + 3 * rows.count * INDEX_BYTES + max(*layers, *ending)

    def _attending_to_all(self, rows: _Rows, attention, length: int) -> int:
        """So many positions of a sentence to one another: the result, and sums of exponentials."""
        query = rows.tensor(attention.q_proj.out_features)
        scores = rows.count * attention.num_heads
        attending = query + scores * self.wide
        if attention.num_kv_heads != attention.num_heads:
            attending += 2 * query
        if attention.top_k is not None and attention.top_k < length:
            most = MOST_SCORES["cpu" if rows.is_cpu else "other"]
            attending += 5 * query + 2 * min(scores * length, most) * self.wide
        return attending

    def _step(self) -> int:
        """A step of decoding, the last one, besides the state."""
        rows = self._rows(self.sentences * self.beam)
        layers, tables = [], 0
        for layer in self.decoder.layers:
            own, is_unmoved = self._attending(
                rows, layer.self_attn, self.methods.own, self.workload.prompt_length, self.steps
            )
            moving = self._moving(rows, layer.self_attn, is_unmoved)
            projects = self.methods.own.projects_memory
            attentions = [rows.attention(layer.self_attn, max(own, moving), projects)]
            if layer.encoder_attn is not None:
                cross, _ = self._attending(rows, layer.encoder_attn, self.methods.cross, self.length, 0)
                attentions.append(rows.attention(layer.encoder_attn, cross, projects=False))
            layers.append(rows.layer(layer, *attentions))
            tables += is_unmoved * (self.beam > 1) * rows.count * self.steps * INDEX_BYTES
        candidates = rows.count * (2 * self.beam + 2) * 5 * INDEX_BYTES
        finishing = rows.count * (self.steps * (2 * INDEX_BYTES + 4 * self.wide) + self._alignment())
        return tables + max(*layers, self._logits(rows) + candidates, finishing, self._leaving())

    def _attending(self, rows: _Rows, attention, method: DecodingMethod, shared: int, own: int) -> tuple[int, bool]:
        """What `DecodingMethod.attend` holds, and whether a kernel attends."""
        query = torch.empty(1, attention.num_heads, 1, attention.head_dim, dtype=self.dtype, device=self.device)
        is_last = shared and not own and attention is self.decoder.layers[-1].encoder_attn
        need_weights = bool(self.search.print_alignment) and is_last
        if method.reads_unmoved(query, top_k=attention.top_k, need_weights=need_weights):
            copies = 1 if self.dtype == torch.float32 else 2
            return copies * rows.count * query.numel() * self.wide, True
        numbers = method.numbers_of_step(attention.sizes, shared, own)
        if attention.top_k is not None and attention.top_k < shared + own:
            numbers = method.numbers_of_step(attention.sizes, 1, 0)  # besides the scores
            numbers += attention.num_heads * self._choosing(query, attention.top_k, shared, own, need_weights)
        copied = 0
        is_split = shared or attention.sizes.memory_width > WIDEST_FUSED_HEAD
        if own and is_split and self.dtype.itemsize < torch.float32.itemsize:  # products copy what has room to grow
            copied = (rows.count * own + self.sentences * shared) * method.numbers_kept(attention.sizes)
            copied = copied // method.tensors_kept * self.dtype.itemsize
        return rows.tensor(numbers) + copied, False

    def _choosing(self, query, top_k: int, shared: int, own: int, need_weights: bool) -> int:
        """Numbers that the scores of a query take, and the choice of the largest of them."""
        scores = shared + own
        if fits(query, query, query) and not (shared and own) and not need_weights:
            return scores if self.dtype == torch.float32 else 3 * scores  # for the kernel, in float32
        return 4 * scores + 40 * top_k  # of groups of scores, see `elseq.attention.top_k`

    def _moving(self, rows: _Rows, attention, is_unmoved: bool) -> int:
        """Second copies of what a layer remembers of the hypotheses, as it grows or is reordered."""
        longest = self.steps if attention.window is None else min(self.steps, attention.window + 1)
        room = -(-longest // GROWTH) * GROWTH
        if attention.window is None and (is_unmoved or self.beam == 1):
            room -= GROWTH
        method = self.methods.own
        tensors = method.tensors_kept if self.device.type == "cpu" else 1
        return rows.tensor(room * method.numbers_kept(attention.sizes)) // tensors

    def _logits(self, rows: _Rows) -> int:
        """The logits, and what is made of them to choose words."""
        vocabulary, search = self.search.vocab_size, self.search
        words = rows.count * vocabulary * self.wide
        is_plain = isinstance(search.search, BeamSearch) and search.lm_model is None and len(search.models) == 1
        if self.decoder.adaptive_softmax is not None:
            return 4 * words
        output = self.decoder.output_projection
        logits = rows.output(output)
        offers_best = NextWords(logits=torch.empty(1, 1, dtype=self.dtype, device=self.device)).offers_best
        if not is_plain or self.device.type != "cpu":
            beside = 3 * words
        else:
            is_converted = self.dtype.itemsize < self.wide
            copies = is_converted if offers_best else 1 + is_converted
            # Where words have the same score, as at the maximum length, those of a sentence are there once more.
            beside = copies * words + self.beam * vocabulary * self.wide
        scaled = rows.tensor(vocabulary) if search.model.steppers[0].temperature != 1 else 0
        hidden = 2 * rows.tensor(output.in_features)
        return max(hidden + rows.multiplying(output), logits + max(scaled, beside))

    def _leaving(self) -> int:
        """Second copies of a part of what is remembered of sentences, as some of them are finished."""
        if self.sentences == 1:
            return 0
        most = 0
        for layer in self.decoder.layers:
            for attention, method, length in (
                (layer.self_attn, self.methods.own, self.workload.prompt_length),
                (layer.encoder_attn, self.methods.cross, self.workload.source_length),
            ):
                if attention is not None and length:
                    numbers = self.sentences * length * method.numbers_kept(attention.sizes) // method.tensors_kept
                    parts = min(PARTS, attention.num_kv_heads if method.projects_memory else length)
                    most = max(most, numbers * method.dtype_kept(self.dtype, self.decoder.round_to).itemsize // parts)
        return most
