"""One measured run of sources in windows: read a request, load, decode some times in turns, write a result."""

import gc

import torch

from elseq.benchmark.measure import Measurement, main, memory_mebibytes, reset_peak, wait_for_turn
from elseq.benchmark.timed_search import TimedSearch
from elseq.generation.budget import batch_bytes, write_bytes
from elseq.generation.method_choice import free_memory_bytes


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
        reason = f"out of memory (it needs {write_bytes(predicted)} and {write_bytes(free)} are free)"
        return Measurement(failure=reason)
    gc.collect()
    found = engine.found
    found.predicted_bytes = predicted
    found.loaded_mebibytes, loading_peak = memory_mebibytes(device)
    found.peak_includes_loading = reset_peak(device)
    engine.warm_up()
    repeats = []
    for _ in range(request["repeats"]):
        wait_for_turn(max(loading_peak or 0, memory_mebibytes(device)[1] or 0))
        repeats.append(engine.time())
    found.seconds = {part: [seconds[part] for seconds in repeats] for part in repeats[0]}
    found.peak_mebibytes = memory_mebibytes(device)[1]
    return found


if __name__ == "__main__":
    main(measure)
