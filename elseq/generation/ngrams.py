"""Blocking of repeated n-grams, as tensor operations: any length, any device, no compiled extension."""

from torch import Tensor

from elseq.generation import transfers


def repeated_tokens(tokens: Tensor, size: int, unused: int) -> Tensor:
    """The tokens that would complete an n-gram which their hypothesis already has.

    Args:
        tokens: int64 [N, L]: what each of N hypotheses has so far, without the symbol it started from.
        size: n, at least 1.
        unused: a token that is never chosen anyway, such as padding.

    Returns:
        int64 [N, W], where a hypothesis has fewer with `unused` among them. On a CPU some hypothesis has W.
    """
    if tokens.size(1) < size:
        return tokens[:, :0]
    ngrams = tokens.unfold(1, size, 1)  # [N, L - n + 1, n]
    recent = tokens[:, tokens.size(1) - size + 1 :].unsqueeze(1)  # the n - 1 tokens that the next one would follow
    repeats = (ngrams[:, :, :-1] == recent).all(dim=-1)
    repeated = ngrams[:, :, -1].masked_fill(~repeats, unused)
    if transfers.is_asynchronous(tokens.device):
        return repeated
    count, order = repeats.sum(dim=1).max(), repeats.int().argsort(dim=1, descending=True)
    return repeated.gather(1, order[:, : int(count)])
