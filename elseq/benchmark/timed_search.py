"""A search whose encoder and decoder are timed apart."""

import time
from argparse import Namespace

import torch

from elseq.benchmark.fairseq_engine import FairseqEngine

WARM_UP_TOKENS = 16  # of the decoding that warms a CPU up; a GPU gets all of them, for its allocator


class TimedSearch(FairseqEngine):
    """Search with a beam (1: greedy) for outputs of exactly `target_length` tokens, the end symbol's included."""

    def __init__(self, request: dict):
        super().__init__(request)
        self.look_closely = True
        sample = self.dataset.collater([self.dataset[index] for index in range(len(request["sources"]))])
        self.sample = self.to_device(sample)
        self.encoder_seconds = 0.0
        self._watch_encoder()

    def warm_up(self) -> None:
        length = self.request["target_length"]
        if self.request["device"] == "cpu":
            length = min(length, WARM_UP_TOKENS)
        limits = {"min_len": length - 1, "max_len_b": length - 1}
        options = Namespace(beam=self.beam, **{**self.request["search"], **limits})
        self._search(self.task.build_generator([self.model], options))

    def time(self) -> dict[str, float]:
        """Seconds of the encoder and of the rest, which projects the encoder's output to keys and values."""
        start = now(self.request["device"])
        self._search(self.generator)
        seconds = now(self.request["device"]) - start
        if not self.is_stock:
            self.found.state_bytes = self.generator.usage.state_bytes
        return {"encoder": self.encoder_seconds, "decoder": seconds - self.encoder_seconds}

    def _search(self, generator) -> None:
        hypotheses = self.task.inference_step(generator, [self.model], self.sample)
        # They must all be `target_length`, or the time per token is not what it says.
        self.found.output_lengths = sorted({len(best["tokens"]) for best, *_ in hypotheses})

    def _watch_encoder(self) -> None:
        """Time what fairseq's generator and elseq's both call."""
        encode = self.model.encoder.forward_torchscript

        def timed_encode(net_input):
            start = now(self.request["device"])
            encoder_out = encode(net_input)
            self.encoder_seconds = now(self.request["device"]) - start
            return encoder_out

        self.model.encoder.forward_torchscript = timed_encode


def now(device: str) -> float:
    """Seconds by the clock when the device has done what it was told."""
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter()
