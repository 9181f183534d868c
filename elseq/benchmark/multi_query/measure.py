"""One measured run of the multi-query benchmark: read a request, load, train or decode some times, write a result.

Run as a program, so that its memory is this run's alone. The request has what `TimedSearch` reads, and "column".
"""

import torch
import torch.nn.functional as F

from elseq.benchmark.measure import Measurement, main, seconds_of
from elseq.benchmark.models import ModelFile, load
from elseq.benchmark.timed_search import TimedSearch, time_parts


def measure(request: dict) -> Measurement:
    """Warm up, then train one step or decode one batch `repeats` times by the clock.

    Returns:
        seconds of each repeat, by part ("step", or "encoder" and "decoder"); memory; what the engine knows of itself.
    """
    return time_parts((Training if request["column"] == "training" else TimedSearch)(request))


class Training:
    """One step: forward pass, cross-entropy, backward pass, Adam. All of it is in the request's number format."""

    def __init__(self, request: dict):
        self.request = request
        torch.set_num_threads(request["threads"])
        device = request["device"]
        model_file = ModelFile(**request["model_file"])
        self.model, task = load(model_file, request["mode"], device, request["dtype"], for_training=True)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4, betas=(0.9, 0.98))
        source = torch.tensor(request["sources"], device=device)
        # Any words will do as a target; each is predicted from those before it, and the first from the end symbol.
        self.target = source[:, torch.arange(request["target_length"]) % source.size(1)]
        start = torch.full_like(source[:, :1], task.target_dictionary.eos())
        self.net_input = {
            "src_tokens": source,
            "src_lengths": torch.full((len(source),), source.size(1), device=device),
            "prev_output_tokens": torch.cat((start, self.target[:, :-1]), dim=1),
        }
        self.found = Measurement(parameters=sum(parameter.numel() for parameter in self.model.parameters()))

    def warm_up(self) -> None:
        self._step()

    def time(self) -> dict[str, float]:
        """Seconds of a step."""
        return {"step": seconds_of(self.request["device"], self._step)}

    def _step(self) -> None:
        self.optimizer.zero_grad()
        logits = self.model(**self.net_input)[0]
        F.cross_entropy(logits.flatten(end_dim=1), self.target.flatten()).backward()
        self.optimizer.step()


if __name__ == "__main__":
    main(measure)
