"""How many bytes a batch will take, beside the model, and so how many sentences fit a budget."""

from collections.abc import Callable

import torch

from elseq.attention import METHODS
from elseq.attention.memory import GROWTH
from elseq.attention.methods import AUTO, EL, KV
from elseq.errors import UserError
from elseq.generation.batches import largest
from elseq.generation.planner import Workload, decoding_state_bytes
from elseq.generation.search import SequenceGenerator
from elseq.models import Decoder
from elseq.precision import multiplied_rows

INDEX_BYTES = 8


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

    The decoding state at its largest, which is predicted exactly, and what is computed beside it, which is estimated
    from above: the activations of one layer, in the encoder or for a prompt over all positions, while decoding over the
    hypotheses; the logits and their logarithms of probabilities; the words and scores so far. Not in it: what an
    allocator loses between tensors, and what CUDA needs for itself.

    Args:
        model: an elseq model.
        search: its generator.
        sentences: in the batch.
        length: tokens of each source, or of each prompt, with the symbols that the task adds.
    """
    decoder, encoder = model.decoder, getattr(model, "encoder", None)
    dtype = next(decoder.parameters()).dtype
    wide = max(4, dtype.itemsize)  # of what is computed in float32 at least
    prompt = None if encoder is not None else torch.full((1, length), search.eos)
    [limit] = search.length_limits(torch.tensor([length]), prompt)
    source_length, prompt_length = (length, 0) if encoder is not None else (0, length - 1)
    workload = Workload(sentences, search.beam_size, source_length, limit + 1, prompt_length)
    name = decoder.decode_attention
    methods = [KV, EL] if name == AUTO else [METHODS[name]]
    state = max(decoding_state_bytes(decoder, workload, method, dtype) for method in methods)

    positions, hypotheses = sentences * length, sentences * search.beam_size
    reading = positions * _layer_width((decoder if encoder is None else encoder).layers) * dtype.itemsize
    # The logits of this step, the probabilities made of them and those of the step before.
    words = search.vocab_size * (dtype.itemsize + 2 * wide)
    history = 2 * (limit + 2) * (INDEX_BYTES + wide)
    scores = max(layer.self_attn.num_heads for layer in decoder.layers) * (length + limit + 1) * 3 * wide
    step = hypotheses * (words + history + scores + _step_width(decoder.layers, limit + 1) * dtype.itemsize)
    step += (multiplied_rows(model, hypotheses) - hypotheses) * search.vocab_size * dtype.itemsize
    # A captured step has memory of its own, which reading the source cannot use.
    return state + (reading + step if next(decoder.parameters()).is_cuda else max(reading, step))


def _layer_width(layers) -> int:
    """Numbers that a layer holds at once for a position: its input, as it is and normalized, and the inner ones."""
    widths = []
    for layer in layers:
        attention = layer.self_attn
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        inner = 2 * sum(projection.out_features for projection in projections)
        widths.append(4 * attention.embed_dim + max(inner, layer.fc1.out_features))
    return max(widths)


def _step_width(layers, generated: int) -> int:
    """Numbers that a decoder layer holds at once for a hypothesis: as above, the queries as a method expands them and
    what they find, and a second copy of what the layer remembers of the hypothesis, made when it is reordered or grows.
    Of all methods the most."""
    widths = []
    for layer in layers:
        sizes = layer.self_attn.sizes
        memory = max(method.numbers_kept(sizes) for method in METHODS.values())
        query = max(method.numbers_of_step(sizes) for method in METHODS.values())
        widths.append(query + memory * (generated + GROWTH))
    return _layer_width(layers) + max(widths)
