"""One measured run of sources in windows: read a request, load, decode some times in turns, write a result."""

import torch

from elseq.arguments import format_bytes
from elseq.benchmark.measure import Measurement, main, wait_for_turn
from elseq.benchmark.timed_search import TimedSearch, time_parts
from elseq.generation.budget import batch_bytes
from elseq.generation.cuda_graphs import free_memory_bytes


def measure(request: dict) -> Measurement:
    """Warm up, then decode one batch `repeats` times by the clock, if it fits the memory.

    Returns:
        seconds of each repeat, by part ("encoder" and "decoder"); memory; what the engine knows of itself.
    """
    engine, device = TimedSearch(request), request["device"]
    sizes = len(request["sources"]), request["source_length"]
    predicted = batch_bytes(engine.model, engine.generator, *sizes)
    free = free_memory_bytes(torch.device(device))
    if predicted > free:
        reason = f"out of memory (it needs {format_bytes(predicted)} and {format_bytes(free)} are free)"
        return Measurement(failure=reason)
    engine.found.predicted_bytes = predicted
    return time_parts(engine, wait_for_turn)


if __name__ == "__main__":
    main(measure)
