"""Captured steps that are kept for the next batches.

A capture costs as much time as some steps do. Batches of a corpus are of like size, so the buffers in which the steps
of one were captured serve the next ones: what a batch remembers is copied into them, and their masks hide what it does
not fill. A graph repeats the addresses and the choices of its capture, so the buffers go when any of these changes.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor, nn

from elseq.attention import DecodeState
from elseq.attention.memory import GROWTH
from elseq.attention.methods import Choice
from elseq.generation.captured_steps import CHEAP, IDLE, CapturedStep, cost_of_captures, is_half_idle
from elseq.generation.cuda_graphs import CapturedWork, has_memory, holders
from elseq.generation.planner import Workload, decoding_state_bytes
from elseq.kernel_trials import error_of, is_switched_on
from elseq.measurements import power_of_two

logger = logging.getLogger(__name__)

# Buffers are kept where so many times their bytes are free, or would be without them: other batches, and other
# processes, need memory, too.
FREE = 4
# Times the tolerance of one kernel: a step rounds some hundred times, a kernel a few times.
SLACK = 10
# Hypotheses that are compared: of all of a large batch, float64 takes more memory than may be free.
COMPARED = 32


def shared_sizes(workload: Workload, decoder, methods: Choice) -> Workload | None:
    """Choose the sizes of the buffers in which a batch is decoded.

    Larger sizes suit more batches, but idle rows are computed and unused room is read. The batch's own sizes are
    rounded up to powers of two if that costs less than one capture. Otherwise they are rounded up to one of four sizes
    between consecutive powers of two, if that costs less than all captures that the batch needs without kept buffers.
    Otherwise there are none.

    The sizes depend on the batch, the model, the GPU and the verdict on its kernel alone, not on earlier batches. So do
    the numbers that are computed in the buffers.

    Args:
        workload: of the batch.
        decoder: an elseq decoder.
        methods: how the batch is decoded.
    """

    def state_bytes(of: Workload) -> int:
        return decoding_state_bytes(decoder, of, methods)

    def of_sources(of: Workload) -> int:
        return state_bytes(replace(of, target_length=0))

    hypotheses = workload.sentences * workload.beam
    of_position = (state_bytes(replace(workload, target_length=GROWTH)) - of_sources(workload)) // GROWTH
    captures = cost_of_captures(of_position, workload.target_length)
    for per_octave, limit in ((1, min(CHEAP, captures)), (4, captures)):
        sizes = _rounded_up(workload, per_octave)
        idle = sizes.sentences * sizes.beam - hypotheses
        wasted = of_sources(sizes) - of_sources(workload)
        if not _skips_room(sizes, decoder, methods):  # else half of it, on average, is read for nothing
            wasted += (state_bytes(sizes) - of_sources(sizes)) // 2
        if idle < max(IDLE, hypotheses // 4) and wasted <= limit:
            return sizes
    return None


def _skips_room(sizes: Workload, decoder, methods: Choice) -> bool:
    """Whether steps in buffers of these sizes read no room for tokens that are not there yet."""
    if sizes.prompt_length:  # attended to under the same softmax, by a kernel that may not be used for its sizes
        return False
    weight, hypotheses = next(decoder.parameters()), sizes.sentences * sizes.beam
    return all(
        layer.self_attn.top_k is None
        and methods.own.has_step_kernel(layer.self_attn.sizes, weight, hypotheses, sizes.target_length)
        for layer in decoder.layers
    )


def _rounded_up(workload: Workload, per_octave: int) -> Workload:
    """To so many sizes from one power of two to the next, and lengths to multiples of `GROWTH`."""

    def rounded(number: int, least: int) -> int:
        step = max(least, power_of_two(number) // 2 // per_octave)
        return -(-number // step) * step

    lengths = ("source_length", "target_length", "prompt_length")
    lengths = {name: rounded(getattr(workload, name), GROWTH) for name in lengths}
    return replace(workload, sentences=rounded(workload.sentences, 1), **lengths)


class Buffers:
    """The state of a batch of at most some sizes, at fixed addresses, and the steps captured on it: one for all of its
    sentences, and one for the first half of them, and so on, to which a batch moves as its sentences finish."""

    def __init__(self, sizes: Workload, state: DecodeState):
        """
        Args:
            sizes: target_length: the room for generated tokens.
            state: of the same kind, which has decoded a token.
        """
        self.sizes = sizes
        lengths = sizes.source_length, sizes.prompt_length, sizes.target_length
        self.state = state.empty(sizes.sentences, sizes.beam, *lengths)
        self.steps: dict[int, CapturedStep] = {}
        self.is_proved = False  # a graph was right on another batch than that of its capture

    @property
    def has_failed(self) -> bool:
        """Whether something that was to be captured in them is not."""
        return any(step.work.has_failed for step in self.steps.values())

    def part(self, sentences: int) -> tuple[DecodeState, CapturedStep]:
        """A state in the buffers for as many sentences or more, to be loaded, and its step."""
        beam, size = self.sizes.beam, self.sizes.sentences
        while is_half_idle(size * beam, sentences * beam):
            size = -(-size // 2)
        step = self.steps.get(size)
        state = self.state.narrow(size, beam, None if step is None else step.has_ancestry)
        if step is None:
            has_ancestry = state.cursor.ancestry is not None
            step = self.steps[size] = CapturedStep(size * beam, self.state.cursor.position.device, has_ancestry)
        return state, step


class KeptSteps:
    """What a stepper keeps between batches: buffers for batches of several sizes, with their graphs.

    Those that were not used for the longest time are given up first. Another stepper that makes buffers for the same
    model takes the place of all.
    """

    is_possible = True  # in this process: no kept graph has been wrong

    def __init__(self, model: nn.Module):
        self.is_allowed = True
        self._model = model
        self._buffers: dict[Workload, Buffers] = {}  # by their sizes, those used last at the end
        self._sizes: Workload | None = None
        self._methods: Choice | None = None
        self._key: tuple = ()
        holders.add(self)

    def __reduce__(self):
        """A copy keeps nothing yet."""
        return type(self), (self._model,), {"is_allowed": self.is_allowed}

    def keep_nothing(self) -> None:
        """Now and from now on."""
        self.is_allowed = False
        self.release()

    def begin(self, workload: Workload, methods: Choice, settings: tuple) -> bool:
        """Whether the steps of a batch are captured in buffers that are kept. If not, none are: it needs the memory.

        Args:
            workload: sizes of the batch.
            methods: how it is decoded.
            settings: what else a step depends on, besides the model.
        """
        if not self._may_keep():
            self.release()
            return False
        key = (settings, torch.is_inference_mode_enabled(), _precision_of_products(), _contents(self._model))
        self._sizes = shared_sizes(workload, self._model.decoder, methods)
        if self._sizes is None or (methods, key) != (self._methods, self._key):
            self.release()
        self._methods, self._key = methods, key
        return self._sizes is not None

    def _may_keep(self) -> bool:
        device = next(self._model.decoder.parameters()).device
        return (
            self.is_allowed
            and can_keep(device)
            and KeptSteps.is_possible
            and CapturedWork.is_possible
            and not torch.is_autocast_enabled(device.type)  # whose copies of weights go with it
        )

    def buffers(self, state: DecodeState) -> Buffers | None:
        """After `begin`: the buffers for the batch. None: they would take too much of the free memory.

        Args:
            state: of the batch, which has decoded a token.
        """
        found = self._buffers.pop(self._sizes, None) or self._make(state)
        if found is not None:
            self._buffers[self._sizes] = found
        return found

    def _make(self, state: DecodeState) -> Buffers | None:
        for holder in list(holders):
            if holder._model is self._model and holder is not self:
                holder.release()
        decoder = self._model.decoder
        device, needed = next(decoder.parameters()).device, decoding_state_bytes(decoder, self._sizes, self._methods)
        while not has_memory(device, FREE * (self.size_bytes() + needed) - self.size_bytes()):
            if not self._buffers:
                return None
            del self._buffers[next(iter(self._buffers))]
        return Buffers(self._sizes, state)

    def prove(self, output: Tensor, expected: Tensor) -> bool:
        """Whether a graph is right on another batch than that of its capture. If not, none is kept from now on.

        Args:
            output: what it returned.
            expected: what the step returned that was not captured, from the same state.
        """
        rows = slice(None, None, -(-len(output) // COMPARED))
        error = error_of("a kept graph", output[rows], expected[rows], SLACK)
        if error is not None:
            self.release()
            KeptSteps.is_possible = False
            logger.warning("decoding steps are captured anew for each batch, because %s", error)
        return error is None

    def release_failed(self) -> None:
        """Before a batch is read, which needs memory: keep no buffers in which a capture failed."""
        self._buffers = {sizes: each for sizes, each in self._buffers.items() if not each.has_failed}

    def release(self) -> None:
        """Keep nothing."""
        self._buffers = {}

    def size_bytes(self) -> int:
        """Bytes of the buffers, without what a graph needs while it runs."""
        return sum(each.state.size_bytes() for each in self._buffers.values())


def can_keep(device: torch.device) -> bool:
    """Whether graphs are kept on a device."""
    return device.type == "cuda" and is_switched_on()


def _precision_of_products() -> tuple:
    """The settings of PyTorch by which a GPU rounds in products, which a graph repeats."""
    products = torch.backends.cuda.matmul
    # The older name raises an error once the newer one has been set.
    float32 = products.fp32_precision if hasattr(products, "fp32_precision") else products.allow_tf32
    return (
        float32,
        products.allow_fp16_reduced_precision_reduction,
        products.allow_bf16_reduced_precision_reduction,
    )


def _contents(model: nn.Module) -> tuple:
    """What a graph repeats of a model without its encoder: where its tensors are, its numbers, and its functions."""
    found = []
    for name, module in model.named_modules(remove_duplicate=False):
        if name.partition(".")[0] == "encoder":
            continue
        for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(value, Tensor):
                found.append((value.data_ptr(), value.dtype, value.shape, value.stride()))
            elif value is None or isinstance(value, bool | int | float | str) or callable(value):
                found.append(value)
    return tuple(found)
