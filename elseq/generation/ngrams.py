"""Blocking of repeated n-grams, as tensor operations: any length, any device, no compiled extension."""

from torch import Tensor

from elseq.generation import transfers


def block_repeated_ngrams(
    log_probs: Tensor, tokens: Tensor, size: int, unused: int, exempt: Tensor | None = None
) -> None:
    """Set to -inf, in place, every token that would complete an n-gram which its hypothesis already has.

    Args:
        log_probs: [N, V]: N hypotheses, V tokens of the vocabulary.
        tokens: int64 [N, L]: what each hypothesis has so far, without the symbol it started from.
        size: n, at least 1.
        unused: a token that is never chosen anyway, such as padding.
        exempt: bool [N]: hypotheses that may repeat themselves at this step, or None.
    """
    found = _completed(tokens, size, exempt)
    if found is not None:
        last, repeats = found
        log_probs.scatter_(1, last.masked_fill(~repeats, unused), float("-inf"))


def repeated_tokens(tokens: Tensor, size: int, unused: int) -> Tensor:
    """The tokens that `block_repeated_ngrams` blocks, int64 [N, W], and `unused`. On a CPU some row needs all W."""
    found = _completed(tokens, size, None)
    if found is None:
        return tokens[:, :0]
    last, repeats = found
    blocked = last.masked_fill(~repeats, unused)
    if not transfers.is_free(tokens.device):
        return blocked
    count, order = repeats.sum(dim=1).max(), repeats.int().argsort(dim=1, descending=True)
    return blocked.gather(1, order[:, : int(count)])


def _completed(tokens: Tensor, size: int, exempt: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """The last token of each n-gram, int64 [N, L - n + 1], and whether the n-gram could be completed again, bool."""
    if tokens.size(1) < size:
        return None
    ngrams = tokens.unfold(1, size, 1)  # [N, L - n + 1, n]
    recent = tokens[:, tokens.size(1) - size + 1 :].unsqueeze(1)  # the n - 1 tokens that the next one would follow
    repeats = (ngrams[:, :, :-1] == recent).all(dim=-1)
    if exempt is not None:
        repeats &= ~exempt.unsqueeze(1)
    return ngrams[:, :, -1], repeats
