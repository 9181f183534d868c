"""A search whose encoder and decoder are timed apart."""

import gc
from argparse import Namespace
from collections.abc import Callable

from elseq.benchmark.fairseq_engine import FairseqEngine
from elseq.benchmark.measure import Measurement, memory_mebibytes, now, reset_peak, seconds_of

# What warms a CPU up; a GPU gets all tokens, for its allocator.
WARM_UP_SOURCE = 2048
WARM_UP_TOKENS = 16


class TimedSearch(FairseqEngine):
    """Search with a beam (1: greedy) for outputs of exactly "target_length" tokens, the end symbol's included.

    The request has this number in place of the "search" of a `FairseqEngine`, and "repeats".
    """

    def __init__(self, request: dict):
        super().__init__(request | {"search": _search_of_length(request["target_length"])})
        self.look_closely = True
        self.sample = self._sample(request["sources"])
        self.encoder_seconds = 0.0
        self._watch_encoder()

    def warm_up(self) -> None:
        length, sample = self.request["target_length"], self.sample
        if self.request["device"] == "cpu":
            length = min(length, WARM_UP_TOKENS)
            sample = self._sample([source[-WARM_UP_SOURCE:] for source in self.request["sources"]])
        options = Namespace(beam=self.beam, **_search_of_length(length))
        self._search(self.task.build_generator([self.model], options), sample)

    def time(self) -> dict[str, float]:
        """Seconds of the encoder, and of the rest, including the projection of its output to keys and values."""
        seconds = seconds_of(self.request["device"], lambda: self._search(self.generator, self.sample))
        if not self.is_stock:
            self.look()
        return {"encoder": self.encoder_seconds, "decoder": seconds - self.encoder_seconds}

    def _sample(self, sources: list[list[int]]) -> dict:
        """One batch of all sources."""
        return self.collate(self.make_dataset(sources), range(len(sources)))

    def _search(self, generator, sample: dict) -> None:
        hypotheses = self.task.inference_step(generator, [self.model], sample)
        # They must all be `target_length`, or the time per token is not what it says.
        self.found.output_lengths = sorted({len(best["tokens"]) for best, *_ in hypotheses})

    def _watch_encoder(self) -> None:
        """Time the method of the encoder that both fairseq's generator and elseq's call."""
        encode = self.model.encoder.forward_torchscript

        def timed_encode(net_input):
            start = now(self.request["device"])
            encoder_out = encode(net_input)
            self.encoder_seconds = now(self.request["device"]) - start
            return encoder_out

        self.model.encoder.forward_torchscript = timed_encode


def _search_of_length(tokens: int) -> dict:
    limit = tokens - 1  # the length of a search does not count the end symbol
    return {"min_len": limit, "max_len_b": limit, "lenpen": 1.0, "no_repeat_ngram_size": 0}


def time_parts(engine, wait: Callable[[float], None] = lambda mebibytes: None) -> Measurement:
    """Warm an engine up, then time it as often as its request says.

    Args:
        engine: has `request`, `found`, `warm_up`, and `time`, which gives seconds by part.
        wait: called before each repeat with the most memory that was needed; see `measure.wait_for_turn`.

    Returns:
        What the engine has found, with the seconds of each repeat by part, and memory.
    """
    device, found = engine.request["device"], engine.found
    gc.collect()
    found.loaded_mebibytes, found.loading_mebibytes = memory_mebibytes(device)
    found.peak_includes_loading = reset_peak(device)
    engine.warm_up()
    repeats = []
    for _ in range(engine.request["repeats"]):
        wait(max(found.loading_mebibytes or 0, memory_mebibytes(device)[1] or 0))
        repeats.append(engine.time())
    found.seconds = {part: [seconds[part] for seconds in repeats] for part in repeats[0]}
    found.peak_mebibytes = memory_mebibytes(device)[1]
    return found
