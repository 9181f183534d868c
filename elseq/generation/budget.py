"""How many bytes a batch will take, beside the model, and so how many sentences fit a budget."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from elseq.arguments import format_bytes
from elseq.attention import DecodingMethod
from elseq.attention.kernels.decode_step import computes_texts
from elseq.attention.memory import GROWTH, PARTS, room_for
from elseq.attention.methods import KV, AttentionSizes, Choice
from elseq.attention.multi_head import WIDEST_FUSED_HEAD, block_positions, fused_workspace_bytes
from elseq.attention.top_k import MOST_QUERIES, chunk_bytes, keeping_bytes
from elseq.errors import UserError
from elseq.generation.batches import largest
from elseq.generation.beam_search import BeamSearch
from elseq.generation.method_choice import possible_choices
from elseq.generation.next_tokens import NextTokens
from elseq.generation.planner import Workload, decoding_state_bytes
from elseq.generation.search import SequenceGenerator
from elseq.generation.steppers import positions_at_once
from elseq.gpu import device_kind
from elseq.models import Decoder, layer_step
from elseq.models.layer_step import MOST_INNER_NUMBERS
from elseq.models.layers import IN_PLACE
from elseq.precision import INT8, KernelProduct, Product, kind_of_product
from elseq.precision.linear import onednn_multiplies_narrow_types

SCALAR_BYTES = 512  # of single numbers
TOKEN_BYTES = torch.int64.itemsize  # and of all else that numbers something


def capacity(models, search, budget: int, name: Callable[[int], str], extra: int = 0) -> Callable[[int], int]:
    """How many sentences of a length a batch may have.

    Args:
        models: what decodes, an ensemble if several.
        search: their generator, which from now on keeps nothing for the next batch: the budget is for one.
        budget: bytes.
        name: what to call the longest sentence of a length in an error.
        extra: positions that the task adds to each source.

    Raises:
        UserError: the model is not decoded by elseq's own state; or, when called, a sentence that is too long for the
            budget, even alone.
    """
    if not isinstance(search, SequenceGenerator):
        raise _unknown("a model")
    _check(*models)
    if search.lm_model is not None:
        _check(search.lm_model, what="a language model")
    search.stepper.keep_nothing()

    def sentences(length: int) -> int:
        def needed(number: int) -> int:
            return sum(batch_bytes(model, search, number, length + extra) for model in models)

        return _most(needed, budget, lambda: name(length))

    return sentences


def scoring_capacity(
    model, budget: int, sources: np.ndarray, targets: np.ndarray, name: Callable[[int], str]
) -> Callable[[np.ndarray], int]:
    """How many of some pairs of a source and a target, the first ones, a batch may have.

    Args:
        model: what scores the targets.
        budget: bytes.
        sources, targets: tokens of each pair, int64 [P], with the symbols that the task adds: P pairs.
        name: what to call a pair in an error.

    Raises:
        UserError: as `capacity`.
    """
    _check(model)

    def pairs(order: np.ndarray) -> int:
        def needed(number: int) -> int:
            if number > len(order):
                return budget + 1
            lengths = (int(each[order[:number]].max()) for each in (sources, targets))
            return scoring_bytes(model, number, *lengths)

        return _most(needed, budget, lambda: name(int(order[0])))

    return pairs


def _check(*models, what: str = "a model") -> None:
    """
    Raises:
        UserError: a model is not decoded by elseq's own state.
    """
    if not all(isinstance(getattr(model, "decoder", None), Decoder) for model in models):
        raise _unknown(what)


def _unknown(what: str) -> UserError:
    return UserError(f"a memory budget needs {what} that elseq decodes by kv or el: give a number of tokens instead")


def _most(needed: Callable[[int], int], budget: int, name: Callable[[], str]) -> int:
    """The largest number of sentences for which the bytes that they need fit the budget.

    Raises:
        UserError: not even one fits.
    """
    number = largest(lambda number: needed(number) <= budget)
    if not number:
        least, given = format_bytes(needed(1)), format_bytes(budget)
        raise UserError(f"{name()} alone needs about {least} of memory and the budget is {given}: raise it")
    return number


def batch_bytes(model, search: SequenceGenerator, sentences: int, length: int) -> int:
    """The most that the tensors of a batch take at any time while it is decoded, the model's parameters apart.

    The decoding state is predicted exactly. What is computed beside it is estimated from above, by what each part of a
    search holds at its worst moment: the encoder or the reading of a prompt, the projection of keys and values, and the
    steps of decoding with their logits, the tokens and scores so far, and the finished hypotheses. Not in it: what an
    allocator loses between tensors, and what CUDA needs for itself.

    Args:
        model: an elseq model.
        search: its generator.
        sentences: in the batch.
        length: tokens of each source, or of each prompt, with the symbols that the task adds.
    """

    def of(model) -> list[_Search]:
        choices = possible_choices(model.decoder.decode_attention)
        return [_Search(model, methods, search, sentences, length) for methods in choices]

    language_models = [None] if search.lm_model is None else of(search.lm_model)
    return max(batch.bytes(language_model) for batch in of(model) for language_model in language_models)


def scoring_bytes(model, sentences: int, source_length: int, target_length: int) -> int:
    """As `batch_bytes`, while given targets are scored.

    Args:
        model: an elseq model.
        sentences: in the batch.
        source_length: tokens of each source, or of each prompt, with the symbols that the task adds.
        target_length: tokens of each target, the same.
    """
    methods = Choice.without_search(model.decoder.decode_attention)
    return _Scoring(model, methods, sentences, source_length, target_length).bytes()


@dataclass(frozen=True)
class _Rows:
    """Activations of some rows, which are positions of sentences or hypotheses, in bytes."""

    count: int
    itemsize: int
    product: type[Product]
    device_kind: str  # on a CPU wide activations are computed in blocks; see `FeedForwardLayer`

    def tensor(self, width: int) -> int:
        return self.count * width * self.itemsize

    def output(self, linear) -> int:
        """The output of a linear layer."""
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
            most = layer.ffn_chunk_size or MOST_QUERIES[self.device_kind]
        else:
            if self.device_kind == "cpu":
                most = max(1, MOST_INNER_NUMBERS // layer.fc1.out_features)
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


def _read(method: DecodingMethod, sizes: AttentionSizes) -> tuple[int, int]:
    """The width of what a method reads, and how many heads of the query read the same."""
    if method.projects_memory:
        return sizes.head_dim, sizes.num_heads // sizes.num_kv_heads
    return sizes.memory_width, sizes.num_heads


def _adjacent_if_alone(method: DecodingMethod, sizes: AttentionSizes) -> int:
    """How many numbers of a position stand in order behind those of the position before, in the buffers of a single
    sequence: `DecodingMethod.lay_out` does not copy these."""
    if not method.projects_memory:
        return method.numbers_kept(sizes)
    return sizes.head_dim if sizes.num_kv_heads == 1 else 0  # the values of a single head


class _Batch:
    """What a model takes at each stage of a batch, in bytes."""

    def __init__(self, model, methods: Choice, workload: Workload):
        self.decoder, self.encoder = model.decoder, getattr(model, "encoder", None)
        self.methods, self.workload = methods, workload
        self.sentences, self.beam = workload.sentences, workload.beam
        self.length = workload.source_length or workload.prompt_length + 1
        weight = next(self.decoder.parameters())
        self.dtype, self.device = weight.dtype, weight.device
        self.wide_itemsize = max(torch.float32.itemsize, self.dtype.itemsize)  # of what is float32 at least
        self.product = kind_of_product(model, self.decoder.decode_dtype)

    def _state(self) -> int:
        """At the end."""
        return self._memory(self.workload.target_length)

    def _memory(self, target_length: int = 0) -> int:
        """The state after so many positions of the target, the buffers of a single prompt with the room to grow that
        they had."""
        workload = replace(self.workload, target_length=target_length)
        state = decoding_state_bytes(self.decoder, workload, self.methods)
        if not workload.prompt_length or self.sentences > 1:
            return state
        numbers = sum(_adjacent_if_alone(self.methods.own, layer.self_attn.sizes) for layer in self.decoder.layers)
        return state + (room_for(workload.prompt_length) - workload.prompt_length) * numbers * self.dtype.itemsize

    def _rows(self, count: int) -> _Rows:
        return _Rows(count, self.dtype.itemsize, self.product, device_kind(self.device))

    def _reading(self) -> int:
        """All that happens before the first token of a target."""
        return self._reading_prompts() if self.encoder is None else self._encoding()

    def _encoding(self) -> int:
        """The encoder, and the memory that is made of its output."""
        whole = self._rows(self.sentences * self.length)
        hidden = whole.tensor(self.encoder.layers[0].embed_dim)
        windows = self.encoder.source_windows
        is_cut = windows is not None and self.length > windows.length
        remembering = hidden + self._memory()
        projected = self.decoder.cross_attentions
        if projected and self.methods.cross.projects_memory:
            is_scattered = is_cut and self.sentences > 1
            remembering += max(self._projecting(whole, attention, is_scattered) for attention in projected)
        elif projected and not is_cut:
            remembering += self._rounding(whole, projected[0], self.methods.cross)
        elif is_cut and not self._is_narrow(self.methods.cross):
            remembering -= hidden  # it is the memory itself
        if not is_cut:
            reading = max(3 * hidden, self._layers(self.encoder.layers, whole, self.length))
            return whole.count + hidden + max(reading, remembering)
        # Beside the states of all windows, some are encoded, with their tokens and embeddings.
        cut = windows.cut([self.length] * self.sentences)
        some = self._rows(windows.length * max(len(each) for each in windows.passes(cut, self.device)))
        embedded = some.tensor(self.encoder.layers[0].embed_dim)
        reading = max(3 * embedded, self._layers(self.encoder.layers, some, windows.length))
        encoding = some.count * (1 + 2 * TOKEN_BYTES) + embedded + reading
        return whole.count + max(hidden + encoding, remembering)

    def _layers(self, layers, rows: _Rows, length: int, is_causal: bool = False) -> int:
        """The most that layers hold at a time, each with its input.

        Args:
            layers: of the encoder, or if is_causal of the decoder, without the attention to a source.
            rows: the positions that they read.
            length: how many of them attend to one another.
        """

        def most(layer) -> int:
            attending = self._attending_to_all(rows, layer.self_attn, length, is_causal)
            return rows.layer(layer, rows.attention(layer.self_attn, attending, keeps=not is_causal))

        return max(map(most, layers))

    def _projecting(self, rows: _Rows, attention, is_scattered: bool) -> int:
        """Keys and values of a source, and the same rounded. is_scattered: see `Product.multiplying_bytes`."""
        key, value = rows.output(attention.k_proj), rows.output(attention.v_proj)
        rounding = rows.input(attention.v_proj) + value + self._rounding(rows, attention, self.methods.cross)
        return key + max(rows.multiplying(attention.v_proj, is_scattered), rounding)

    def _rounding(self, rows: _Rows, attention, method: DecodingMethod) -> int:
        to, kept = self.decoder.round_to, self._dtype_kept(method)
        if to is None:
            return 0
        return rows.count * method.numbers_kept(attention.sizes) * (to.itemsize + (kept != to) * kept.itemsize)

    def _reading_prompts(self) -> int:
        """The decoder over whole prompts, and the memory that is made of them."""
        length = self.workload.prompt_length
        if not length:
            return 0
        rows, own = self._rows(self.sentences * length), self.methods.own
        ending = [
            self._rounding(rows, layer.self_attn, own)
            + rows.count * own.numbers_kept(layer.self_attn.sizes) * self._dtype_kept(own).itemsize
            for layer in self.decoder.layers
        ]
        # As the prompt is read it is remembered like what a hypothesis has, one for each sentence.
        numbers = sum(own.numbers_kept(layer.self_attn.sizes) for layer in self.decoder.layers)
        remembered = self.sentences * room_for(length) * numbers * self.dtype.itemsize
        reading = self._layers(self.decoder.layers, rows, length, is_causal=True)
        return remembered + 3 * rows.count * TOKEN_BYTES + max(reading, *ending)

    def _of_mask(self) -> int:
        """Bytes of an element of a mask for PyTorch's fused attention: two of bool, and one of numbers."""
        return 2 + self.dtype.itemsize

    def _workspace(self, queries: int, positions: int, width: int) -> int:
        """What PyTorch's fused attention takes, where it is used; see `fused_workspace_bytes`."""
        if self.device.type != "cpu" or width > WIDEST_FUSED_HEAD:
            return 0
        return fused_workspace_bytes(queries, positions, width, self.dtype.itemsize)

    def _products_copy(self) -> bool:
        """Whether products in attention copy what is not adjacent: in narrow types, on a CPU by oneDNN."""
        is_narrow = self.dtype.itemsize < torch.float32.itemsize
        return is_narrow and (self.device.type != "cpu" or onednn_multiplies_narrow_types())

    def _dtype_kept(self, method: DecodingMethod) -> torch.dtype:
        """The type in which a source or a prompt is kept."""
        return method.dtype_kept(self.dtype, self.decoder.round_to)

    def _is_narrow(self, method: DecodingMethod) -> bool:
        """Whether that is narrower than the type in which it is read."""
        return self._dtype_kept(method) != self.dtype

    def _choosing_together(self, attention, method: DecodingMethod, queries: int, keys: int, is_narrow: bool) -> int:
        """In `top_k_attention`."""
        width, group = _read(method, attention.sizes)
        sizes = self.sentences * attention.num_heads // group, group, queries, keys, attention.top_k
        chunk = attention.query_chunk_size, self.device, width * is_narrow
        return chunk_bytes(*sizes, self.dtype.itemsize, *chunk)

    def _attending_to_all(self, rows: _Rows, attention, length: int, is_causal: bool = False) -> int:
        """So many positions of a sentence to one another: the result, and sums of exponentials."""
        query = rows.tensor(attention.q_proj.out_features)
        probe = [torch.empty(1, attention.num_heads, 1, attention.head_dim, dtype=self.dtype, device=self.device)] * 3
        if (
            attention.top_k is None
            and not is_causal
            and attention.head_dim <= WIDEST_FUSED_HEAD
            and computes_texts(*probe)
        ):
            return 2 * query + rows.tensor(attention.k_proj.out_features)  # queries and keys laid out, the result
        scores = rows.count * attention.num_heads
        attending = query + scores * self.wide_itemsize
        if attention.window is not None and attention.window < length:
            attending += length * length * self._of_mask()
        if attention.num_kv_heads != attention.num_heads:
            attending += 2 * query
        if attention.top_k is not None and attention.top_k < length:
            return attending + 2 * query + self._choosing_together(attention, KV, length, length, False)
        if attention.head_dim > WIDEST_FUSED_HEAD:
            return attending + 2 * rows.tensor(attention.num_heads * length) + length * length * self._of_mask()
        return attending + self._workspace(length, length, attention.head_dim)

    def _output(self, rows: _Rows, log_probs: int, beside: int) -> int:
        """The output layer; log_probs: of all tokens, beside: what is made of the logits."""
        if self.decoder.adaptive_softmax is not None:
            return 4 * log_probs
        output = self.decoder.output_projection
        hidden = 2 * rows.tensor(output.in_features)
        return max(hidden + rows.multiplying(output), rows.output(output) + beside)


class _Search(_Batch):
    """A search, of one of its models or of its language model."""

    def __init__(self, model, methods: Choice, search: SequenceGenerator, sentences: int, length: int):
        has_source = hasattr(search.models[0], "encoder")
        prompt = None if has_source else torch.full((1, length), search.eos)
        [limit] = search.length_limits(torch.tensor([length]), prompt)
        self.search, self.steps = search, limit + 1
        source = length if hasattr(model, "encoder") else 0
        workload = Workload(sentences, search.beam_size, source, self.steps, 0 if has_source else length - 1)
        super().__init__(model, methods, workload)

    def bytes(self, language_model: "_Search | None" = None) -> int:
        """At most at a time.

        Args:
            language_model: whose log-probabilities are added in each step.
        """
        reading, state = self._reading(), self._state()
        kept, most = self._step()
        if language_model is not None:
            other_kept, other_most = language_model._step()
            # Of the model, whose step is over.
            log_probs = self.sentences * self.beam * self.search.vocab_size * self.wide_itemsize
            reading = max(reading, self._memory() + language_model._reading())
            state += language_model._state()
            kept += other_kept
            most = max(most, log_probs + max(other_most, 2 * log_probs))
        step = state + kept + most
        # On a GPU a captured step has memory of its own, which reading the source cannot use.
        return SCALAR_BYTES + self._hypotheses() + (max(reading, step) if self.device.type == "cpu" else reading + step)

    def _hypotheses(self) -> int:
        """Tokens and scores, and the attention to the source, of those that are searched and of the finished ones."""
        finished = min(self.search.stopping.finished(self.beam), self.beam * self.steps)
        each = self.steps * (TOKEN_BYTES + self.wide_itemsize) + 5 * TOKEN_BYTES + self._alignment()
        return self.sentences * (1 + self.beam + finished) * each

    def _alignment(self) -> int:
        """The attention of a hypothesis to the source."""
        return self.length * (self.steps + 1) * self.wide_itemsize if self.search.print_alignment else 0

    def _step(self) -> tuple[int, int]:
        """A step of decoding, the last one, besides the state: what is there from step to step, and the most beside."""
        rows = self._rows(self.sentences * self.beam)
        layers, tables = [], 0
        for layer in self.decoder.layers:
            own, is_unmoved = self._attending_in_step(
                rows, layer.self_attn, self.methods.own, self.workload.prompt_length, self.steps
            )
            moving = self._moving(rows, layer.self_attn, is_unmoved)
            projects = self.methods.own.projects_memory
            attentions = [rows.attention(layer.self_attn, max(own, moving), projects)]
            if layer.encoder_attn is not None:
                cross, _ = self._attending_in_step(rows, layer.encoder_attn, self.methods.cross, self.length, 0)
                attentions.append(rows.attention(layer.encoder_attn, cross, projects=False))
            layers.append(max(rows.layer(layer, *attentions), self._layer_step(rows, layer)))
            tables += is_unmoved * (self.beam > 1) * rows.count * self.steps * TOKEN_BYTES
        # Scores, tokens, hypotheses, and what orders them, of the candidates of each hypothesis.
        candidates = rows.count * (2 * self.beam + 2) * 5 * TOKEN_BYTES
        finishing = rows.count * (self.steps * (2 * TOKEN_BYTES + 4 * self.wide_itemsize) + self._alignment())
        return tables, max(*layers, self._logits(rows) + candidates, finishing, self._leaving())

    def _layer_step(self, rows: _Rows, layer) -> int:
        """What a layer holds with its input, where one call computes it; 0 where none does."""
        is_computed = issubclass(self.product, KernelProduct) and self.methods == (KV, KV)
        if not is_computed:
            return 0
        is_int8 = self.decoder.decode_dtype == INT8
        return rows.tensor(layer.embed_dim) + layer_step.working_bytes(layer, rows.count, is_int8)

    def _attending_in_step(
        self, rows: _Rows, attention, method: DecodingMethod, shared: int, own: int
    ) -> tuple[int, bool]:
        """What `DecodingMethod.attend` holds, and whether a kernel attends."""
        query = torch.empty(1, attention.num_heads, 1, attention.head_dim, dtype=self.dtype, device=self.device)
        is_last = shared and not own and attention is self.decoder.layers[-1].encoder_attn
        need_weights = bool(self.search.print_alignment) and is_last
        options = {"top_k": attention.top_k, "need_weights": need_weights}
        if method.has_cpu_kernel(query, 0 if own else shared, **options):
            # The kernel's result and, where the query is narrower, that as well, and the result in its type.
            copies = rows.count * query.numel() * self.wide_itemsize
            if self.dtype.itemsize < self.wide_itemsize:
                copies = 2 * copies + rows.count * query.nbytes
            sizes = attention.sizes, rows.count, shared + own, attention.top_k
            return copies + method.bytes_of_cpu_kernel(*sizes), True
        width, group = _read(method, attention.sizes)
        numbers, copied, choosing = method.numbers_of_step(attention.sizes, shared, own), 0, 0
        chooses = attention.top_k is not None and attention.top_k < shared + own
        if chooses:
            numbers = method.numbers_of_step(attention.sizes, 1, min(shared, own, 1))  # besides the scores
            sizes = shared + own, attention.top_k, self.dtype.itemsize, self.device
            choosing = rows.count * attention.num_heads * keeping_bytes(*sizes)
        elif not (shared and (own or method.projects_memory)) and not need_weights:
            copied = self._workspace(group * (self.beam if shared else 1), shared + own, width)
        is_product = shared or chooses or width > WIDEST_FUSED_HEAD
        if own and is_product and self._products_copy():  # which copies what has room to grow
            copied = (rows.count * own + self.sentences * shared) * method.numbers_kept(attention.sizes)
            copied = copied // method.tensors_kept * self.dtype.itemsize
        if shared and self._is_narrow(method):
            keys = self.sentences * width * attention.num_heads // group  # numbers of a position
            block = min(shared, block_positions(keys))
            copied += max(block * (keys + rows.count * attention.num_heads), shared * keys) * self.wide_itemsize
        return rows.tensor(numbers) + max(copied, choosing), False

    def _moving(self, rows: _Rows, attention, is_unmoved: bool) -> int:
        """Second copies of what a layer remembers of the hypotheses, as it grows or is reordered."""
        room = room_for(self.steps, attention.window)
        if attention.window is None and (is_unmoved or self.beam == 1):
            room -= GROWTH
        method = self.methods.own
        tensors = method.tensors_kept if self.device.type == "cpu" else 1
        return rows.tensor(room * method.numbers_kept(attention.sizes)) // tensors

    def _logits(self, rows: _Rows) -> int:
        """The logits, and what is made of them to choose tokens."""
        vocabulary, search = self.search.vocab_size, self.search
        log_probs = rows.count * vocabulary * self.wide_itemsize
        is_plain = isinstance(search.search, BeamSearch) and len(search.models) == 1
        empty = torch.empty(1, 1, dtype=self.dtype, device=self.device)
        is_in_place = NextTokens(logits=empty).is_normalized_in_place
        if not is_plain or self.device.type != "cpu":
            beside = 3 * log_probs
        else:
            is_converted = self.dtype.itemsize < self.wide_itemsize
            copies = is_converted if is_in_place else 1 + is_converted
            # Where tokens have the same score, those of a sentence are there once more.
            beside = copies * log_probs
            if search.lm_model is None:
                beside += self.beam * vocabulary * self.wide_itemsize
        scaled = rows.tensor(vocabulary) if search.temperature != 1 else 0
        return self._output(rows, log_probs, max(scaled, beside))

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
                    most = max(most, numbers * self._dtype_kept(method).itemsize // parts)
        return most


class _Scoring(_Batch):
    """The scores of given targets, which are read some positions at a time; see `ElseqStepper.score`."""

    def __init__(self, model, methods: Choice, sentences: int, source_length: int, target_length: int):
        has_source = hasattr(model, "encoder")
        source, prompt = (source_length, 0) if has_source else (0, source_length - 1)
        super().__init__(model, methods, Workload(sentences, 1, source, target_length, prompt))
        width = positions_at_once(sentences, len(self.decoder.dictionary))
        self.width = min(width, max(1, target_length - 1))  # the first one is read alone

    def bytes(self) -> int:
        """At most at a time."""
        rows = self._rows(self.sentences * self.width)
        layers = []
        for layer in self.decoder.layers:
            own = self._attending_to_targets(rows, layer.self_attn, self.methods.own, self.workload.prompt_length)
            attentions = [rows.attention(layer.self_attn, own, self.methods.own.projects_memory)]
            if layer.encoder_attn is not None:
                cross = self._attending_to_targets(rows, layer.encoder_attn, self.methods.cross, None)
                attentions.append(rows.attention(layer.encoder_attn, cross, projects=False))
            layers.append(rows.layer(layer, *attentions))
        scores = self.sentences * (self.workload.target_length + 1) * (4 * TOKEN_BYTES + self.wide_itemsize)
        reading = self._state() + max(self._growing() + max(layers), self._logits(rows))
        return SCALAR_BYTES + scores + max(self._reading(), reading)

    def _state(self) -> int:
        state, target = super()._state(), self.workload.target_length
        for layer in self.decoder.layers:
            window = layer.self_attn.window  # which is behind all positions that are read together
            more = room_for(target, window, self.width) - room_for(target, window)
            state += self.sentences * more * self.methods.own.numbers_kept(layer.self_attn.sizes) * self.dtype.itemsize
        return state

    def _attending_to_targets(self, rows: _Rows, attention, method: DecodingMethod, prompt_length: int | None) -> int:
        """The attention to the source (prompt_length: None), or to a prompt and the positions before."""
        sizes, target = attention.sizes, self.workload.target_length
        is_split, is_own = bool(prompt_length), prompt_length is not None
        seen = prompt_length + target if is_own else self.workload.source_length
        chooses = attention.top_k is not None and attention.top_k < seen
        is_together = chooses and not is_split and self.width > 1
        query, scores = rows.tensor(attention.q_proj.out_features), rows.tensor(attention.num_heads * seen)
        if method.projects_memory:
            # The keys of a source are not laid out for the fused kernels.
            is_fused = is_own and not is_split and not chooses and sizes.head_dim <= WIDEST_FUSED_HEAD
            held = (1 if is_fused else 3 if is_split else 6 if chooses else 2) * query
            if self._is_narrow(method) and not is_together:  # the values are converted
                stored = self.workload.prompt_length if is_own else seen
                held += (
                    self.sentences * stored * method.numbers_kept(sizes) // method.tensors_kept * self.dtype.itemsize
                )
        else:
            is_fused = not is_split and not chooses and sizes.memory_width <= WIDEST_FUSED_HEAD
            expanded = rows.tensor(attention.num_heads * sizes.memory_width)
            held = query + (4 if is_split else 3 if chooses else 2) * expanded
        if is_own:
            held += self.width * target * self._of_mask()
        if is_fused:
            width, group = _read(method, sizes)
            queries = self.width if self.width > 1 else group
            return held + rows.count * attention.num_heads * self.wide_itemsize + self._workspace(queries, seen, width)
        if is_together:
            is_narrow = not is_own and self._is_narrow(method)
            return held + self._choosing_together(attention, method, self.width, seen, is_narrow)
        if chooses and is_split:
            held += rows.count * attention.num_heads * attention.top_k * (TOKEN_BYTES + self.dtype.itemsize)
        if is_split and self._products_copy():  # which copies the weights of a part
            held += scores * max(prompt_length, target) // seen
        return held + (3 if chooses else 2) * scores

    def _growing(self) -> int:
        """Second copies of what a layer has of the target, as its room grows."""
        own = self.methods.own
        numbers = max(own.numbers_kept(layer.self_attn.sizes) for layer in self.decoder.layers) // own.tensors_kept
        target = self.workload.target_length
        before = max(1, target - self.width) if target > 1 else 0  # nothing, when the first one is added
        return self.sentences * room_for(before) * numbers * self.dtype.itemsize

    def _logits(self, rows: _Rows) -> int:
        """The logits, and the log-probabilities of all tokens."""
        log_probs = rows.count * len(self.decoder.dictionary) * self.wide_itemsize
        is_converted = self.dtype.itemsize < self.wide_itemsize
        return self._output(rows, log_probs, (1 + is_converted) * log_probs)
