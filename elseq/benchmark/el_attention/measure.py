"""Measure decoding states of sources: read a request, load the model, build states of its sizes, write the results."""

from collections.abc import Iterator

import torch

from elseq.arguments import format_bytes
from elseq.attention.methods import KV, METHODS
from elseq.benchmark.cost import Sizes
from elseq.benchmark.fairseq_engine import FairseqEngine
from elseq.benchmark.measure import Measurement, failed, main
from elseq.generation.cuda_graphs import free_memory_bytes

ROOM = 1.2  # the state of one layer exists twice while it is made


def measure(request: dict) -> Iterator[Measurement]:
    """The memory of a model's cross-attention by batch and length.

    Args:
        request: what `FairseqEngine` reads, and "cases": batch_size and source_length of each.

    Returns:
        of each case, state_bytes and, by count, predicted_bytes.
    """
    engine = FairseqEngine(request)
    device = torch.device(request["device"])
    for case in request["cases"]:
        sizes = case["batch_size"], case["source_length"]
        counted, free = count_bytes(engine, *sizes), free_memory_bytes(device)
        if ROOM * counted > free:
            reason = f"out of memory (it needs {format_bytes(counted)} and {format_bytes(free)} are free)"
            yield Measurement(failure=reason, predicted_bytes=counted)
            continue
        try:
            found = Measurement(state_bytes=source_bytes(engine, *sizes))
        except Exception as error:
            found = failed(error)
        found.predicted_bytes = counted
        yield found


def count_bytes(engine: FairseqEngine, sentences: int, length: int) -> int:
    """Bytes for keys and values, or hidden states, of sources of one length."""
    sizes = Sizes(**engine.found.sizes)
    method = KV if engine.is_stock else METHODS[engine.mode]
    layers = sizes.of_cross_attention()
    numbers = sum(map(method.numbers_kept, layers[:1] if method.shares_memory else layers))
    copies = engine.beam if engine.found.copied else 1
    return sentences * copies * length * numbers * next(engine.model.parameters()).dtype.itemsize


@torch.inference_mode()
def source_bytes(engine: FairseqEngine, sentences: int, length: int) -> int:
    """Bytes of the tensors that are there after the first step."""
    model = engine.model
    parameter = next(model.parameters())
    hypotheses = sentences * engine.beam
    rows = hypotheses if engine.is_stock else sentences
    hidden = torch.zeros(
        length, rows, engine.found.sizes["memory_width"], dtype=parameter.dtype, device=parameter.device
    )
    encoder_out = {"encoder_out": [hidden], "encoder_padding_mask": []}
    if not engine.is_stock:
        methods = [METHODS[engine.mode]] * 2
        return model.decoder.new_state(encoder_out, *methods).size_bytes()
    tokens = torch.full((hypotheses, 1), engine.task.target_dictionary.eos(), device=parameter.device)
    state: dict = {}
    model.decoder(tokens, encoder_out=encoder_out, incremental_state=state)
    kept = [layer.encoder_attn._get_input_buffer(state) for layer in model.decoder.layers]
    return sum(tensor.nbytes for buffers in kept for tensor in buffers.values() if tensor is not None)


if __name__ == "__main__":
    main(measure)
