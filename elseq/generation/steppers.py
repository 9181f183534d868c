"""What advances a model by one token. The search knows models only through these.

A stepper has `start`, `step`, `reorder`, `finish`, `state_bytes` and `keep_nothing`. `ElseqStepper` drives
elseq models by their decoding state, `FairseqStepper` any other fairseq model by fairseq's own protocol; an `Ensemble`
is several, and a `Fusion` one beside a language model. Those of a single model also have `score`, which reads given
targets in one pass.

Shapes: B sentences, beam hypotheses each, N = B * beam (those of a sentence stand together), V tokens of the
vocabulary, S source positions.
"""

import math

import torch
from fairseq.models import BaseFairseqModel, FairseqDecoder, FairseqIncrementalDecoder
from fairseq.models.transformer import TransformerModelBase
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_leaves

from elseq.attention import DecodeState
from elseq.attention.methods import Choice
from elseq.compat.generation import set_beam_size
from elseq.generation.captured_steps import CapturedSteps, can_capture
from elseq.generation.kept_steps import KeptSteps
from elseq.generation.method_choice import choose_methods
from elseq.generation.next_tokens import NextTokens
from elseq.generation.planner import Workload
from elseq.heap import give_back_memory
from elseq.models import Decoder
from elseq.precision import PreparedModel, prepared

MOST_LOGITS = 2**25  # that scoring computes at once
# Bytes made by a pass over whole texts. Below, the pass takes so little time that giving back memory would count.
LARGE = 2**20


def positions_at_once(sentences: int, vocabulary: int) -> int:
    """How many positions of the targets of so many sentences scoring reads together; vocabulary: its size."""
    return max(1, MOST_LOGITS // (sentences * vocabulary))


class ElseqStepper:
    """Decodes an elseq model. What belongs to a sentence is held once, whatever the beam."""

    reads_ragged_prompts = True

    def __init__(self, model, temperature: float, need_weights: bool):
        self.model = model
        self.temperature = temperature
        self.need_weights = need_weights
        self.state: DecodeState | None = None  # if no step is captured
        self.captured: CapturedSteps | None = None
        self.kept = KeptSteps(model)
        self.precision: PreparedModel | None = None

    def start(self, net_input: dict, beam: int, max_length: int, prompt: Tensor | None = None) -> None:
        """Encode the source or read the prompts.

        Args:
            net_input: what the task gives a model; B sentences.
            beam: hypotheses of a sentence.
            max_length: tokens that `step` will be given at most.
            prompt: int64 [B, P], padded on the right, or None.
        """
        decoder = self.model.decoder
        self._normalizes_by_softmax = _normalizes_by_softmax(self.model)
        prompt_length = 0 if prompt is None else prompt.size(1)
        self.kept.release_failed()
        encoder_out = self._encode(net_input)
        source_length = 0 if encoder_out is None else encoder_out["encoder_out"][0].size(0)
        workload = Workload(_sentences(net_input), beam, source_length, max_length, prompt_length)
        methods = choose_methods(decoder.decode_attention, decoder, workload)
        self._read(encoder_out, prompt, methods)
        if not self.need_weights and can_capture(decoder, max_length, prompt_length + max_length):
            settings = self.temperature, self._normalizes_by_softmax
            kept = self.kept if self.kept.begin(workload, methods, settings) else None
            self.captured = CapturedSteps(lambda *step: self._decode(*step)[0], self.state, beam, max_length, kept)
            self.state = None
        else:
            self.kept.release()

    def _encode(self, net_input: dict) -> dict | None:
        decoder = self.model.decoder
        precision = prepared(self.model, decoder.decode_dtype)
        precision.begin(only_decodes=not decoder.is_trained)
        self.precision = precision  # which has begun, and is to end
        if not hasattr(self.model, "encoder"):
            return None
        encoder_out = self.model.encoder.forward_torchscript(net_input)
        for hidden in encoder_out["encoder_out"]:
            _give_back_memory_after(hidden.device, hidden.nbytes)
        return encoder_out

    def _read(self, encoder_out: dict | None, prompt: Tensor | None, methods: Choice) -> None:
        self.state = self.model.decoder.new_state(encoder_out, *methods)
        if prompt is not None and prompt.size(1):
            self.model.decoder.read_prompt(prompt, self.state)
            _give_back_memory_after(prompt.device, self.state.size_bytes())

    def score(self, net_input: dict, tokens: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Log-probabilities of given targets.

        Args:
            net_input: as for `start`.
            tokens: int64 [B, T + 1], padded on the right: what the targets follow, and the targets.
            prompt: as for `start`.

        Returns:
            [B, T], without meaning at padding.
        """
        decoder = self.model.decoder
        self._read(self._encode(net_input), prompt, Choice.without_search(decoder.decode_attention))
        before, targets = tokens[:, :-1], tokens[:, 1:]
        # Some positions after the others: the logits of all would not fit the memory. The first one alone, as in a
        # search: `el` reads several first ones by other weights, which int8 rounds.
        width = positions_at_once(len(tokens), len(decoder.dictionary))
        widths = [1, *(min(width, targets.size(1) - start) for start in range(1, targets.size(1), width))]
        found = [
            _log_probs_of(self.model, following, decoder.decode(read, self.state)[0])
            for read, following in zip(before.split(widths, dim=1), targets.split(widths, dim=1), strict=True)
        ]
        return torch.cat(found, dim=1)

    def step(self, tokens: Tensor) -> tuple[NextTokens, Tensor | None]:
        """Read the last of the tokens, int64 [N, L]; return what may follow, and attention [N, S] or None."""
        if self.captured is not None:
            output, weights = self.captured.step(tokens), None
        else:
            output, weights = self._decode(tokens[:, -1:], self.state)
        if not self._normalizes_by_softmax:
            return NextTokens(output), weights
        return NextTokens(logits=output, normalize=lambda logits: _log_probs(self.model, logits.unsqueeze(1))), weights

    def _decode(self, tokens: Tensor, state: DecodeState) -> tuple[Tensor, Tensor | None]:
        """Logits, or log-probabilities where these are not their softmax, [N, V]; attention [N, S] or None."""
        output, weights = self.model.decoder.decode(tokens, state, self.need_weights)
        weights = None if weights is None else weights[:, -1]
        if not self._normalizes_by_softmax:
            return _log_probs(self.model, output, self.temperature), weights
        return _at_temperature(output, self.temperature)[:, -1], weights

    def reorder(self, order: Tensor, sentences: Tensor | None = None) -> None:
        """Hypothesis n continues hypothesis order[n], int64 [N']; only these sentences stay, int64 [B'], or all."""
        if self.captured is not None:
            return self.captured.reorder(order, sentences)
        if sentences is not None:
            self.state.keep(sentences)
        self.state.reorder(order)

    def finish(self) -> None:
        """Let go of what the batch needed."""
        self.state = self.captured = None
        if self.precision is not None:
            self.precision.end()
            self.precision = None

    def state_bytes(self) -> int:
        """Bytes of the decoding state."""
        return (self.captured or self).state.size_bytes()

    def keep_nothing(self) -> None:
        """Now and from now on, keep no captured step for the next batch."""
        self.kept.keep_nothing()


class FairseqStepper:
    """Decodes any fairseq model by `incremental_state` and `reorder_encoder_out`; methods as in `ElseqStepper`."""

    reads_ragged_prompts = False

    def __init__(self, model, temperature: float, need_weights: bool):
        self.model = model
        self.temperature = temperature
        self.need_weights = need_weights
        self.incremental = isinstance(getattr(model, "decoder", None), FairseqIncrementalDecoder)
        self.finish()

    def start(self, net_input: dict, beam: int, max_length: int, prompt: Tensor | None = None) -> None:
        """As `ElseqStepper.start`; the prompts of a batch must be equally long."""
        set_beam_size([self.model], beam)
        encoder_out = self._encode(net_input)
        if encoder_out is not None:
            rows = torch.arange(_sentences(net_input), device=device_of(net_input)).repeat_interleave(beam)
            self.encoder_out = self.model.encoder.reorder_encoder_out(encoder_out, rows)
        if prompt is not None and prompt.size(1):
            self.prompt = prompt.repeat_interleave(beam, dim=0)
            if self.incremental:
                for length in range(1, self.prompt.size(1) + 1):
                    self._forward(self.prompt[:, :length])

    def step(self, tokens: Tensor) -> tuple[NextTokens, Tensor | None]:
        if self.prompt is not None:
            tokens = torch.cat((self.prompt, tokens), dim=1)
        output = self._forward(tokens)
        extra = output[1] if len(output) > 1 else None
        log_probs = _log_probs(self.model, output[0][:, -1:], self.temperature, extra)
        return NextTokens(log_probs), _last_attention(extra) if self.need_weights else None

    def score(self, net_input: dict, tokens: Tensor, prompt: Tensor | None = None) -> Tensor:
        """As `ElseqStepper.score`; prompts may differ in length."""
        lengths, width = [0] * len(tokens), tokens.size(1) - 1
        if prompt is not None:
            pad = self.model.decoder.dictionary.pad()
            lengths = prompt.ne(pad).sum(dim=1).tolist()
            rows = [torch.cat((row[:length], own)) for row, length, own in zip(prompt, lengths, tokens, strict=True)]
            tokens = pad_sequence(rows, batch_first=True, padding_value=pad)
        self.encoder_out = self._encode(net_input)
        log_probs = _log_probs_of(self.model, tokens[:, 1:], *self._read(tokens[:, :-1])[:2])
        return torch.stack([row[length : length + width] for row, length in zip(log_probs, lengths, strict=True)])

    def _encode(self, net_input: dict) -> dict | None:
        return self.model.encoder.forward_torchscript(net_input) if hasattr(self.model, "encoder") else None

    def _forward(self, tokens: Tensor):
        if self.incremental:
            return self.model.decoder(tokens, encoder_out=self.encoder_out, incremental_state=self.incremental_state)
        return self._read(tokens)

    def _read(self, tokens: Tensor):
        if hasattr(self.model, "decoder"):
            return self.model.decoder(tokens, encoder_out=self.encoder_out)
        return self.model(tokens)

    def reorder(self, order: Tensor, sentences: Tensor | None = None) -> None:
        """As `ElseqStepper.reorder`. To fairseq, every hypothesis is a sentence."""
        if self.incremental:
            self.model.decoder.reorder_incremental_state_scripting(self.incremental_state, order)
        if self.encoder_out is not None:
            self.encoder_out = self.model.encoder.reorder_encoder_out(self.encoder_out, order)
        if self.prompt is not None:
            self.prompt = self.prompt.index_select(0, order)

    def finish(self) -> None:
        self.incremental_state = {}
        self.encoder_out = None
        self.prompt = None
        set_beam_size([self.model], 1)  # or the next one to use the model finds the old beam

    def state_bytes(self) -> int:
        """Bytes of the tensors in the incremental state, which a model fills as it likes."""
        return sum(tensor.nbytes for tensor in tree_leaves(self.incremental_state) if torch.is_tensor(tensor))

    def keep_nothing(self) -> None:
        """Nothing to do: it captures no step."""


class _Several:
    """Steppers that read the same tokens."""

    def __init__(self, *steppers):
        self.steppers = steppers
        self.reads_ragged_prompts = all(stepper.reads_ragged_prompts for stepper in steppers)

    def start(self, net_input: dict, beam: int, max_length: int, prompt: Tensor | None = None) -> None:
        for stepper in self.steppers:
            stepper.start(net_input, beam, max_length, prompt)

    def reorder(self, order: Tensor, sentences: Tensor | None = None) -> None:
        for stepper in self.steppers:
            stepper.reorder(order, sentences)

    def finish(self) -> None:
        for stepper in self.steppers:
            stepper.finish()

    def state_bytes(self) -> int:
        return sum(stepper.state_bytes() for stepper in self.steppers)

    def keep_nothing(self) -> None:
        for stepper in self.steppers:
            stepper.keep_nothing()


class Ensemble(_Several):
    """Log-probabilities of the mean of the probabilities of several models."""

    def __init__(self, models, temperature: float, need_weights: bool):
        super().__init__(*(make_stepper(model, temperature, need_weights) for model in models))

    def step(self, tokens: Tensor) -> tuple[NextTokens, Tensor | None]:
        results = [stepper.step(tokens) for stepper in self.steppers]
        if len(results) == 1:
            return results[0]
        log_probs = torch.stack([following.log_probs for following, _ in results])
        attention = [weights for _, weights in results if weights is not None]
        mean = torch.logsumexp(log_probs, dim=0) - math.log(len(results))
        return NextTokens(mean), sum(attention) / len(results) if attention else None


class Fusion(_Several):
    """Log-probabilities of a model, and with a weight those of a language model, added."""

    def __init__(self, model, language_model, weight: float):
        """
        Args:
            model: the stepper of the model, or of an ensemble.
            language_model: that of the language model.
            weight: of its log-probabilities.
        """
        super().__init__(model, language_model)
        self.weight = weight

    def step(self, tokens: Tensor) -> tuple[NextTokens, Tensor | None]:
        model, language_model = self.steppers
        following, weights = model.step(tokens)
        return NextTokens(following.log_probs + language_model.step(tokens)[0].log_probs * self.weight), weights


def _give_back_memory_after(device: torch.device, made: int) -> None:
    """After a pass over whole texts: it needed many times the bytes that it has made, and what comes next may not fit
    the places where that was."""
    if device.type == "cpu" and made >= LARGE:
        give_back_memory()


def make_stepper(model, temperature: float = 1.0, need_weights: bool = False) -> ElseqStepper | FairseqStepper:
    """The stepper that a model needs."""
    kind = ElseqStepper if isinstance(getattr(model, "decoder", None), Decoder) else FairseqStepper
    return kind(model, temperature, need_weights)


def _log_probs(model, output: Tensor, temperature: float = 1.0, extra=None) -> Tensor:
    """The log-probabilities [N, V] of the last position of a decoder's output [N, T, V or width]."""
    output = _at_temperature(output[:, -1:], temperature)
    return model.get_normalized_probs((output, extra), log_probs=True, sample=None)[:, -1]


def _log_probs_of(model, targets: Tensor, output: Tensor, extra=None) -> Tensor:
    """The log-probabilities [N, T] of given targets, int64 [N, T], from a decoder's output [N, T, V or width]."""
    log_probs = model.get_normalized_probs((output, extra), log_probs=True, sample=None)
    return log_probs.gather(2, targets.unsqueeze(2)).squeeze(2)


_NORMALIZE = ("get_normalized_probs", "get_normalized_probs_scriptable")


def _normalizes_by_softmax(model) -> bool:
    """Whether log-probabilities are the logarithm of a softmax: of all tokens, and in no way of a plugin's own."""
    if model.decoder.adaptive_softmax is not None:
        return False
    known = {
        getattr(base, name)
        for base in (BaseFairseqModel, TransformerModelBase, FairseqDecoder, Decoder)
        for name in _NORMALIZE
    }
    asked = (getattr(each, name) for each in (model, model.decoder) for name in _NORMALIZE)
    return all(getattr(method, "__func__", None) in known for method in asked)


def _at_temperature(output: Tensor, temperature: float) -> Tensor:
    return output if temperature == 1.0 else output / temperature


def _last_attention(extra) -> Tensor | None:
    """The attention to the source of the last position, from what a fairseq decoder returns beside its output."""
    attention = extra["attn"] if isinstance(extra, dict) else extra
    if isinstance(attention, list):
        attention = attention[0]
    return None if attention is None else attention[:, -1]


def _sentences(net_input: dict) -> int:
    return next(iter(net_input.values())).size(0)


def device_of(net_input: dict) -> torch.device:
    """The device of a batch."""
    return next(iter(net_input.values())).device
