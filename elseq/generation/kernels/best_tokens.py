"""The best tokens, or a sampled one, and their log-probabilities, without the log-probabilities of all tokens."""

import math

import torch
from torch import Tensor

from elseq.gpu import on_device
from elseq.kernel_trials import Trial, draw, usable

MOST_ON_GPU = 32  # tokens that the kernel finds: one after the other
TYPES = (torch.float16, torch.bfloat16, torch.float32)


def has_kernel(logits: Tensor, count: int) -> bool:
    """Whether `best_tokens` finds so many tokens on this device, and `sampled_tokens` samples one.

    The kernels have then proved themselves there.
    """
    device, dtype = logits.device, logits.dtype
    return (
        logits.is_cuda
        and dtype in TYPES
        and count <= MOST_ON_GPU
        and logits.stride(1) == 1
        and usable(f"the best tokens of {dtype}", device, lambda: _trial(device, dtype))
    )


def best_tokens(logits: Tensor, count: int, forbidden: Tensor) -> tuple[Tensor, Tensor]:
    """The largest log-probabilities of each row.

    Args:
        logits: [N, V]: N rows of V logits, each row contiguous; -inf at the forbidden tokens afterwards.
        count: at most V and `MOST_ON_GPU`.
        forbidden: int64 [N, W], tokens that are not chosen but have their share of the probability.

    Returns:
        float32 [N, count], in descending order, NaN in a row with a NaN; int64 [N, count], the tokens. What has the
        log-probability -inf may stand there with any token.
    """
    from elseq.generation.kernels.best_tokens_triton import launch_best, launch_log_sums  # need Triton

    with on_device(logits.device):
        normalizers = torch.logsumexp(launch_log_sums(logits), dim=1, keepdim=True)
        logits.scatter_(1, forbidden, -math.inf)
        values, tokens = launch_best(logits, count)
    values, index = torch.topk(values, count, dim=1)
    return values - normalizers, tokens.gather(1, index)


def sampled_tokens(
    logits: Tensor, forbidden: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """A token of each row, sampled by its probability among those that are not forbidden: first a part of the
    row by its sum, then a token of the part.

    Args:
        logits, forbidden: as for `best_tokens`.
        generator: of the random numbers. Default: torch's own.

    Returns:
        float32 [N, 1], its log-probability among all tokens, NaN in a row with a NaN; int64 [N, 1], the token.
    """
    from elseq.generation.kernels.best_tokens_triton import BLOCK, launch_log_sums  # need Triton

    with on_device(logits.device):
        normalizers = torch.logsumexp(launch_log_sums(logits), dim=1, keepdim=True)
        logits.scatter_(1, forbidden, -math.inf)
        part = _sampled(launch_log_sums(logits), generator)
    width = logits.size(1)
    tokens = part * BLOCK + torch.arange(min(BLOCK, width), device=logits.device)
    numbers = logits.gather(1, tokens.clamp(max=width - 1)).float().masked_fill_(tokens >= width, -math.inf)
    token = tokens.gather(1, _sampled(numbers, generator))
    return logits.gather(1, token).float() - normalizers, token


def _sampled(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """A column of each row, int64 [N, 1], as likely as the softmax of float32 [N, V] says."""
    return (logits - torch.empty_like(logits).exponential_(generator=generator).log_()).argmax(dim=1, keepdim=True)


def _trial(device: torch.device, dtype: torch.dtype, rows: int = 128, width: int = 50_000) -> Trial:
    count = 9
    logits = draw(rows, width, device=device, dtype=dtype).mul_(4)
    forbidden = torch.arange(rows * 100, device=device).view(rows, 100)
    log_probs = torch.log_softmax(logits.double(), dim=1)
    expected = torch.topk(log_probs.scatter(1, forbidden, -math.inf), count, dim=1)[0]

    def at_tokens(found: tuple[Tensor, Tensor]) -> Tensor:
        """The values found, and the log-probabilities of the tokens found."""
        values, places = found
        return torch.stack((values, log_probs.gather(1, places).float()))

    def by_torch() -> Tensor:
        values = torch.log_softmax(logits, dim=1, dtype=torch.float32).scatter_(1, forbidden, -math.inf)
        return at_tokens(torch.topk(values, count, dim=1))

    return Trial(lambda: at_tokens(best_tokens(logits, count, forbidden)), by_torch, torch.stack((expected, expected)))
