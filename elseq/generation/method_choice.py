"""The choice of the decoding methods of a batch."""

import logging
from functools import lru_cache

from elseq.attention import DecodingMethod
from elseq.attention.methods import AUTO, EL, KV, Choice
from elseq.generation.attention_cost import cross_attention_seconds
from elseq.generation.cuda_graphs import free_memory_bytes
from elseq.generation.planner import Workload, decoding_state_bytes
from elseq.gpu import device_kind
from elseq.precision import INT8

logger = logging.getLogger(__name__)

# Share of the free memory that a decoding state may take: layers, logits and reordering need the rest.
USABLE = 0.6
# Floating-point operations, by type of device: some hundredths of a second on a CPU, some milliseconds on a GPU.
WORTH_MEASURING = {"cpu": 10**10, "other": 10**12}
# A method is chosen over kv if it takes less than this share of the time of kv: measurements are no more exact.
CLEARLY = 0.9


def possible_choices(decode_attention: str) -> list[Choice]:
    """Those that `choose_methods` may make."""
    if decode_attention != AUTO:
        return [Choice.named(decode_attention)]
    return [Choice(KV, KV), Choice(KV, EL), Choice(EL, EL)]


def choose_methods(decode_attention: str, decoder, workload: Workload) -> Choice:
    """
    `el` in self-attention reads as much as `kv` and computes more, so it is chosen for its smaller state only. In
    cross-attention it saves the projection of the source to keys and values in each layer, so there the measured times
    decide. int8 takes `kv` unmeasured: its projections are faster than in float32, and the work of `el` is not.

    Args:
        decode_attention: the name of a method, or auto. If the state of kv fits the free memory, auto is kv, and the
            faster one of kv and el in cross-attention; otherwise it is the one with the smaller state.
        decoder: an elseq decoder.
        workload: sizes of the batch.
    """
    if decode_attention != AUTO:
        return Choice.named(decode_attention)
    weight = next(decoder.parameters())
    needed = {method: decoding_state_bytes(decoder, workload, Choice(method, method)) for method in (KV, EL)}
    free = free_memory_bytes(weight.device)
    if needed[KV] <= USABLE * free:
        choice, reason = Choice(KV, _faster(decoder, workload)), "its decoding state fits the free memory"
    elif needed[EL] < needed[KV]:
        choice, reason = Choice(EL, EL), "the decoding state of kv does not fit the free memory"
    else:
        choice, reason = Choice(KV, KV), "el would need more memory"
    _explain(choice.name, reason, weight.device.type)
    logger.debug("decoding state: kv %d bytes, el %d bytes, free %d bytes", needed[KV], needed[EL], free)
    return choice


def _faster(decoder, workload: Workload) -> DecodingMethod:
    """The faster method in cross-attention; kv unless el is clearly faster, or where it is not worth measuring."""
    attentions, device = decoder.cross_attentions, next(decoder.parameters()).device
    worth = WORTH_MEASURING[device_kind(device)]
    if decoder.decode_dtype == INT8 or _operations(attentions, workload) < worth:
        return KV
    seconds = {
        method: sum(cross_attention_seconds(method, each, workload) for each in attentions) for method in (KV, EL)
    }
    logger.debug("cross-attention of %s: kv %.3f s, el %.3f s", workload, seconds[KV], seconds[EL])
    return EL if seconds[EL] < CLEARLY * seconds[KV] else KV


def _operations(attentions, workload: Workload) -> int:
    """Floating-point operations in which the methods differ: kv projects the source, el computes more at each step."""
    positions, total = workload.sentences * workload.source_length, 0
    for attention in attentions:
        sizes = attention.sizes
        total += 2 * positions * KV.numbers_kept(sizes) * sizes.memory_width
        total += positions * workload.beam * workload.target_length * KV.operations(sizes)
    return total


@lru_cache
def _explain(choice: str, reason: str, device: str) -> None:
    """One line for each choice and reason, not one for each batch."""
    logger.info("the decoding method auto is %s on this %s: %s", choice, device.upper(), reason)
