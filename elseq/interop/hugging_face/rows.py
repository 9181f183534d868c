"""The rows of an embedding: Hugging Face's in the order of the vocabulary, fairseq's after its four special symbols."""

from collections.abc import Sequence

import torch
from torch import Tensor

from elseq.errors import UserError
from elseq.interop.hugging_face.vocabulary import SPECIAL_SYMBOLS, Vocabulary

ADDED_ROWS = (0, 1, 3)  # rows of the special symbols <s>, <pad> and <unk>; the fourth, </s>, every model has
OUTPUT_BIAS = "decoder.output_projection.bias"
_NEVER = -1000.0  # a logit that even of the largest models' leaves a probability of 0
_LARGEST_ERROR = 100.0


def fairseq_order(vocabulary: Vocabulary, config: dict, rows: int) -> list[int | None]:
    """For each row of fairseq, the row in Hugging Face's order; None for a symbol that the model does not have.

    fairseq's dictionary begins with <s> <pad> </s> <unk>. BART was trained with it and keeps its order. A GPT-2 has one
    special symbol, <|endoftext|>, before and after every text, as fairseq's language models have </s>. Its row becomes
    that of </s>, the other three get new rows (see `unused_row`), and the words follow in their own order.

    Args:
        vocabulary: the model's.
        config: its config.json, with the end symbol.
        rows: of the embedding.

    Raises:
        UserError: an end symbol that the embedding does not have.
    """
    end = config["eos_token_id"]
    if not 0 <= end < rows:
        raise UserError(f"config.json has eos_token_id: {end}, and the embedding has {rows} rows")
    special: list[int | None] = []
    for name, option in zip(
        SPECIAL_SYMBOLS, ("bos_token_id", "pad_token_id", "eos_token_id", "unk_token_id"), strict=True
    ):
        row = end if name == "</s>" else vocabulary.rows.get(name, config.get(option))
        taken = row in special or (row == end and name != "</s>")
        special.append(None if row is None or row >= rows or taken else row)
    return special + [row for row in range(rows) if row not in special]


def take_rows(embedding: Tensor, order: list[int | None], unused: Tensor | None = None) -> Tensor:
    """An embedding [R, D], or a bias [R], with its rows in another order, and the row `unused` [D] for None."""
    if order == list(range(len(embedding))):
        return embedding
    rows = [unused.to(embedding.dtype) if row is None else embedding[row] for row in order]
    return torch.stack(rows)


def unused_bias() -> Tensor:
    """The bias of a word whose row is 0 and which is never chosen."""
    return torch.tensor(_NEVER)


def unused_row(weight: Tensor, bias: Tensor) -> Tensor | None:
    """An output embedding for a word that is never chosen.

    fairseq has no bias of the output layer that would exclude a word. But the features it reads come from a layer norm,
    weight * z + bias, where z has the mean 0 and the variance 1: they lie around the bias, with the covariance
    C = W (I - 1/D) W, W = diag(weight), if every z is as likely as any other, and in one direction they do not differ
    at all. Along C^-1 bias they differ the least for the size of their mean. C includes what rounding them adds.

    Args:
        weight, bias: of the layer norm before the output layer, [D].

    Returns:
        The row [D], in float64: its logit is `_NEVER`, whatever the features. None for a layer norm whose bias is too
        small for that, as it is before training.
    """
    scale, shift = weight.double(), bias.double()
    covariance = torch.diag(scale**2) - torch.outer(scale, scale) / len(scale)
    covariance += torch.diag(_rounding(weight.dtype) ** 2 * (scale**2 + shift**2) + 1e-30)
    direction = torch.linalg.solve(covariance, shift)
    row = _NEVER / shift.dot(direction) * direction
    return row if is_steady(row, weight, bias, weight.dtype) else None


def is_steady(row: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> bool:
    """Whether the logit of an unused row stays far below all others if features and row are rounded to a type."""
    error = _rounding(dtype) * (row * torch.hypot(weight.double(), bias.double())).norm()
    return bool(error < _LARGEST_ERROR)  # False for a row that is not a number


def _rounding(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def are_added_rows(embedding: Tensor, rows: Sequence[int]) -> bool:
    """Whether the rows of some of <s>, <pad> and <unk> are equal, as those that `take_rows` adds."""
    first, *others = (embedding[row] for row in rows) if rows else (None,)
    return all(torch.equal(first, other) for other in others)
