"""How many bytes a decoding state will take, before it exists."""

from dataclasses import dataclass

from elseq.attention.memory import room_for
from elseq.attention.methods import Choice


@dataclass(frozen=True)
class Workload:
    """The sizes of a batch for a decoder."""

    sentences: int
    beam: int
    source_length: int  # positions of the encoder's output, 0 for a language model
    target_length: int  # positions read while decoding: the longest output and the symbol it starts from
    prompt_length: int = 0


def decoding_state_bytes(decoder, workload: Workload, methods: Choice) -> int:
    """`DecodeState.size_bytes()` at the end of the search, if no sentence leaves the batch early.

    Args:
        decoder: an elseq decoder.
        workload: sizes of the batch.
        methods: how it is decoded.
    """
    own, cross = methods
    dtype = next(decoder.parameters()).dtype
    prompt = workload.sentences * workload.prompt_length * own.dtype_kept(dtype, decoder.round_to).itemsize
    source = workload.sentences * workload.source_length * cross.dtype_kept(dtype, decoder.round_to).itemsize
    size = 0
    shared = 0
    for layer in decoder.layers:
        room = room_for(workload.target_length, layer.self_attn.window)
        generated = workload.sentences * workload.beam * room * dtype.itemsize
        size += (prompt + generated) * own.numbers_kept(layer.self_attn.sizes)
        if layer.encoder_attn is None:
            continue
        of_source = source * cross.numbers_kept(layer.encoder_attn.sizes)
        if cross.shares_memory:
            shared = of_source
        else:
            size += of_source
    return size + shared
