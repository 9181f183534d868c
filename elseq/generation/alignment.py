"""Alignment of a hypothesis with its source, from attention."""

import torch
from fairseq import utils
from fairseq.data import data_utils
from torch import Tensor

ALIGNMENTS = {"hard": utils.extract_hard_alignment, "soft": utils.extract_soft_alignment}


def align(hypotheses: list[list[dict]], net_input: dict, models, kind: str, tgt_dict, left_pad_target: bool) -> None:
    """Set "alignment" of every hypothesis, as fairseq's extract_hard_alignment or extract_soft_alignment returns it.

    Args:
        hypotheses: of each sentence, with "tokens" [T] and "attention" [S, T].
        net_input: "src_tokens" int64 [B, S] and "src_lengths".
        models: the models of the search. One trained to align (full_context_alignment) reads the whole hypothesis once
            more (Garg et al., 2019).
        kind: hard or soft.
        tgt_dict: the dictionary. Its padding and end symbols are left out.
        left_pad_target: whether targets were padded on the left in training.
    """
    flat = [(sentence, hypothesis) for sentence, found in enumerate(hypotheses) for hypothesis in found]
    source = net_input["src_tokens"]
    if any(getattr(model, "full_context_alignment", False) for model in models):
        attention = _attend_again(flat, net_input, models, tgt_dict, left_pad_target)
    else:
        attention = [hypothesis["attention"].transpose(0, 1) for _, hypothesis in flat]
    # A beginning-of-sentence symbol is not a word of the source either.
    source = source.masked_fill(source.eq(tgt_dict.bos()), tgt_dict.pad()).cpu()
    for (sentence, hypothesis), weights in zip(flat, attention, strict=True):
        tokens = hypothesis["tokens"].cpu()
        hypothesis["alignment"] = ALIGNMENTS[kind](
            weights.cpu(), source[sentence], tokens, tgt_dict.pad(), tgt_dict.eos()
        )


def _attend_again(flat, net_input, models, tgt_dict, left_pad_target) -> list[Tensor]:
    """Mean attention of the models, [T, S] for each hypothesis, under teacher forcing."""
    rows = torch.tensor([sentence for sentence, _ in flat], device=net_input["src_tokens"].device)
    tokens = [hypothesis["tokens"] for _, hypothesis in flat]
    previous = data_utils.collate_tokens(
        tokens, tgt_dict.pad(), tgt_dict.eos(), left_pad_target, move_eos_to_beginning=True
    )
    source = net_input["src_tokens"].index_select(0, rows)
    lengths = net_input["src_lengths"].index_select(0, rows)
    attention = sum(model(source, lengths, previous)[1]["attn"][0] for model in models) / len(models)
    return [
        weights[-len(hypothesis) :] if left_pad_target else weights[: len(hypothesis)]
        for weights, hypothesis in zip(attention, tokens, strict=True)
    ]
