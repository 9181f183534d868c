"""fairseq and elseq as measured programs: the same checkpoint and task, other modules and another generator."""

from argparse import Namespace
from collections.abc import Iterable

import fairseq
import torch
from fairseq import utils
from fairseq.models.bart import BARTModel
from fairseq.ngram_repeat_block import EXTENSION_BUILT

from elseq.attention.methods import Choice
from elseq.benchmark.cost import Sizes
from elseq.benchmark.measure import Measurement
from elseq.benchmark.models import ModelFile, load
from elseq.generation.cuda_graphs import CapturedWork
from elseq.kernel_trials import verdicts
from elseq.models import Decoder


def _stock_blocks_ngrams() -> bool:
    """fairseq's blocking in Python compares with the end of its padded buffer, that is with nothing."""
    return EXTENSION_BUILT and torch.cuda.is_available()


class FairseqEngine:
    """Modes: the decoding methods and auto are elseq's; stock is fairseq as it installs, its modules and its generator.

    stock-copied and stock-shared fix whether each hypothesis of a sentence has its own keys and values of the source
    (as in fairseq's Transformer), or all share them (as in its BART).
    """

    def __init__(self, request: dict):
        self.request = request
        self.look_closely = False
        torch.set_num_threads(request["threads"])
        self.mode = request["mode"]
        self.model_file = ModelFile(**request["model_file"])
        options = request.get("task_options", {})
        self.model, self.task = load(self.model_file, self.mode, request["device"], request["dtype"], **options)
        self.dataset = self.make_dataset(request["sources"])
        self.is_stock = self.mode.startswith("stock")
        self._captures = 0
        self.set_search(request["beam"], request["search"])
        if not self.is_stock and isinstance(self.model.decoder, Decoder):
            self._watch_method()

    def set_search(self, beam: int, search: dict) -> None:
        self.beam, self.search = beam, search
        CapturedWork.obstacle = None  # that of an earlier search is not this one's
        self.generator = self._build_generator()
        sizes = Sizes.of(self.model)
        self.found = Measurement(
            version=fairseq.__version__,
            sizes=None if sizes is None else sizes.to_dict(),
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            state_bytes=0,
            copied=self._is_copied(),
        )
        if self.is_stock:
            if search["no_repeat_ngram_size"] and not _stock_blocks_ngrams():
                self.found.ngrams_repeat = True
            self._watch_stock_state()

    def encode(self, batch) -> None:
        """Run the encoder, if there is one, as `decode` does first."""
        if hasattr(self.model, "encoder"):
            sample = self.collate(self.dataset, batch)
            with torch.inference_mode():
                self.model.encoder.forward_torchscript(sample["net_input"])

    def decode(self, batch):
        sample = self.collate(self.dataset, batch)
        prompt_length = 0
        if self.model_file.is_language_model and self.is_stock:
            prompt_length = sample["net_input"]["src_tokens"].size(1) - 1  # to fairseq it is a part of the output
        self.generator.min_len = self.search["min_len"] + prompt_length
        self.generator.max_len_b = self.search["max_len_b"] + prompt_length
        found = self.task.inference_step(self.generator, [self.model], sample)
        if self.look_closely and not self.is_stock:
            self.look()
        order = {number: row for row, number in enumerate(sample["id"].tolist())}
        return [
            [hypothesis["tokens"][prompt_length:-1].tolist() for hypothesis in found[order[index]]] for index in batch
        ]

    def look(self) -> None:
        """Note the size of the search's state and, on a GPU, the kernels and captures."""
        self.found.state_bytes = self.generator.usage.state_bytes
        if self.request["device"] != "cpu":
            self.found.kernels = [
                verdict._asdict() | {"sizes": str(verdict.sizes), "device": str(verdict.device)}
                for verdict in verdicts()
            ]
            # The search of a later batch replays what that of an earlier one captured.
            self.found.captures = max(self.found.captures or 0, CapturedWork.captures - self._captures)
            self.found.not_captured = CapturedWork.obstacle

    def make_dataset(self, sources: list[list[int]]):
        """As the task makes it to decode these words of the dictionary."""
        tokens = [torch.tensor(source) for source in sources]
        return self.task.build_dataset_for_inference(tokens, [len(source) for source in tokens])

    def collate(self, dataset, batch: Iterable[int]) -> dict:
        """The batch of these sources, on the device."""
        sample = dataset.collater([dataset[index] for index in batch])
        return utils.apply_to_sample(lambda tensor: tensor.to(self.request["device"]), sample)

    def _build_generator(self):
        if self.mode == "stock-copied" and hasattr(self.model, "set_beam_size"):
            self.model.set_beam_size = lambda beam: None
        generator = self.task.build_generator([self.model], Namespace(beam=self.beam, **self.search))
        if self.mode == "stock-shared" and self.beam > 1 and hasattr(self.model, "encoder"):
            BARTModel.set_beam_size(self.model, self.beam)
        return generator

    def _is_copied(self) -> bool:
        """Whether every hypothesis has keys and values of the source, or of the prompt, of its own."""
        layers = getattr(self.model.decoder, "layers", None)
        if self.beam == 1 or isinstance(self.model.decoder, Decoder) or not layers:
            return False
        attention = getattr(layers[0], "encoder_attn", None)
        return getattr(attention, "beam_size", 1) == 1

    def _watch_stock_state(self) -> None:
        """fairseq's generator does not tell the size of its incremental state."""
        ensemble = self.generator.model
        forward = ensemble.forward_decoder

        def forward_decoder(tokens, encoder_outs, incremental_states, temperature=1.0):
            output = forward(tokens, encoder_outs, incremental_states, temperature)
            if self.look_closely:
                entries = [entry for state in incremental_states for entry in state.values()]
                size = sum(tensor.nbytes for entry in entries for tensor in entry.values() if tensor is not None)
                self.found.state_bytes = max(self.found.state_bytes, size)
            return output

        ensemble.forward_decoder = forward_decoder

    def _watch_method(self) -> None:
        decoder = self.model.decoder
        new_state = decoder.new_state

        def watched_new_state(encoder_out, *methods):
            self.found.method = Choice(*methods).name
            self._captures = CapturedWork.captures  # earlier ones are of other searches, and of the choice of a method
            return new_state(encoder_out, *methods)

        decoder.new_state = watched_new_state
