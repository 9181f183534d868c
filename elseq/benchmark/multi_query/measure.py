"""One measured run of the multi-query benchmark: read a request, load, train or decode some times, write a result.

Run as a program, so that its memory is this run's alone. The request has what `FairseqEngine` reads, and "column",
"target_length" and "repeats".
"""

import gc
import time
from argparse import Namespace

import torch
import torch.nn.functional as F

from elseq.benchmark.fairseq_engine import FairseqEngine
from elseq.benchmark.measure import Measurement, main, memory_mebibytes, reset_peak
from elseq.benchmark.models import ModelFile, load

WARM_UP_TOKENS = 16  # of the decoding that warms a CPU up; a GPU gets all of them, for its allocator


def measure(request: dict) -> Measurement:
    """Warm up, then train one step or decode one batch `repeats` times by the clock.

    Returns:
        seconds of each repeat, by part ("step", or "encoder" and "decoder"); memory; what the engine knows of itself.
    """
    engine = (Training if request["column"] == "training" else Decoding)(request)
    gc.collect()
    found = engine.found
    found.loaded_mebibytes, _ = memory_mebibytes(request["device"])
    found.peak_includes_loading = reset_peak(request["device"])
    engine.warm_up()
    repeats = [engine.time() for _ in range(request["repeats"])]
    found.seconds = {part: [seconds[part] for seconds in repeats] for part in repeats[0]}
    found.peak_mebibytes = memory_mebibytes(request["device"])[1]
    return found


class Decoding(FairseqEngine):
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
        start = _now(self.request["device"])
        self._search(self.generator)
        seconds = _now(self.request["device"]) - start
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
            start = _now(self.request["device"])
            encoder_out = encode(net_input)
            self.encoder_seconds = _now(self.request["device"]) - start
            return encoder_out

        self.model.encoder.forward_torchscript = timed_encode


class Training:
    """One step: forward pass, cross-entropy, backward pass, Adam. All of it is in the request's number format."""

    def __init__(self, request: dict):
        self.request = request
        torch.set_num_threads(request["threads"])
        device = request["device"]
        model, task = load(ModelFile(**request["model_file"]), request["mode"], for_training=True)
        self.model = model.to(device=device, dtype=getattr(torch, request["dtype"]))
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.98))
        source = torch.tensor(request["sources"], device=device)
        # Any words will do as a target; each is predicted from those before it, and the first from the end symbol.
        self.target = source[:, torch.arange(request["target_length"]) % source.size(1)]
        start = torch.full_like(source[:, :1], task.target_dictionary.eos())
        self.net_input = {
            "src_tokens": source,
            "src_lengths": torch.full((len(source),), source.size(1), device=device),
            "prev_output_tokens": torch.cat((start, self.target[:, :-1]), dim=1),
        }
        self.found = Measurement(parameters=sum(parameter.numel() for parameter in model.parameters()))

    def warm_up(self) -> None:
        self._step()

    def time(self) -> dict[str, float]:
        """Seconds of a step."""
        start = _now(self.request["device"])
        self._step()
        return {"step": _now(self.request["device"]) - start}

    def _step(self) -> None:
        self.optimizer.zero_grad()
        logits = self.model(**self.net_input)[0]
        F.cross_entropy(logits.flatten(end_dim=1), self.target.flatten()).backward()
        self.optimizer.step()


def _now(device: str) -> float:
    """Seconds by the clock when the device has done what it was told."""
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main(measure)
