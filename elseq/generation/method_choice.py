"""Which method a batch is decoded with."""

import logging
import os
from functools import lru_cache

import torch

from elseq.attention import METHODS, DecodingMethod
from elseq.attention.methods import AUTO, EL, KV
from elseq.generation.planner import Workload, decoding_state_bytes

logger = logging.getLogger(__name__)

# Share of the free memory that a decoding state may take: layers, logits and reordering need the rest.
USABLE = 0.6


def choose_method(decode_attention: str, decoder, workload: Workload) -> DecodingMethod:
    """
    Args:
        decode_attention: the name of a method, or auto: kv where its state fits the free memory, else el.
        decoder: an elseq decoder.
        workload: sizes of the batch.
    """
    if decode_attention != AUTO:
        return METHODS[decode_attention]
    weight = next(decoder.parameters())
    needed = {method: decoding_state_bytes(decoder, workload, method, weight.dtype) for method in (KV, EL)}
    free = free_memory_bytes(weight.device)
    if needed[KV] <= USABLE * free:
        choice, reason = KV, "its decoding state fits the free memory, and it computes less"
    elif needed[EL] < needed[KV]:
        choice, reason = EL, "the decoding state of kv does not fit the free memory"
    else:
        choice, reason = KV, "el would need more memory"
    _explain(choice.name, reason, weight.device.type)
    logger.debug("decoding state: kv %d bytes, el %d bytes, free %d bytes", needed[KV], needed[EL], free)
    return choice


@lru_cache
def _explain(choice: str, reason: str, device: str) -> None:
    """One line for each choice and reason, not one for each batch."""
    logger.info("--decode-attention auto chooses %s on this %s: %s", choice, device.upper(), reason)


def free_memory_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    try:
        with open("/proc/meminfo") as file:
            available = next(line for line in file if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
