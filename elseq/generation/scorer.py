"""Scores given targets in one pass: no search."""

from collections.abc import Sequence

import torch
from fairseq.data import Dictionary
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from elseq.generation.search import max_positions, not_a_number, split_last
from elseq.generation.steppers import device_of, make_stepper


@torch.no_grad()
def score_targets(
    model,
    net_input: dict,
    targets: Sequence[Tensor],
    dictionary: Dictionary,
    prompt_tokens: Tensor | None = None,
    bos_token: int | None = None,
) -> list[dict[str, Tensor]]:
    """The log-probabilities of a target for each of B sentences, equal to those of a search for this hypothesis.

    Args:
        model: a fairseq model.
        net_input: the input of the model, from a task.
        targets: the tokens of each target, int64 [T], ending with the end symbol.
        dictionary: that of the targets.
        prompt_tokens: as for `SequenceGenerator.generate`: what each target continues. Default: `bos_token`.
        bos_token: the symbol a target starts from. Default: the end symbol.

    Returns:
        For each sentence, as a search for a hypothesis: "tokens" [T], "positional_scores" [T], and "score",
        their sum.

    Raises:
        UserError: the model's output is not a number.
    """
    pad, device = dictionary.pad(), device_of(net_input)
    padded = pad_sequence(list(targets), batch_first=True, padding_value=pad).to(device)
    start = padded.new_full((len(padded), 1), dictionary.eos() if bos_token is None else bos_token)
    prompt = None
    if prompt_tokens is not None:
        prompt, last = split_last(prompt_tokens, pad)
        start = last.unsqueeze(1)
    tokens = torch.cat((start, padded), dim=1)
    if prompt is not None and len(padded) > 1 and prompt.size(1) + padded.size(1) > max_positions([model]):
        # Each prompt fits with its own target, but perhaps not with the longest one.
        return [
            score_targets(model, _row(net_input, row), [target], dictionary, own[own.ne(pad)].unsqueeze(0))[0]
            for row, (target, own) in enumerate(zip(targets, prompt_tokens, strict=True))
        ]
    stepper = make_stepper(model)
    try:
        log_probs = stepper.score(net_input, tokens, prompt)
    finally:
        stepper.finish()
    if bool(log_probs.masked_fill(padded.eq(pad), 0).isnan().any()):
        read = tokens if prompt is None else torch.cat((prompt, tokens), dim=1)
        raise not_a_number([model], net_input, ((row, each[each.ne(pad)][:-1]) for row, each in enumerate(read)))
    return [
        {"tokens": target, "positional_scores": row[: len(target)], "score": row[: len(target)].sum()}
        for target, row in zip(targets, log_probs, strict=True)
    ]


def _row(net_input: dict, row: int) -> dict:
    return {name: tensor[row : row + 1] for name, tensor in net_input.items()}
